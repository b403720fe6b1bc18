"""Places on an opened slide and the images there: grids over the tissue, and patches that are squares in µm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from histoflow._errors import (
    MissingDependencyError,
    MissingSlotError,
    OptionError,
    ShapeError,
    SlideMismatchError,
)
from histoflow._keys import UNS

if TYPE_CHECKING:
    from wsidata import WSIData

TISSUES, TILES = "tissues", "tiles"
"""``shapes`` entries of a slide, as in LazySlide: outlines of the tissue, and the squares of a grid on it."""

_STATISTICS_TISSUES, _STATISTICS_GRID = "histoflow_tissues", "histoflow_grid"
_TILE_SPEC = "tile_spec"
_TISSUE_MPP = 8.0
_LEAST_TISSUE = 0.5
"""A tile is kept if more than this part of it is tissue."""


@dataclass(frozen=True)
class Grid:
    """Tiles on the tissue of a slide, row by row.

    Attributes
    ----------
    xy
        Centres, shape (n_tiles, 2), x, y in level-0 pixels.
    tissue_id
        The piece of tissue that each tile lies on, shape (n_tiles,).
    tile_id
        Row of each tile in ``wsi.shapes["tiles"]``, shape (n_tiles,).
    """

    xy: NDArray[np.float64]
    tissue_id: NDArray[np.int64]
    tile_id: NDArray[np.int64]


def slide_facts(wsi: WSIData) -> Mapping[str, Any]:
    """What is known about an opened slide: ``attrs["histoflow"]``, with content id, size and µm per pixel.

    Raises
    ------
    MissingSlotError
        If the slide was opened another way than through `hf.open_wsi`.
    """
    known: Mapping[str, Any] = wsi.attrs.get(UNS, {})
    if "mpp_x" not in known:
        raise MissingSlotError(f'this slide has no scale in attrs["{UNS}"]; open it with hf.open_wsi')
    return known


def statistics_grid(wsi: WSIData, step_um: float) -> Grid:
    """Lay the fixed grid from which the statistics of a slide are taken; the slide object stays as it was.

    Tissue is found anew, by the slide alone: outlines that a user drew do not change an embedding.

    Parameters
    ----------
    wsi
        A slide from `hf.open_wsi`.
    step_um
        Side of the tiles, and their distance, in µm.

    Raises
    ------
    SlideMismatchError
        If no tissue is found on the slide.
    """
    spec = wsi.attrs.get(_TILE_SPEC)
    try:
        _find_tissue(wsi, _STATISTICS_TISSUES)
        return _lay(wsi, step_um, _STATISTICS_TISSUES, _STATISTICS_GRID)
    finally:
        for key in (_STATISTICS_TISSUES, _STATISTICS_GRID):
            wsi.shapes.pop(key, None)
        if spec is None:
            wsi.attrs.pop(_TILE_SPEC, None)
        else:
            wsi.attrs[_TILE_SPEC] = spec


def lay_tiles(wsi: WSIData, step_um: float) -> Grid:
    """Lay a grid over the tissue of a slide: ``shapes["tiles"]``, and ``shapes["tissues"]`` unless it is there.

    Parameters
    ----------
    wsi
        A slide from `hf.open_wsi`.
    step_um
        Side of the tiles, and their distance, in µm. It is laid at the slide's own scale.

    Raises
    ------
    SlideMismatchError
        If no tissue is found on the slide.
    OptionError
        If the step is not a positive number, or below one pixel.
    """
    if TISSUES not in wsi.shapes:
        _find_tissue(wsi, TISSUES)
    return _lay(wsi, step_um, TISSUES, TILES)


def _find_tissue(wsi: WSIData, key: str) -> None:
    """Outline the tissue with LazySlide, by Otsu's threshold on saturation at about 8 µm per pixel.

    LazySlide's own defaults take the pink glass of some scans for tissue.
    """
    lazyslide = _lazyslide()
    level_mpp = np.asarray(wsi.properties.level_downsample) * _mpp(wsi)
    level = int(np.argmin(np.abs(np.log(level_mpp / _TISSUE_MPP))))
    otsu = {"method": "otsu", "to_hsv": True, "filter_artifacts": False, "threshold": None}
    lazyslide.pp.find_tissues(wsi, level=level, key_added=key, **otsu)
    if key not in wsi.shapes or not len(wsi.shapes[key]):
        raise SlideMismatchError(
            f"no tissue was found on {slide_facts(wsi).get('slide')}; check that it is an H&E slide with glass around "
            f'the tissue, or draw the outlines into shapes["{TISSUES}"]'
        )


def _lay(wsi: WSIData, step_um: float, tissues: str, tiles: str) -> Grid:
    if not 0 < step_um < math.inf:
        raise OptionError(f"step_um is {step_um}; give a distance in µm above 0")
    side_px = round(step_um / _mpp(wsi))
    if side_px < 1:
        raise OptionError(f"step_um is {step_um:g}, below one pixel of {_mpp(wsi):.3g} µm; give a larger one")
    options = {"tissue_key": tissues, "key_added": tiles, "background_fraction": 1 - _LEAST_TISSUE, "edge": True}
    _lazyslide().pp.tile_tissues(wsi, side_px, **options)
    table = wsi.shapes.get(tiles)
    if table is None or not len(table):
        raise SlideMismatchError(
            f"no tile of {step_um:g} µm lies on the tissue of {slide_facts(wsi).get('slide')}; give a smaller step"
        )
    # LazySlide keeps corners; centres are used everywhere else.
    bounds = table.geometry.bounds.to_numpy()
    xy = (bounds[:, :2] + bounds[:, 2:]) / 2
    order = np.lexsort((xy[:, 0], xy[:, 1]))
    ids = (table["tissue_id"].to_numpy(np.int64), table["tile_id"].to_numpy(np.int64))
    return Grid(xy[order], *(column[order] for column in ids))


def _mpp(wsi: WSIData) -> float:
    """µm per level-0 pixel, the geometric mean of both axes."""
    known = slide_facts(wsi)
    return math.sqrt(float(known["mpp_x"]) * float(known["mpp_y"]))


def _lazyslide() -> Any:
    try:
        import lazyslide
    except ImportError as err:
        raise MissingDependencyError("finding tissue needs LazySlide: pip install 'histoflow[slides]'") from err
    return lazyslide


def upsampling(wsi: WSIData, side_um: float, patch_px: int) -> float:
    """How many times finer the pixels of a patch are than the slide's: above 1 nothing is gained by it."""
    known = slide_facts(wsi)
    return max(float(known["mpp_x"]), float(known["mpp_y"])) * patch_px / side_um


