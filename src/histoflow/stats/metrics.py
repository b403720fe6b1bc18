"""Metrics per gene: how well predicted expression follows the measured one.

Every function takes the measured and the predicted expression, both (n_spots, n_genes) and on one scale (counts or
log1p, the caller's choice), and returns one number per gene, (n_genes,). A number that is not defined is NaN, without
a warning; `mean_with_nan_as_zero` is the one place that says what a NaN is worth.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from histoflow._errors import NotFiniteError, ShapeError

Floats = NDArray[np.float64]

_ROUNDING = 8
"""Values that differ by no more units in the last place than this are equal: a correlation would be with noise."""
_COLLINEAR = 1e-6
"""A gene is the covariate itself if less than this part of its length is left once the covariate is taken out."""


class GeneMean(NamedTuple):
    """A mean over genes, and how many of them were NaN and counted as 0."""

    mean: float
    n_nan: int


def pearson(measured: ArrayLike, predicted: ArrayLike) -> Floats:
    """Pearson correlation over spots, gene by gene.

    Parameters
    ----------
    measured, predicted
        Expression, shape (n_spots, n_genes), both counts or both log1p.

    Returns
    -------
    Shape (n_genes,), in [-1, 1]; NaN where the measured or the predicted gene is constant (to within the rounding of
    its floating point type).

    Raises
    ------
    ShapeError
        If the two differ in shape, are not two-dimensional, or hold no spots.
    NotFiniteError
        If either holds NaN or infinity.

    Examples
    --------
    >>> pearson([[0, 5], [1, 5], [2, 5]], [[1, 0], [3, 1], [5, 2]])
    array([ 1., nan])
    """
    measured, predicted = _pair(measured, predicted)
    return _columnwise_dot(_unit_columns(measured), _unit_columns(predicted))


def spearman(measured: ArrayLike, predicted: ArrayLike) -> Floats:
    """Spearman rank correlation over spots, gene by gene; ties share their average rank, as in scipy.

    Parameters, result and errors are those of `pearson`.

    Examples
    --------
    >>> spearman([[0], [1], [2]], [[1], [10], [100]])
    array([1.])
    """
    measured, predicted = _pair(measured, predicted)
    return pearson(rankdata(measured, axis=0), rankdata(predicted, axis=0))


def partial_pearson(measured: ArrayLike, predicted: ArrayLike, *, covariate: ArrayLike) -> Floats:
    """Pearson correlation of what is left once a covariate is regressed out of both sides, gene by gene.

    Given the log1p total counts it tells a gene's own pattern from the depth that all genes share on the raw scale.

    Parameters
    ----------
    measured, predicted
        Expression, shape (n_spots, n_genes), both counts or both log1p.
    covariate
        One number per spot, shape (n_spots,). A constant one explains nothing: the result is `pearson`.

    Returns
    -------
    Shape (n_genes,), in [-1, 1]; NaN where a side is constant or is a linear function of the covariate.

    Raises
    ------
    ShapeError
        If shapes do not fit together.
    NotFiniteError
        If anything is NaN or infinite.

    Examples
    --------
    >>> depth = [0.0, 1.0, 2.0, 3.0]
    >>> partial_pearson([[1], [0], [3], [2]], [[0], [1], [2], [3]], covariate=depth)
    array([nan])
    """
    measured, predicted = _pair(measured, predicted)
    given = _finite("covariate", covariate)
    if given.shape != measured.shape[:1]:
        raise ShapeError(f"covariate must have one value per spot, shape ({len(measured)},), got {given.shape}")
    direction = np.nan_to_num(_unit_columns(given[:, None]))
    left_measured, left_predicted = (_without(direction, _unit_columns(side)) for side in (measured, predicted))
    return _columnwise_dot(left_measured, left_predicted)


def mse_skill(measured: ArrayLike, predicted: ArrayLike, *, baseline: ArrayLike) -> Floats:
    """Skill against a constant prediction, ``1 - MSE(predicted) / MSE(baseline)``, gene by gene.

    1 is perfect, 0 is no better than the baseline, below 0 is worse. With the mean of the training spots as baseline
    it is the out-of-sample R² (the skill score of Murphy, Mon. Weather Rev. 1988).

    Parameters
    ----------
    measured, predicted
        Expression, shape (n_spots, n_genes), both counts or both log1p.
    baseline
        One value per gene on the same scale, shape (n_genes,): the mean over the **training** spots.

    Returns
    -------
    Shape (n_genes,), at most 1; NaN where the baseline is exactly right (to within rounding).

    Raises
    ------
    ShapeError
        If shapes do not fit together.
    NotFiniteError
        If anything is NaN or infinite.

    Examples
    --------
    >>> mse_skill([[0.0], [2.0]], [[0.5], [1.5]], baseline=[1.0])
    array([0.75])
    """
    measured, predicted = _pair(measured, predicted)
    constant = _finite("baseline", baseline)
    if constant.shape != measured.shape[1:]:
        raise ShapeError(f"baseline must have one value per gene, shape ({measured.shape[1]},), got {constant.shape}")
    error, reference = ((np.subtract(measured, side, dtype=float) ** 2).mean(axis=0) for side in (predicted, constant))
    skill: Floats = 1 - error / _nan_where(np.sqrt(reference) <= _rounding(measured), reference)
    return skill


def variance_ratio(measured: ArrayLike, predicted: ArrayLike) -> Floats:
    """Variance of the prediction over that of the measurement, gene by gene: below 1 means flattened maps.

    Parameters
    ----------
    measured, predicted
        Expression, shape (n_spots, n_genes), both counts or both log1p.

    Returns
    -------
    Shape (n_genes,), not negative; NaN where the measured gene is constant.

    Raises
    ------
    ShapeError, NotFiniteError
        As in `pearson`.

    Examples
    --------
    >>> variance_ratio([[0.0], [4.0]], [[1.0], [3.0]])
    array([0.25])
    """
    measured, predicted = _pair(measured, predicted)
    variance = measured.var(axis=0, dtype=float)
    ratio: Floats = predicted.var(axis=0, dtype=float) / _nan_where(_is_constant(measured), variance)
    return ratio


def mean_with_nan_as_zero(values: ArrayLike) -> GeneMean:
    """Mean over genes in which a gene without a defined value counts as 0.

    A model must not gain from genes it predicts as constant, as it would if they were left out, nor lose its whole
    score to one gene that does not vary, as it would if they were kept.

    Parameters
    ----------
    values
        One value per gene, shape (n_genes,), NaN where not defined.

    Raises
    ------
    ShapeError
        If `values` is empty or not one-dimensional.

    Examples
    --------
    >>> mean_with_nan_as_zero([0.5, float("nan"), 0.25, 0.25])
    GeneMean(mean=0.25, n_nan=1)
    """
    genes = np.asarray(values, dtype=float)
    if genes.ndim != 1 or not len(genes):
        raise ShapeError(f"values must have shape (n_genes,) with at least one gene, got {genes.shape}")
    undefined = np.isnan(genes)
    return GeneMean(float(np.where(undefined, 0.0, genes).mean()), int(undefined.sum()))


def _pair(measured: ArrayLike, predicted: ArrayLike) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Both sides as finite float arrays of one shape (n_spots, n_genes), each in its own precision."""
    pair = _finite("measured", measured), _finite("predicted", predicted)
    if pair[0].shape != pair[1].shape:
        raise ShapeError(f"measured has shape {pair[0].shape} but predicted has {pair[1].shape}: give equal ones")
    if pair[0].ndim != 2 or not len(pair[0]):
        raise ShapeError(
            f"measured and predicted must have shape (n_spots, n_genes) with at least one spot, got {pair[0].shape}"
        )
    return pair


