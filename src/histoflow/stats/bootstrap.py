"""The bootstrap: how far a mean over few units may be off."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from histoflow._errors import NotFiniteError, OptionError, ShapeError
from histoflow.stats.intervals import central_levels


def bootstrap_mean(
    values: ArrayLike, *, level: float = 0.9, seed: int = 0, n_resamples: int = 4000
) -> tuple[float, float]:
    """Percentile interval of a mean, units drawn with replacement (Efron, Ann. Statist. 1979).

    Parameters
    ----------
    values
        One number per independent unit, a section or a patient, shape (n_units,); of a difference, one per pair.
    level
        Of the central interval.
    seed
        Of the draws.
    n_resamples
        How many there are.

    Returns
    -------
    Lower and upper end. With few units it is too narrow: of normal values an interval of 90 % covers 78 % with five of
    them, 83 % with eight, 86 % with twenty.

    Raises
    ------
    ShapeError
        If `values` is empty or not one-dimensional.
    NotFiniteError
        If it holds NaN or infinity.
    OptionError
        If `level` is not in (0, 1), or `n_resamples` below 1.

    Examples
    --------
    >>> lower, upper = bootstrap_mean([0.4, 0.5, 0.6, 0.5, 0.5])
    >>> 0.4 <= lower < 0.5 < upper <= 0.6
    True
    """
    units = np.asarray(values, dtype=float)
    if units.ndim != 1 or not len(units):
        raise ShapeError(f"values must have shape (n_units,) with at least one unit, got {units.shape}")
    if not np.isfinite(units).all():
        raise NotFiniteError(f"values holds {int((~np.isfinite(units)).sum())} NaN or infinite of {len(units)}")
    if n_resamples < 1:
        raise OptionError(f"n_resamples is {n_resamples}; give at least 1")
    drawn = np.random.default_rng(seed).integers(len(units), size=(n_resamples, len(units)))
    lower, upper = np.quantile(units[drawn].mean(axis=1), central_levels(level))
    return float(lower), float(upper)