def read_patches(wsi: WSIData, xy: ArrayLike, *, side_um: float, patch_px: int) -> NDArray[np.uint8]:
    """Cut squares out of a slide and resample them to one number of pixels.

    A square is `side_um` wide and high in µm, also where the pixels of the slide are not square; it is read at the
    coarsest level that is not coarser than wanted, and resampled by Pillow's antialiased bilinear filter, so that the
    place of a patch is exact to a fraction of a pixel. Beyond the edge of the slide its outermost pixels are repeated.

    Parameters
    ----------
    wsi
        A slide from `hf.open_wsi`.
    xy
        Centres, shape (n_patches, 2), x, y in level-0 pixels.
    side_um
        Side of the square in µm.
    patch_px
        Side of the result in pixels.

    Returns
    -------
    RGB, uint8, shape (n_patches, patch_px, patch_px, 3).

    Raises
    ------
    ShapeError
        If `xy` has another shape.
    """
    centres = np.asarray(xy, dtype=np.float64)
    if centres.ndim != 2 or centres.shape[1] != 2:
        raise ShapeError(f"xy must have shape (n_patches, 2), got {centres.shape}")
    known = slide_facts(wsi)
    half = side_um / 2 / np.array([float(known["mpp_x"]), float(known["mpp_y"])])
    level = _level(wsi, 2 * half.min() / patch_px)
    patches = np.empty((len(centres), patch_px, patch_px, 3), dtype=np.uint8)
    for row, centre in enumerate(centres):
        patches[row] = _read_square(wsi, centre, half, level, patch_px)
    return patches


def _level(wsi: WSIData, wanted: float) -> int:
    """The coarsest level whose pixels are at most `wanted` level-0 pixels wide."""
    downsample = np.asarray(wsi.properties.level_downsample)
    return int(np.flatnonzero(downsample <= max(wanted, 1.0) * (1 + 1e-3))[-1])


def _read_square(
    wsi: WSIData, centre: NDArray[np.float64], half: NDArray[np.float64], level: int, patch_px: int
) -> NDArray[np.uint8]:
    full = np.asarray(wsi.properties.shape, dtype=np.float64)[::-1]
    size = np.asarray(wsi.properties.level_shape[level], dtype=np.int64)[::-1]
    downsample = full / size
    low, high = (centre - half) / downsample, (centre + half) / downsample
    # One pixel more on each side, for the filter; what lies beyond the slide is repeated from its edge.
    first = np.clip(np.floor(low).astype(np.int64) - 1, 0, size - 1)
    last = np.clip(np.ceil(high).astype(np.int64) + 1, first + 1, size)
    corner = np.round(first * downsample).astype(np.int64)
    reader: Any = wsi.reader
    image = reader.get_region(*corner.tolist(), *(last - first).tolist(), level=level)[..., :3]
    before = np.maximum(np.ceil(first - low).astype(np.int64), 0)
    after = np.maximum(np.ceil(high - last).astype(np.int64), 0)
    if before.any() or after.any():
        image = np.pad(image, ((before[1], after[1]), (before[0], after[0]), (0, 0)), mode="edge")
    box = (*(low - first + before), *(high - first + before))
    resized = Image.fromarray(image).resize((patch_px, patch_px), Image.Resampling.BILINEAR, box=box)
    return np.asarray(resized, dtype=np.uint8)
