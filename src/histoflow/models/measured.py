"""What the counts of a section say beyond its image: a ratio that near and similar places share, and exact sums."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.spatial.distance import cdist

from histoflow._errors import OptionError, ShapeError
from histoflow.models.superpixels import principal_components
from histoflow.pp.encoders.dense import SUPERPIXEL_UM
from histoflow.pp.lattice import Lattice

Floats = NDArray[np.floating[Any]]

_LENGTHS = (1.0, 2.0, 4.0)
"""Ranges tried, in distances between spots."""
_SHARES = (0.0, 0.3, 0.6)
"""How much of what spots share may be shared by those that look alike, wherever they lie; the rest by neighbours."""
_LOOK_LENGTH = 2.0
"""Range of likeness, in units of how far the spots' looks spread."""
_N_LOOKS = 50
_NOISES = np.array([0.1, 0.3, 1.0])
"""Variances of what one spot has to itself that are tried, in units of what spots share.

No larger ones: a model that was trained on these very spots has taken in part of what they share, and leaving one out
would then find nothing left of it.
"""
_LEVEL = 10.0
"""Variance of what all spots share, in the same units: next to free."""
_MOST_SPOTS = 1000
_AT_ONCE = 1 << 10


class Sites(NamedTuple):
    """Places and what they look like: `xy_um`, shape (n_sites, 2), µm; `looks`, shape (n_sites, n_looks)."""

    xy_um: NDArray[np.float64]
    looks: NDArray[np.float64]

    def rows(self, chosen: Any) -> Sites:
        """Some of the sites."""
        return Sites(self.xy_um[chosen], self.looks[chosen])


@dataclass(frozen=True)
class Likeness:
    """The kernel of a Gaussian process: what two sites have in common, by distance and by looks (Matérn 3/2 each).

    Attributes
    ----------
    length_um
        Range in µm.
    share
        Part that goes by looks alone.
    """

    length_um: float
    share: float

    def of(self, one: Sites, other: Sites) -> NDArray[np.float64]:
        """The kernel between sites, shape (n_one, n_other)."""
        kernel: NDArray[np.float64] = (1 - self.share) * _matern(one.xy_um, other.xy_um, self.length_um) + _LEVEL
        if self.share:
            kernel += self.share * _matern(one.looks, other.looks, _LOOK_LENGTH)
        return kernel


@dataclass(frozen=True)
class RatioField:
    """Log1p differences everywhere, through noisy values at spots: a Gaussian process.

    Attributes
    ----------
    spots
        Where values are known.
    weights
        Shape (n_spots, n_genes).
    likeness
        The kernel.
    noise
        Variance of what one spot has to itself, in units of what spots share.
    """

    spots: Sites
    weights: NDArray[np.float64]
    likeness: Likeness
    noise: float

    def at(self, sites: Sites) -> NDArray[np.float64]:
        """The field at some sites, (n_sites, n_genes), to be added to log1p expression."""
        found = np.empty((len(sites.xy_um), self.weights.shape[1]))
        for first in range(0, len(found), _AT_ONCE):
            part = slice(first, first + _AT_ONCE)
            found[part] = self.likeness.of(sites.rows(part), self.spots) @ self.weights
        return found


def fit_ratio(spots: Sites, difference: Floats, *, pitch_um: float) -> RatioField:
    """Find what spots share of differences; the kernel and the noise have the least leave-one-out error.

    Parameters
    ----------
    spots
        The spots.
    difference
        Measured minus predicted expression, log1p, shape (n_spots, n_genes).
    pitch_um
        Distance of neighbouring spots in µm.

    Returns
    -------
    The field. Kernel and noise are one for all genes, each gene in units of its own spread.

    References
    ----------
    Leave-one-out errors of a Gaussian process in closed form: Rasmussen & Williams 2006, equations 5.10 to 5.12.
    """
    spread = np.sqrt(np.square(difference).mean(axis=0, dtype=np.float64))
    scaled = difference / np.where(spread > 0, spread, 1.0)
    some = np.unique(np.linspace(0, len(scaled) - 1, min(len(scaled), _MOST_SPOTS)).astype(int))
    tried = [Likeness(pitch_um * length, share) for share, length in product(_SHARES, _LENGTHS)]
    errors = [_left_out(spots.rows(some), scaled[some], likeness) for likeness in tried]
    best = min(range(len(tried)), key=lambda i: errors[i].min())
    noise = float(_NOISES[errors[best].argmin()])
    covariance = tried[best].of(spots, spots) + noise * np.eye(len(scaled))
    weights = cho_solve(cho_factor(covariance, lower=True), np.asarray(difference, dtype=np.float64))
    return RatioField(spots, weights, tried[best], noise)


def _matern(one: NDArray[np.float64], other: NDArray[np.float64], length: float) -> NDArray[np.float64]:
    distance = np.sqrt(3) * cdist(one, other) / length
    kernel: NDArray[np.float64] = (1 + distance) * np.exp(-distance)
    return kernel


def _left_out(spots: Sites, values: Floats, likeness: Likeness) -> NDArray[np.float64]:
    """Mean squared leave-one-out error at every noise, (n_noises,)."""
    eigenvalues, vectors = np.linalg.eigh(likeness.of(spots, spots))
    seen, errors = vectors.T @ values, []
    for noise in _NOISES:
        inverse = 1 / (np.maximum(eigenvalues, 0) + noise)
        own = np.square(vectors) @ inverse
        errors.append(np.square(vectors @ (inverse[:, None] * seen) / own[:, None]).mean())
    return np.array(errors)


