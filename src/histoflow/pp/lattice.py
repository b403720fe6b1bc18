"""The lattice of super-pixels over a slide: which of them a spot covers, which lie on tissue, windows of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray

from histoflow._errors import MissingSlotError
from histoflow._keys import UNS, facts, section_name
from histoflow.pp.encoders.dense import SUPERPIXEL_UM
from histoflow.pp.tiles import slide_facts

if TYPE_CHECKING:
    from wsidata import WSIData

Mask = NDArray[np.bool_]
Indices = NDArray[np.intp]
Window = tuple[slice, slice]

WINDOW = 128
"""Side, in super-pixels, of the windows in which features are made: memory follows it, and not the slide."""
SPOT_UM = {"visium": 55.0, "st": 100.0}
"""Diameter of a spot in µm, by the kind of a section."""

_SPOT_PART = 0.55
_SPOT_FACT = "spot_um"


@dataclass(frozen=True)
class Lattice:
    """Super-pixels of 8 µm over a slide; the first one lies in its upper left corner.

    Attributes
    ----------
    shape
        Rows and columns.
    mpp
        µm per level-0 pixel, x and y.
    """

    shape: tuple[int, int]
    mpp: tuple[float, float]

    @classmethod
    def of(cls, wsi: WSIData) -> Lattice:
        """Lay the lattice of a slide from `hf.open_wsi`."""
        known = slide_facts(wsi)
        width, height = known["slide_size_px"]
        return cls.over((int(width), int(height)), (float(known["mpp_x"]), float(known["mpp_y"])))

    @classmethod
    def over(cls, size_px: tuple[int, int], mpp: tuple[float, float]) -> Lattice:
        """Lay the lattice over a slide of some width and height in pixels, and µm per pixel in x and y."""
        width, height = (math.ceil(size * um / SUPERPIXEL_UM) for size, um in zip(size_px, mpp, strict=True))
        return cls((height, width), mpp)

    def centres(self, rows: Indices, columns: Indices) -> NDArray[np.float64]:
        """Centres of super-pixels, shape (..., 2), x, y in level-0 pixels."""
        um = (np.stack([columns, rows], axis=-1) + 0.5) * SUPERPIXEL_UM
        centres: NDArray[np.float64] = um / np.asarray(self.mpp)
        return centres

    def nearest(self, xy: ArrayLike, n_superpixels: int) -> Indices:
        """The super-pixels nearest to each place: a disc, of one size everywhere.

        Parameters
        ----------
        xy
            Shape (n_places, 2), x, y in level-0 pixels.
        n_superpixels
            How many.

        Returns
        -------
        Flat indices, row by row of the lattice, ascending, shape (n_places, n_superpixels). Of two at one distance the
        first one is taken; beyond the edge of the slide there are none.
        """
        at = np.asarray(xy, dtype=np.float64) * self.mpp / SUPERPIXEL_UM
        reach = math.ceil(2 * math.sqrt(n_superpixels / math.pi)) + 1
        offsets = np.arange(-reach, reach + 1)
        rows, columns = (np.floor(at[:, axis])[:, None].astype(np.intp) + offsets for axis in (1, 0))
        square = (rows[:, :, None] + 0.5 - at[:, 1, None, None]) ** 2 + (
            columns[:, None] + 0.5 - at[:, 0, None, None]
        ) ** 2
        outside = (rows < 0) | (rows >= self.shape[0]), (columns < 0) | (columns >= self.shape[1])
        square[outside[0][:, :, None] | outside[1][:, None]] = np.inf
        flat = (rows[:, :, None] * self.shape[1] + columns[:, None]).reshape(len(at), -1)
        # Distances are rounded, so that which of two equally near ones comes first is no matter of rounding.
        near = np.argsort(np.round(square.reshape(len(at), -1), 9), axis=1, kind="stable")[:, :n_superpixels]
        return np.sort(np.take_along_axis(flat, near, axis=1), axis=1)

    def inside(self, polygons: Sequence[Any]) -> Mask:
        """Super-pixels whose centre lies in some shapely polygons, in level-0 pixels; a mask of the lattice's shape."""
        import shapely

        mask = np.zeros(self.shape, dtype=bool)
        columns = np.arange(self.shape[1])
        for polygon in polygons:
            shapely.prepare(polygon)
            first, last = np.asarray(polygon.bounds)[[1, 3]] * self.mpp[1] / SUPERPIXEL_UM
            for row in range(max(math.floor(first), 0), min(math.ceil(last) + 1, self.shape[0])):
                xy = self.centres(np.full_like(columns, row), columns)
                mask[row] |= shapely.contains_xy(polygon, xy[:, 0], xy[:, 1])
        return mask

    def windows(self, side: int = WINDOW) -> list[Window]:
        """Windows that cover the lattice without overlap, row by row; each a slice of rows and one of columns.

        Returns
        -------
        Squares of `side` super-pixels, smaller at the lower and right edge.
        """
        rows, columns = (
            [slice(first, min(first + side, length)) for first in range(0, length, side)] for length in self.shape
        )
        return list(product(rows, columns))


def n_superpixels_of(spot_um: float) -> int:
    """How many super-pixels make a spot of this diameter in µm, by area."""
    return max(1, round(math.pi * (spot_um / 2) ** 2 / SUPERPIXEL_UM**2))


def spot_um_of(section: AnnData) -> float:
    """Diameter in µm of the spots of a section.

    What ``uns["histoflow"]["spot_um"]`` says; else what its kind implies: 55 µm for Visium, 100 µm for legacy ST; else
    55 % of the distance between spots, as on Visium.

    Raises
    ------
    MissingSlotError
        If the section says nothing of these.
    """
    known = facts(section)
    if _SPOT_FACT in known:
        return float(known[_SPOT_FACT])
    if known.get("kind") in SPOT_UM:
        return SPOT_UM[str(known["kind"])]
    if not float(known.get("pitch_um", math.nan)) > 0:
        raise MissingSlotError(
            f"section {section_name(section)} tells neither the diameter nor the distance of its spots; write "
            f'uns["{UNS}"]["{_SPOT_FACT}"], in µm'
        )
    return _SPOT_PART * float(known["pitch_um"])
