"""Intervals and predictive distributions: how wide they are, and how often what was measured lies inside.

A predictive distribution is given by its quantiles. Expression is (n_spots, n_genes) on one scale, log1p where a
calibrated model made it; every metric returns one number per gene.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.integrate import trapezoid

from histoflow._errors import NotFiniteError, OptionError, ShapeError

Floats = NDArray[np.float64]


def predictive_quantiles(
    mean: ArrayLike, scale: ArrayLike, residual_quantiles: ArrayLike, levels: ArrayLike, wanted: ArrayLike
) -> Floats:
    """Quantiles of the measured value that a calibrated prediction implies, spot by spot and gene by gene.

    The quantile of gene g at spot i is ``max(0, mean[i, g] + scale[i, g] * q[g])`` with q linear between the levels
    given, and that of the outermost level beyond them.

    Parameters
    ----------
    mean
        Predicted expression, log1p, shape (n_spots, n_genes).
    scale
        How far residuals spread, log1p, above 0, shape (n_spots, n_genes).
    residual_quantiles
        Quantiles of the residuals in units of `scale`, shape (n_genes, n_levels).
    levels
        Their levels, increasing, in (0, 1), shape (n_levels,).
    wanted
        Levels asked for, in [0, 1], shape (n_wanted,).

    Returns
    -------
    Shape (n_wanted, n_spots, n_genes), log1p, not negative.

    Raises
    ------
    ShapeError
        If shapes do not fit together.
    NotFiniteError
        If anything is NaN or infinite.
    OptionError
        If levels do not increase or leave their range, or a scale is not above 0.

    Examples
    --------
    >>> predictive_quantiles([[2.0]], [[0.5]], [[-2.0, 0.0, 2.0]], [0.1, 0.5, 0.9], [0.5, 0.7, 0.99]).ravel()
    array([2. , 2.5, 3. ])
    """
    centre, spread, residuals = _finite("mean", mean), _finite("scale", scale), _finite("quantiles", residual_quantiles)
    given, asked = checked_levels(levels), _finite("wanted", wanted)
    if centre.ndim != 2 or spread.shape != centre.shape:
        raise ShapeError(f"mean and scale must both be (n_spots, n_genes), got {centre.shape} and {spread.shape}")
    if residuals.shape != (centre.shape[1], len(given)):
        raise ShapeError(
            f"residual_quantiles must have shape (n_genes, n_levels) = ({centre.shape[1]}, {len(given)}), got "
            f"{residuals.shape}"
        )
    if asked.ndim != 1 or ((asked < 0) | (asked > 1)).any():
        raise OptionError(f"wanted must be levels between 0 and 1, got {asked.tolist()}")
    if (spread <= 0).any():
        raise OptionError(f"scale must be above 0, but {int((spread <= 0).sum())} of {spread.size} values are not")
    between = np.stack([np.interp(asked, given, gene) for gene in residuals], axis=1)
    quantiles: Floats = np.maximum(centre + spread * between[:, None, :], 0.0)
    return quantiles


def central_levels(level: float) -> tuple[float, float]:
    """Levels of the two quantiles between which a central interval of this level lies.

    Returns
    -------
    The lower and the upper one, which leave the same on both sides.

    Raises
    ------
    OptionError
        If the level is not in (0, 1).

    Examples
    --------
    >>> central_levels(0.5)
    (0.25, 0.75)
    """
    if not 0 < level < 1:
        raise OptionError(f"level must be between 0 and 1, got {level}")
    return (1 - level) / 2, (1 + level) / 2


def coverage(measured: ArrayLike, lower: ArrayLike, upper: ArrayLike) -> Floats:
    """Share of the spots whose measured value lies in its interval, ends included, gene by gene.

    Parameters
    ----------
    measured, lower, upper
        Expression on one scale, each (n_spots, n_genes).

    Returns
    -------
    Shape (n_genes,), in [0, 1].

    Raises
    ------
    ShapeError
        If shapes differ, or there are no spots.
    NotFiniteError
        If anything is NaN or infinite.
    OptionError
        If a lower end lies above its upper end.

    Examples
    --------
    >>> coverage([[0.0], [3.0]], [[0.0], [0.0]], [[1.0], [1.0]])
    array([0.5])
    """
    truth = _finite("measured", measured)
    low, high = _ends(lower, upper)
    if truth.shape != low.shape:
        raise ShapeError(f"measured has shape {truth.shape} but the intervals have {low.shape}: give equal ones")
    inside: Floats = ((truth >= low) & (truth <= high)).mean(axis=0)
    return inside


def interval_width(lower: ArrayLike, upper: ArrayLike) -> Floats:
    """Mean width of the intervals over spots, gene by gene.

    Parameters
    ----------
    lower, upper
        Ends on one scale, each (n_spots, n_genes).

    Returns
    -------
    Shape (n_genes,), on that scale.

    Raises
    ------
    ShapeError, NotFiniteError, OptionError
        As in `coverage`.

    Examples
    --------
    >>> interval_width([[0.0], [1.0]], [[1.0], [4.0]])
    array([2.])
    """
    low, high = _ends(lower, upper)
    width: Floats = (high - low).mean(axis=0)
    return width


def crps(measured: ArrayLike, quantiles: ArrayLike, levels: ArrayLike) -> Floats:
    """Continuous ranked probability score, mean over spots, gene by gene; lower is better, 0 is perfect.

    Twice the pinball loss integrated over the levels (Gneiting and Raftery, JASA 2007, section 4.2; Laio and Tamea,
    HESS 2007, equation 6), by the trapezoidal rule. Beyond the outermost levels the quantiles stay what they are there,
    so that a distribution known at few levels scores as the shorter-tailed one that these describe. A point prediction
    has its mean absolute error.

    Parameters
    ----------
    measured
        Expression, shape (n_spots, n_genes).
    quantiles
        Of the predictive distribution on the same scale, shape (n_levels, n_spots, n_genes).
    levels
        Their levels, increasing, in (0, 1), shape (n_levels,).

    Returns
    -------
    Shape (n_genes,), on the scale of the expression.

    Raises
    ------
    ShapeError
        If shapes do not fit together.
    NotFiniteError
        If anything is NaN or infinite.
    OptionError
        If levels do not increase or leave (0, 1).

    Examples
    --------
    >>> crps([[1.0], [3.0]], [[[2.0], [2.0]]], [0.5])
    array([1.])
    """
    truth, known, given = _finite("measured", measured), _finite("quantiles", quantiles), checked_levels(levels)
    if truth.ndim != 2 or not len(truth) or known.shape != (len(given), *truth.shape):
        raise ShapeError(
            f"quantiles must have shape (n_levels, n_spots, n_genes) = ({len(given)}, *{truth.shape}) with at least "
            f"one spot, got {known.shape}"
        )
    nodes = [0.0, *given, 1.0]
    losses = [_pinball(truth, q, level) for q, level in zip([known[0], *known, known[-1]], nodes, strict=True)]
    score: Floats = 2 * trapezoid(np.stack(losses), nodes, axis=0)
    return score


def _pinball(measured: Floats, quantile: Floats, level: float) -> Floats:
    """Pinball loss of one quantile, mean over spots, (n_genes,)."""
    above = measured - quantile
    loss: Floats = np.maximum(level * above, (level - 1) * above).mean(axis=0)
    return loss


def checked_levels(levels: ArrayLike) -> Floats:
    """Levels as an array (n_levels,), refused unless they increase inside (0, 1).

    Raises
    ------
    OptionError
        If they do not.
    """
    given = np.asarray(levels, dtype=float)
    if given.ndim != 1 or not len(given) or not (np.diff([0.0, *given, 1.0]) > 0).all():
        raise OptionError(f"levels must increase between 0 and 1, ends excluded, got {given.tolist()}")
    return given


def _ends(lower: ArrayLike, upper: ArrayLike) -> tuple[Floats, Floats]:
    low, high = _finite("lower", lower), _finite("upper", upper)
    if low.shape != high.shape or low.ndim != 2 or not len(low):
        raise ShapeError(
            f"lower and upper must both be (n_spots, n_genes) with at least one spot, got {low.shape} and {high.shape}"
        )
    if crossed := int((low > high).sum()):
        raise OptionError(f"lower lies above upper in {crossed} of {low.size} intervals: give the lower end first")
    return low, high


def _finite(name: str, values: ArrayLike) -> Floats:
    array = np.asarray(values, dtype=float)
    if n_bad := array.size - int(np.isfinite(array).sum()):
        raise NotFiniteError(f"{name} holds {n_bad} NaN or infinite values of {array.size}: leave those spots out")
    return array