@dataclass(frozen=True)
class Looks:
    """What features look like to the ratio: their principal components over the spots of a section.

    Attributes
    ----------
    mean
        Of each feature, shape (n_features,).
    components
        Shape (n_features, n_looks), scaled so that looks have a mean squared length of 1 over the spots.
    """

    mean: NDArray[np.float64]
    components: NDArray[np.float64]

    @classmethod
    def over(cls, features: Floats) -> Looks:
        """Look at spots by their mean features, shape (n_spots, n_features)."""
        components = np.asarray(principal_components(features, _N_LOOKS), dtype=np.float64)
        found = cls(features.mean(axis=0, dtype=np.float64), components)
        length = np.sqrt(np.square(found.at(features)).sum(axis=1).mean())
        return cls(found.mean, components / (length or 1.0))

    def at(self, features: Floats) -> NDArray[np.float64]:
        """Looks of features (..., n_features): (..., n_looks)."""
        found: NDArray[np.float64] = (features - self.mean) @ self.components
        return found


@dataclass(frozen=True)
class Measurement:
    """Brings predicted super-pixels into agreement with the measured spots of their section.

    Attributes
    ----------
    looks, field
        The ratio, log1p, and what features look like to it.
    cells
        Flat indices of the super-pixels that belong to a spot, ascending.
    spot
        Which spot each of them belongs to.
    gain, fill
        For every spot and gene, shape (n_spots, n_genes): what its super-pixels are multiplied by; and, where all of
        them are predicted zero and counts were measured, what each of them is.
    """

    lattice: Lattice
    looks: Looks
    field: RatioField
    cells: NDArray[np.intp]
    spot: NDArray[np.intp]
    gain: NDArray[np.float64]
    fill: NDArray[np.float64]

    def adjust(self, counts: Floats, cells: NDArray[np.intp], features: Floats) -> NDArray[np.float64]:
        """Adjust counts (n_cells, n_genes), as of a spot that is all alike, of super-pixels by flat index.

        `features` are those from which the counts were predicted, shape (n_cells, n_features).
        """
        smooth = _shifted(counts, self.ratio(cells, features))
        place = np.minimum(np.searchsorted(self.cells, cells), len(self.cells) - 1)
        owned = self.cells[place] == cells
        spot = self.spot[place[owned]]
        smooth[owned] = smooth[owned] * self.gain[spot] + self.fill[spot]
        return smooth

    def ratio(self, cells: NDArray[np.intp], features: Floats) -> NDArray[np.float64]:
        """The ratio at super-pixels by flat index and features, (n_cells, n_genes), log1p."""
        return self.field.at(Sites(_centres_um(cells, self.lattice), self.looks.at(features)))


def fit_measurement(
    lattice: Lattice,
    cells: NDArray[np.intp],
    features: Floats,
    predicted: Floats,
    measured: Floats,
    *,
    pitch_um: float,
) -> Measurement:
    """Fit the ratio between measured and predicted spots, then make the sums exact.

    Parameters
    ----------
    lattice
        The super-pixels of the slide.
    cells
        Those of every spot by flat index, shape (n_spots, n_superpixels).
    features
        Their features, shape (n_spots, n_superpixels, n_features).
    predicted
        Their counts as of a spot that is all alike, shape (n_spots, n_superpixels, n_genes).
    measured
        Expression of the spots, log1p, shape (n_spots, n_genes).
    pitch_um
        Distance of neighbouring spots in µm.

    Raises
    ------
    OptionError
        If a super-pixel belongs to two spots.
    ShapeError
        If there is no spot, or the parts differ in length.
    """
    if not len(cells) or not len(cells) == len(features) == len(predicted) == len(measured):
        raise ShapeError(
            f"got {len(cells)} spots, {len(features)} with features, {len(predicted)} predicted and {len(measured)} "
            "measured"
        )
    if len(np.unique(cells)) < cells.size:
        raise OptionError(
            f"spots overlap: {cells.shape[1]} super-pixels each, and some belong to two; say how wide spots are with "
            'uns["histoflow"]["spot_um"] (bins of 8 µm have no super-pixels within them)'
        )
    of_spots = features.mean(axis=1, dtype=np.float64)
    looks = Looks.over(of_spots)
    spots = Sites(_centres_um(cells, lattice).mean(axis=1), looks.at(of_spots))
    difference = measured - np.log1p(predicted.mean(axis=1, dtype=np.float64))
    field = fit_ratio(spots, difference, pitch_um=pitch_um)
    smooth = np.stack(
        [
            _shifted(counts, field.at(Sites(_centres_um(own, lattice), looks.at(seen)))).mean(axis=0)
            for own, seen, counts in zip(cells, features, predicted, strict=True)
        ]
    )
    wanted = np.expm1(np.asarray(measured, dtype=np.float64))
    some = smooth > 0
    gain = np.where(some, wanted / np.where(some, smooth, 1.0), 0.0)
    order = np.argsort(cells, axis=None)
    spot = np.repeat(np.arange(len(cells)), cells.shape[1])[order]
    return Measurement(lattice, looks, field, cells.ravel()[order], spot, gain, np.where(some, 0.0, wanted))


def _shifted(counts: Floats, ratio: NDArray[np.float64]) -> NDArray[np.float64]:
    """Counts after a shift of their log1p, not below zero."""
    shifted: NDArray[np.float64] = np.expm1(np.maximum(np.log1p(np.asarray(counts, dtype=np.float64)) + ratio, 0.0))
    return shifted


def _centres_um(cells: NDArray[np.intp], lattice: Lattice) -> NDArray[np.float64]:
    """Centres of super-pixels (...) by flat index: (..., 2), x, y in µm."""
    rows, columns = np.divmod(cells, lattice.shape[1])
    return (np.stack([columns, rows], axis=-1) + 0.5) * SUPERPIXEL_UM
