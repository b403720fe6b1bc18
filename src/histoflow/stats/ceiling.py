"""Noise ceiling: how far a perfect prediction could correlate with counts that are as few as these.

Counts are thinned, which gives two independent measurements of the same spots at a part of the depth; how well they
agree tells how much of a gene's variation is not counting noise (Batson et al., arXiv 2019; Neufeld et al.,
Biostatistics 2022: a thinned Poisson count and what is left of it are independent).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from histoflow._errors import CountsError, OptionError, ShapeError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Transform = Callable[[NDArray[np.floating], Floats, float], NDArray[np.floating]]
"""Counts (n_spots, n_genes), library sizes (n_spots,) and the depth in (0, 1] they were thinned to → expression."""

N_THINNINGS = 10
_SLOPES = (0.5, 1.5)
"""How fast noise may fall with depth, as a power of it; 1 is that of a linear scale (Spearman and Brown)."""
_LEAST_AGREEMENT = 0.01
_CONSTANT = 1e-9
_STEP = 1e-4
_MOST_ERROR = 0.1
"""Standard error of a stable ceiling, as a part of it: a share of the ceiling is known to a tenth."""
_LEAST_SPOTS = 10


@dataclass(frozen=True)
class NoiseCeiling:
    """The highest Pearson correlation with the measured gene that counting noise allows, gene by gene.

    Attributes
    ----------
    ceiling
        Shape (n_genes,), in [0, 1]; NaN where two thinnings do not agree, or the gene is constant. An upper bound: it
        removes counting noise and no other.
    error
        Its standard error, over the spots and over the thinnings, shape (n_genes,).
    stable
        Whether it is known well enough to divide by: a standard error of at most a tenth of it, shape (n_genes,).
    agreement
        Correlation of two halves of the counts, shape (n_genes,), mean over the thinnings.
    """

    ceiling: Floats
    error: Floats
    stable: NDArray[np.bool_]
    agreement: Floats


def noise_ceiling(
    counts: ArrayLike, totals: ArrayLike, transform: Transform, *, seed: int = 0, n_thinnings: int = N_THINNINGS
) -> NoiseCeiling:
    """Estimate the highest correlation that counting noise allows, from thinned counts.

    Each thinning parts the counts of every spot, all genes of it, into four quarters of the depth. Correlations of
    two quarters and of two halves give the reliability at both depths; the ratio of noise to signal, 1/r − 1, is
    carried on from a quarter over a half to the full depth as a power of the depth, gene by gene. (Spearman and Brown
    take that power to be −1, which is too favourable on a log scale of few counts.) The ceiling is the square root of
    the reliability at full depth.

    Parameters
    ----------
    counts
        Raw counts of the genes asked for, shape (n_spots, n_genes).
    totals
        Counts of each spot over all genes measured, shape (n_spots,).
    transform
        Brings counts and totals to the scale on which predictions are scored.
    seed
        Of the thinnings.
    n_thinnings
        How many are averaged.

    Returns
    -------
    One ceiling per gene, with its standard error and whether it is stable.

    Raises
    ------
    ShapeError
        If shapes do not fit together.
    CountsError
        If counts are not whole and not negative, or exceed the totals.
    OptionError
        If `n_thinnings` is below 1.

    Examples
    --------
    >>> rates = np.exp(np.random.default_rng(0).normal(size=(500, 1)))
    >>> counts = np.random.default_rng(1).poisson(rates)
    >>> found = noise_ceiling(counts, counts.sum(axis=1), lambda c, totals, depth: np.log1p(c / depth))
    >>> bool(found.stable[0]), float(found.ceiling[0].round(1))
    (True, 0.7)
    """
    whole, rest = _checked(counts, totals)
    if n_thinnings < 1:
        raise OptionError(f"n_thinnings is {n_thinnings}; give at least 1")
    rng = np.random.default_rng(seed)
    agreements, influences = np.empty((n_thinnings, 2, whole.shape[1])), np.zeros((2, *whole.shape))
    for thinning in range(n_thinnings):
        agreements[thinning], influence = _agreements(whole, rest, transform, rng)
        influences += influence / n_thinnings
    half, quarter = agreements.mean(axis=0)
    ceiling = _carried_on(half, quarter)
    error = _error(half, quarter, influences, agreements[:, 0].std(axis=0) / np.sqrt(n_thinnings))
    known = np.nan_to_num(error / ceiling, nan=np.inf) <= _MOST_ERROR
    return NoiseCeiling(ceiling, error, known & (len(whole) >= _LEAST_SPOTS), half)


def _checked(counts: ArrayLike, totals: ArrayLike) -> tuple[Integers, Integers]:
    """Counts (n_spots, n_genes), and the counts of all other genes, (n_spots,)."""
    given, sums = np.asarray(counts, dtype=float), np.asarray(totals, dtype=float)
    if given.ndim != 2 or sums.shape != given.shape[:1] or not len(given):
        raise ShapeError(
            f"counts must be (n_spots, n_genes) and totals (n_spots,) with at least one spot, got {given.shape} and "
            f"{sums.shape}"
        )
    others = sums - given.sum(axis=1)
    for what, values in (("counts", given), ("totals without the counts of these genes", others)):
        if not np.isfinite(values).all() or (values < 0).any() or (values % 1).any():
            raise CountsError(f"{what} must be whole numbers of at least 0: give raw counts, and totals of all genes")
    return given.astype(np.int64), others.astype(np.int64)


def _agreements(
    whole: Integers, rest: Integers, transform: Transform, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Mean correlation of two halves, and of two quarters, of one thinning, (2, n_genes); and what each spot adds."""
    genes, others = _quarters(whole, rng), _quarters(rest, rng)

    def at(*parts: int) -> Floats:
        own = np.stack([genes[part] for part in parts]).sum(axis=0)
        totals = own.sum(axis=1) + np.stack([others[part] for part in parts]).sum(axis=0)
        return _standard(transform(own.astype(np.float64), totals.astype(np.float64), len(parts) / 4))

    halves = [(at(0, other), at(*({1, 2, 3} - {other}))) for other in (1, 2, 3)]
    quarters = list(combinations([at(part) for part in range(4)], 2))
    both = [np.mean([_influence(*pair) for pair in pairs], axis=0) for pairs in (halves, quarters)]
    return np.stack([one.mean(axis=0) for one in both]), np.stack([one - one.mean(axis=0) for one in both])


