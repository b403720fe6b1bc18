"""Spot arrays: where Visium and legacy ST put their spots on a synthetic slide."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from histoflow.datasets.fields import disc_offsets, sample
from histoflow.datasets.tissue import UM_PER_PX, Tissue

VISIUM_PITCH_UM = 100.0
ST_PITCH_UM = 200.0


@dataclass(frozen=True)
class SpotArray:
    """Spots of one section.

    Parameters
    ----------
    index
        Place in the array, shape (n_spots, 2): column, row.
    xy_um
        Centres, shape (n_spots, 2): x, y in µm from the slide's upper left corner.
    diameter_um
        Diameter of a spot in µm.
    """

    index: np.ndarray
    xy_um: np.ndarray
    diameter_um: float

    def __getitem__(self, chosen: np.ndarray) -> SpotArray:
        """Some of the spots, by a mask or by indices."""
        return SpotArray(self.index[chosen], self.xy_um[chosen], self.diameter_um)

    def points(self) -> np.ndarray:
        """Points that fill each spot, shape (n_spots, n_points, 2): x, y in pixels of the latent fields."""
        inside = disc_offsets(self.diameter_um / 2 / UM_PER_PX)
        points: np.ndarray = self.xy_um[:, None] / UM_PER_PX + inside
        return points

    def on(self, tissue: Tissue) -> np.ndarray:
        """Whether more than half of each spot lies on the tissue, shape (n_spots,)."""
        on: np.ndarray = (sample(tissue.depth, self.points()) > 0).mean(axis=1) > 0.5
        return on


def visium_array(size_um: tuple[float, float]) -> SpotArray:
    """Hexagonal array, 100 µm between neighbours: two columns or one row and one column apart."""
    step = VISIUM_PITCH_UM * np.array([0.5, 0.75**0.5])
    n_columns, n_rows = (np.array(size_um) / step).astype(int)
    row, column = np.indices((n_rows, n_columns)).reshape(2, -1)
    hexagonal = (row + column) % 2 == 0
    index = np.stack([column, row], axis=1)[hexagonal]
    return SpotArray(index, index * step + (31.0, 47.0), 55.0)


def st_array(size_um: tuple[float, float], rng: np.random.Generator) -> SpotArray:
    """Square array of 200 µm, printed with some microns of error; its corner lies outside the slide."""
    n_columns, n_rows = (int(size / ST_PITCH_UM) for size in size_um)
    index = np.stack(np.meshgrid(np.arange(n_columns), np.arange(n_rows)), axis=-1).reshape(-1, 2)
    xy_um = index * ST_PITCH_UM + (90.0, 70.0) + rng.normal(0, 5, index.shape)
    return SpotArray(index + np.array([6, 9]), xy_um, 100.0)
