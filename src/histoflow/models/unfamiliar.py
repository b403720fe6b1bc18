"""Unfamiliar tissue: places whose embedding lies farther from all training spots than these lie from each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from histoflow.models.arrays import Arrays, named, under
from histoflow.models.member import Projection
from histoflow.models.spots import Floats, Spots

_N_COMPONENTS = 30
_MOST_SPOTS = 4096
_QUANTILE = 0.99
"""So many training spots are familiar to the other training sections."""
_PROJECTION, _SPOTS, _FARTHEST = "projection/", "spots", "farthest"


@dataclass(frozen=True)
class Familiar:
    """Training spots, and how far a familiar place may be from the nearest of them.

    Attributes
    ----------
    projection
        Of embeddings, onto principal components.
    spots
        Training spots on them, shape (n_spots, n_components); at most 4,096, at even steps.
    farthest
        Distance from the nearest training spot up to which a place is familiar.
    """

    projection: Projection
    spots: Floats
    farthest: float

    @classmethod
    def fit(cls, sections: Sequence[Spots]) -> Familiar:
        """Measure how far training spots are from the other training sections; of one section, from its other half.

        Parameters
        ----------
        sections
            Training sections, embedded, two spots or more in all.
        """
        embedding = np.concatenate([section.embedding for section in sections])
        projection = Projection.fit(embedding, _N_COMPONENTS, whitening=0.5)
        spots = projection(embedding).numpy()
        part = np.repeat(np.arange(len(sections)), [len(section) for section in sections])
        part = _halves(sections[0].xy_um) if len(sections) == 1 else part
        step = 1 + (len(spots) - 1) // _MOST_SPOTS
        kept, kept_part = spots[::step], part[::step]
        away = [KDTree(kept[kept_part != own]).query(spots[part == own])[0] for own in np.unique(part)]
        return cls(projection, kept, float(np.quantile(np.concatenate(away), _QUANTILE)))

    def unfamiliar(self, embedding: Floats) -> NDArray[np.bool_]:
        """Whether places (n_places, n_features) are unlike all that was seen in training: (n_places,)."""
        away, _ = KDTree(self.spots).query(self.projection(embedding).numpy())
        return np.asarray(away > self.farthest)

    def arrays(self) -> Arrays:
        """The numbers, by name, for a file."""
        return named(_PROJECTION, vars(self.projection)) | {_SPOTS: self.spots, _FARTHEST: np.array([self.farthest])}

    @classmethod
    def of(cls, arrays: Mapping[str, Any]) -> Familiar:
        """Make it of what `arrays` returned."""
        return cls(Projection(**under(_PROJECTION, arrays)), arrays[_SPOTS], float(arrays[_FARTHEST][0]))


def _halves(xy_um: NDArray[np.float64]) -> NDArray[np.int64]:
    """Which half each spot (n_spots, 2) of a section is in, cut across its longer side: 0 or 1, (n_spots,)."""
    along = xy_um[:, int(np.argmax(np.ptp(xy_um, axis=0)))]
    return (np.argsort(np.argsort(along, kind="stable"), kind="stable") >= len(along) / 2).astype(np.int64)
