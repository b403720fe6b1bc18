"""What the counts of a section say beyond its image: a smooth ratio between spots, and exact sums within them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.spatial.distance import cdist

from histoflow._errors import OptionError, ShapeError
from histoflow.pp.encoders.dense import SUPERPIXEL_UM
from histoflow.pp.lattice import Lattice

Floats = NDArray[np.floating[Any]]

_NODE = 8
"""Distance, in super-pixels, of the nodes on which the ratio is known; it is interpolated between them."""
_LENGTHS = (1.0, 2.0, 4.0)
"""Ranges tried, in distances between spots."""
_NOISES = np.array([0.1, 0.3, 1.0])
"""Variances of what one spot has to itself that are tried, in units of what neighbours share.

No larger ones: a model that was trained on these very spots has taken in part of what they share, and leaving one out
would then find nothing left of it.
"""
_LEVEL = 10.0
"""Variance of what all spots share, in the same units: next to free."""
_MOST_SPOTS = 1000
_AT_ONCE = 1 << 12


@dataclass(frozen=True)
class RatioField:
    """A smooth field of log1p differences through noisy values at spots: a Gaussian process with a Matérn 3/2 kernel.

    Attributes
    ----------
    xy_um
        The spots, shape (n_spots, 2), µm.
    weights
        Shape (n_spots, n_genes).
    length_um
        Range of the kernel in µm.
    noise
        Variance of what one spot has to itself, in units of what neighbours share.
    """

    xy_um: NDArray[np.float64]
    weights: NDArray[np.float64]
    length_um: float
    noise: float

    def at(self, xy_um: NDArray[np.float64]) -> NDArray[np.float64]:
        """The field at places (n_places, 2) in µm: (n_places, n_genes), to be added to log1p expression."""
        found = np.empty((len(xy_um), self.weights.shape[1]))
        for first in range(0, len(xy_um), _AT_ONCE):
            part = slice(first, first + _AT_ONCE)
            found[part] = _kernel(xy_um[part], self.xy_um, self.length_um) @ self.weights
        return found


def fit_ratio(xy_um: NDArray[np.float64], difference: Floats, *, pitch_um: float) -> RatioField:
    """Find the smooth part of differences at spots; its range and noise have the least leave-one-out error.

    Parameters
    ----------
    xy_um
        Spots, shape (n_spots, 2), µm.
    difference
        Measured minus predicted expression, log1p, shape (n_spots, n_genes).
    pitch_um
        Distance of neighbouring spots in µm.

    Returns
    -------
    The field. Range and noise are one for all genes, each gene in units of its own spread.

    References
    ----------
    Leave-one-out errors of a Gaussian process in closed form: Rasmussen & Williams 2006, equations 5.10 to 5.12.
    """
    spread = np.sqrt(np.square(difference).mean(axis=0, dtype=np.float64))
    scaled = difference / np.where(spread > 0, spread, 1.0)
    some = np.unique(np.linspace(0, len(xy_um) - 1, min(len(xy_um), _MOST_SPOTS)).astype(int))
    lengths = [pitch_um * length for length in _LENGTHS]
    errors = [_left_out(xy_um[some], scaled[some], length) for length in lengths]
    best = min(range(len(lengths)), key=lambda i: errors[i].min())
    noise = float(_NOISES[errors[best].argmin()])
    covariance = _kernel(xy_um, xy_um, lengths[best]) + noise * np.eye(len(xy_um))
    weights = cho_solve(cho_factor(covariance, lower=True), np.asarray(difference, dtype=np.float64))
    return RatioField(xy_um, weights, float(lengths[best]), noise)


def _kernel(one: NDArray[np.float64], other: NDArray[np.float64], length_um: float) -> NDArray[np.float64]:
    distance = np.sqrt(3) * cdist(one, other) / length_um
    kernel: NDArray[np.float64] = (1 + distance) * np.exp(-distance) + _LEVEL
    return kernel


def _left_out(xy_um: NDArray[np.float64], values: Floats, length_um: float) -> NDArray[np.float64]:
    """Mean squared leave-one-out error at every noise, (n_noises,)."""
    eigenvalues, vectors = np.linalg.eigh(_kernel(xy_um, xy_um, length_um))
    seen, errors = vectors.T @ values, []
    for noise in _NOISES:
        inverse = 1 / (np.maximum(eigenvalues, 0) + noise)
        own = np.square(vectors) @ inverse
        errors.append(np.square(vectors @ (inverse[:, None] * seen) / own[:, None]).mean())
    return np.array(errors)


@dataclass(frozen=True)
class Measurement:
    """Brings predicted super-pixels into agreement with the measured spots of their section.

    Attributes
    ----------
    nodes
        The ratio on every eighth super-pixel, shape (n_rows, n_columns, n_genes), log1p.
    cells
        Flat indices of the super-pixels that belong to a spot, ascending.
    spot
        Which spot each of them belongs to.
    gain, fill
        For every spot and gene, shape (n_spots, n_genes): what its super-pixels are multiplied by; and, where all of
        them are predicted zero and counts were measured, what each of them is.
    """

    lattice: Lattice
    nodes: NDArray[np.float64]
    cells: NDArray[np.intp]
    spot: NDArray[np.intp]
    gain: NDArray[np.float64]
    fill: NDArray[np.float64]

    def adjust(self, counts: Floats, cells: NDArray[np.intp]) -> NDArray[np.float64]:
        """Adjust counts (n_cells, n_genes), as of a spot that is all alike, of super-pixels by flat index."""
        smooth = _shifted(counts, self.ratio(cells))
        place = np.minimum(np.searchsorted(self.cells, cells), len(self.cells) - 1)
        owned = self.cells[place] == cells
        spot = self.spot[place[owned]]
        smooth[owned] = smooth[owned] * self.gain[spot] + self.fill[spot]
        return smooth

    def ratio(self, cells: NDArray[np.intp]) -> NDArray[np.float64]:
        """The smooth ratio at super-pixels by flat index, (n_cells, n_genes), log1p."""
        return _interpolated(self.nodes, cells, self.lattice)


def fit_measurement(
    lattice: Lattice, cells: NDArray[np.intp], predicted: Floats, measured: Floats, *, pitch_um: float
) -> Measurement:
    """Fit the smooth ratio between measured and predicted spots, then make the sums exact.

    Parameters
    ----------
    lattice
        The super-pixels of the slide.
    cells
        Those of every spot by flat index, shape (n_spots, n_superpixels).
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
    if not len(cells) or not len(cells) == len(predicted) == len(measured):
        raise ShapeError(f"got {len(cells)} spots, {len(predicted)} predicted and {len(measured)} measured")
    if len(np.unique(cells)) < cells.size:
        raise OptionError(
            f"spots overlap: {cells.shape[1]} super-pixels each, and some belong to two; say how wide spots are with "
            'uns["histoflow"]["spot_um"] (bins of 8 µm have no super-pixels within them)'
        )
    rows, columns = np.divmod(cells, lattice.shape[1])
    xy_um = (np.stack([columns.mean(axis=1), rows.mean(axis=1)], axis=1) + 0.5) * SUPERPIXEL_UM
    difference = measured - np.log1p(predicted.mean(axis=1, dtype=np.float64))
    nodes = _on_nodes(fit_ratio(xy_um, difference, pitch_um=pitch_um), lattice)
    smooth = _shifted(predicted, _interpolated(nodes, cells, lattice)).mean(axis=1)
    wanted = np.expm1(np.asarray(measured, dtype=np.float64))
    some = smooth > 0
    gain = np.where(some, wanted / np.where(some, smooth, 1.0), 0.0)
    order = np.argsort(cells, axis=None)
    spot = np.repeat(np.arange(len(cells)), cells.shape[1])[order]
    return Measurement(lattice, nodes, cells.ravel()[order], spot, gain, np.where(some, 0.0, wanted))


