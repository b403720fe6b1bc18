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
from histoflow.stats.metrics import pearson

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Transform = Callable[[NDArray[np.floating], Floats, float], NDArray[np.floating]]
"""Counts (n_spots, n_genes), library sizes (n_spots,) and the depth in (0, 1] they were thinned to → expression."""

N_THINNINGS = 10
_SLOPES = (0.5, 1.5)
"""How fast noise may fall with depth, as a power of it; 1 is that of a linear scale (Spearman and Brown)."""
_LEAST_AGREEMENT = 0.01
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
    agreements = np.stack([_agreements(whole, rest, transform, rng) for _ in range(n_thinnings)])
    half, quarter = agreements.mean(axis=0)
    spread = agreements[:, 0].std(axis=0) / np.sqrt(n_thinnings)
    return _carried_on(half, quarter, spread, len(whole))


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


def _agreements(whole: Integers, rest: Integers, transform: Transform, rng: np.random.Generator) -> Floats:
    """Mean correlation of two halves, and of two quarters, of one thinning, (2, n_genes); NaN counts as none."""
    genes, others = _quarters(whole, rng), _quarters(rest, rng)

    def at(*parts: int) -> NDArray[np.floating]:
        own = np.stack([genes[part] for part in parts]).sum(axis=0)
        totals = own.sum(axis=1) + np.stack([others[part] for part in parts]).sum(axis=0)
        return transform(own.astype(np.float64), totals.astype(np.float64), len(parts) / 4)

    halves = [pearson(at(0, other), at(*({1, 2, 3} - {other}))) for other in (1, 2, 3)]
    scaled = [at(part) for part in range(4)]
    quarters = [pearson(first, second) for first, second in combinations(scaled, 2)]
    both: Floats = np.stack([np.nan_to_num(found).mean(axis=0) for found in (halves, quarters)])
    return both


def _quarters(counts: Integers, rng: np.random.Generator) -> list[Integers]:
    """Four independent parts of Poisson counts, that sum up to them."""
    half = rng.binomial(counts, 0.5)
    first, third = rng.binomial(half, 0.5), rng.binomial(counts - half, 0.5)
    return [first, half - first, third, counts - half - third]


def _carried_on(half: Floats, quarter: Floats, spread: Floats, n_spots: int) -> NoiseCeiling:
    """From the reliability at a half and a quarter of the depth to that at the full one."""
    agreeing = half > _LEAST_AGREEMENT
    known = np.where(agreeing, half, np.nan)
    noise = 1 / known - 1
    slope = np.log2((1 / np.maximum(quarter, _LEAST_AGREEMENT) - 1) / np.maximum(noise, 1e-12))
    ceiling = 1 / np.sqrt(1 + noise * 2.0 ** -np.clip(slope, *_SLOPES))
    # Of a correlation over n spots, and of the mean over thinnings; through sqrt(2 r / (1 + r)).
    of_agreement = np.hypot((1 - known**2) / np.sqrt(n_spots), spread)
    error = of_agreement / np.sqrt(2 * known * (1 + known) ** 3)
    stable = agreeing & (np.nan_to_num(error / ceiling, nan=np.inf) <= _MOST_ERROR) & (n_spots >= _LEAST_SPOTS)
    return NoiseCeiling(ceiling, error, stable, half)