def _finite(name: str, values: ArrayLike) -> NDArray[np.floating]:
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise ShapeError(f"{name} must be a dense array of numbers, got {type(values).__name__} of {array.dtype}")
    n_bad = array.size - int(np.isfinite(array).sum())
    if n_bad:
        raise NotFiniteError(f"{name} holds {n_bad} NaN or infinite values of {array.size}: leave those spots out")
    return array if array.dtype.kind == "f" else array.astype(float)


def _unit_columns(values: NDArray[np.floating]) -> Floats:
    """Centred columns of length 1, shape (n_spots, n_genes); NaN where a column is constant."""
    centred = values - values.mean(axis=0, dtype=float)
    # Divided by the largest first, so that squares neither overflow nor vanish.
    centred /= _nan_where(_is_constant(values), np.abs(centred).max(axis=0))
    unit: Floats = centred / np.sqrt((centred**2).sum(axis=0))
    return unit


def _is_constant(values: NDArray[np.floating]) -> NDArray[np.bool_]:
    constant: NDArray[np.bool_] = np.ptp(values, axis=0) <= _rounding(values)
    return constant


def _rounding(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """Differences within a column, (n_genes,), that the floating point type of `values` cannot tell from none."""
    tolerance: NDArray[np.floating] = _ROUNDING * np.finfo(values.dtype).eps * np.abs(values).max(axis=0)
    return tolerance


def _nan_where(undefined: NDArray[np.bool_], values: Floats) -> Floats:
    return np.where(undefined, np.nan, values)


def _without(direction: Floats, unit: Floats) -> Floats:
    """Unit columns (n_spots, n_genes) minus their part along `direction`, (n_spots, 1), back at length 1."""
    left = unit - direction * (direction * unit).sum(axis=0)
    length = np.sqrt((left**2).sum(axis=0))
    kept: Floats = left / _nan_where(length < _COLLINEAR, length)
    return kept


def _columnwise_dot(first: Floats, second: Floats) -> Floats:
    product: Floats = np.clip((first * second).sum(axis=0), -1.0, 1.0)
    return product


def moran(values: ArrayLike, index: NDArray[np.int64], mask: NDArray[np.bool_]) -> Floats:
    """Moran's I of every gene: how alike neighbouring spots are (Moran, Biometrika 1950; binary weights).

    Parameters
    ----------
    values
        Expression, shape (n_spots, n_genes), any one scale.
    index, mask
        Neighbours of each spot and which of them are real, both (n_spots, K).

    Returns
    -------
    Shape (n_genes,); NaN where a gene is constant or no spot has a neighbour.

    Raises
    ------
    NotFiniteError
        If `values` holds NaN or infinity.
    """
    unit = _unit_columns(_finite("values", values))
    n_pairs = int(mask.sum())
    if n_pairs == 0:
        return np.full(unit.shape[1], np.nan)
    lagged = sum(unit[index[:, k]] * mask[:, k, None] for k in range(index.shape[1]))
    result: Floats = len(unit) / n_pairs * (unit * lagged).sum(axis=0)
    return result