def _shifted(counts: Floats, ratio: NDArray[np.float64]) -> NDArray[np.float64]:
    """Counts after a shift of their log1p, not below zero."""
    shifted: NDArray[np.float64] = np.expm1(np.maximum(np.log1p(np.asarray(counts, dtype=np.float64)) + ratio, 0.0))
    return shifted


def _on_nodes(field: RatioField, lattice: Lattice) -> NDArray[np.float64]:
    n_rows, n_columns = (-(-length // _NODE) + 1 for length in lattice.shape)
    row, column = np.indices((n_rows, n_columns)).reshape(2, -1) * _NODE * SUPERPIXEL_UM
    return field.at(np.stack([column, row], axis=1)).reshape(n_rows, n_columns, -1)


def _interpolated(nodes: NDArray[np.float64], cells: NDArray[np.intp], lattice: Lattice) -> NDArray[np.float64]:
    """Values of nodes at super-pixels (...), by linear interpolation both ways: (..., n_genes)."""
    parts = [(part + 0.5) / _NODE for part in np.divmod(cells, lattice.shape[1])]
    (row, down), (column, across) = ((part.astype(np.intp), part % 1) for part in parts)
    down, across = down[..., None], across[..., None]
    above = nodes[row, column] * (1 - across) + nodes[row, column + 1] * across
    below = nodes[row + 1, column] * (1 - across) + nodes[row + 1, column + 1] * across
    found: NDArray[np.float64] = above * (1 - down) + below * down
    return found