def _standard(values: NDArray[np.floating]) -> Floats:
    """Columns of mean 0 and variance 1, shape (n_spots, n_genes); 0 where a column is constant."""
    centred = values.astype(np.float64) - values.mean(axis=0, dtype=np.float64)
    spread = centred.std(axis=0)
    standard: Floats = centred / np.where(spread > _CONSTANT, spread, np.inf)
    return standard


def _influence(first: Floats, second: Floats) -> Floats:
    """What each spot adds to a correlation of standard columns: its mean over the spots is the correlation itself."""
    product = first * second
    correlation = product.mean(axis=0)
    influence: Floats = correlation + product - correlation * (first**2 + second**2) / 2
    return influence


def _quarters(counts: Integers, rng: np.random.Generator) -> list[Integers]:
    """Four independent parts of Poisson counts, that sum up to them."""
    half = rng.binomial(counts, 0.5)
    first, third = rng.binomial(half, 0.5), rng.binomial(counts - half, 0.5)
    return [first, half - first, third, counts - half - third]


def _carried_on(half: Floats, quarter: Floats) -> Floats:
    """The ceiling at full depth, from the agreement at a half and at a quarter of it; NaN where there is none."""
    noise = 1 / np.where(half > _LEAST_AGREEMENT, half, np.nan) - 1
    slope = np.log2((1 / np.maximum(quarter, _LEAST_AGREEMENT) - 1) / np.maximum(noise, _STEP**2))
    ceiling: Floats = 1 / np.sqrt(1 + noise * 2.0 ** -np.clip(slope, *_SLOPES))
    return ceiling


def _error(half: Floats, quarter: Floats, influences: Floats, of_thinning: Floats) -> Floats:
    """Standard error of the ceiling, from what every spot adds to both agreements, (2, n_spots, n_genes)."""
    by_half = (_carried_on(half + _STEP, quarter) - _carried_on(half - _STEP, quarter)) / (2 * _STEP)
    by_quarter = (_carried_on(half, quarter + _STEP) - _carried_on(half, quarter - _STEP)) / (2 * _STEP)
    of_spots = (by_half * influences[0] + by_quarter * influences[1]).std(axis=0) / np.sqrt(influences.shape[1])
    error: Floats = np.hypot(of_spots, by_half * of_thinning)
    return error
