"""Smoothing of predictions over the neighbours of a spot; it knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import block_diag, csr_matrix

from histoflow.models.spots import Spots
from histoflow.pp.graph import neighbors_within

Floats = NDArray[np.floating[Any]]

WEIGHTS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
"""Weights of the neighbours that are tried."""


@dataclass(frozen=True)
class Smoother:
    """Which spots are neighbours.

    Attributes
    ----------
    adjacent
        1 where two spots are neighbours, sparse, shape (n_spots, n_spots); no spot is its own.
    """

    adjacent: csr_matrix

    @classmethod
    def of(cls, sections: Sequence[Spots], radius_um: float) -> Smoother:
        """Join the spots of each section, stacked below each other, that lie within a radius on one piece of tissue.

        Parameters
        ----------
        sections
            The spots.
        radius_um
            In µm.
        """
        each = [neighbors_within(spots.xy_um, radius_um, groups=spots.tissue) for spots in sections]
        return cls(csr_matrix(block_diag(each)))

    def among(self, rows: NDArray[np.intp]) -> Smoother:
        """The same among some spots alone."""
        return Smoother(self.adjacent[rows][:, rows])

    def mean(self, values: Floats) -> Floats:
        """Mean of the neighbours' values (n_spots, n_genes), same shape; a spot without neighbours keeps its own."""
        n_near = np.asarray(self.adjacent.sum(axis=1)).ravel()
        total = self.adjacent.astype(values.dtype) @ values
        total /= np.maximum(n_near, 1)[:, None].astype(values.dtype)
        lone = n_near == 0
        total[lone] = values[lone]
        return np.asarray(total)

    def blend(self, values: Floats, weight: float) -> Floats:
        """(1 - weight) × own + weight × mean of the neighbours, of values (n_spots, n_genes), same shape."""
        blended: Floats = (1 - weight) * values + weight * self.mean(values)
        return blended.astype(values.dtype, copy=False)
