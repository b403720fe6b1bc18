"""Places on an opened slide and the images there: grids over the tissue, and patches that are squares in µm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from histoflow._errors import (
    MissingDependencyError,
    MissingSlotError,
    OptionError,
    ShapeError,
    SlideMismatchError,
)
from histoflow._keys import SPATIAL, UNS, check_section, facts, section_name

if TYPE_CHECKING:
    from wsidata import WSIData

TISSUES, TILES = "tissues", "tiles"
"""``shapes`` entries of a slide, as in LazySlide: outlines of the tissue, and the squares of a grid on it."""

_STATISTICS_TISSUES, _STATISTICS_GRID = "histoflow_tissues", "histoflow_grid"
_TILE_SPEC = "tile_spec"
_REGION_KEY = "library_id"
_TILE_UM = "tile_um"
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


@dataclass(frozen=True)
class TissueGrid:
    """The fixed grid of a slide, and the pieces of tissue that it lies on.

    Attributes
    ----------
    xy
        Centres, shape (n_tiles, 2), x, y in level-0 pixels.
    tissue_id
        The piece of tissue that each tile lies on, shape (n_tiles,).
    outlines
        Polygons of the pieces in level-0 pixels, shape (n_pieces,).
    outline_id
        Their tissue_id, shape (n_pieces,).
    """

    xy: NDArray[np.float64]
    tissue_id: NDArray[np.int64]
    outlines: NDArray[np.object_]
    outline_id: NDArray[np.int64]

    def piece_of(self, xy: ArrayLike) -> NDArray[np.int64]:
        """The piece of tissue that places (n_places, 2), in level-0 pixels, lie on, or else nearest to: (n_places,)."""
        from shapely import STRtree, points

        nearest = STRtree(self.outlines).nearest(points(np.asarray(xy, dtype=np.float64)))
        pieces: NDArray[np.int64] = self.outline_id[nearest]
        return pieces


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


def check_slide(section: AnnData, wsi: WSIData) -> None:
    """Raise SlideMismatchError unless a section was read with this slide."""
    check_section(section, needs=[SPATIAL, UNS])
    if facts(section).get("slide_id") != slide_facts(wsi).get("slide_id"):
        raise SlideMismatchError(
            f"section {section_name(section)} was read with another slide than {slide_facts(wsi).get('slide')}; "
            "embed it with hf.embed(section), which opens its own"
        )


def checked_places(xy: ArrayLike) -> NDArray[np.float64]:
    """Places as an array (n_places, 2), x, y; ShapeError if they are not, or there is none."""
    centres = np.asarray(xy, dtype=np.float64)
    if centres.ndim != 2 or centres.shape[1] != 2 or not len(centres):
        raise ShapeError(f"xy must have shape (n_places, 2) with at least one place, got {centres.shape}")
    return centres


def statistics_grid(wsi: WSIData, step_um: float) -> TissueGrid:
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
        grid = _lay(wsi, step_um, _STATISTICS_TISSUES, _STATISTICS_GRID)
        pieces = wsi.shapes[_STATISTICS_TISSUES]
        ids = pieces["tissue_id"].to_numpy(dtype=np.int64)
        return TissueGrid(grid.xy, grid.tissue_id, pieces.geometry.to_numpy(), ids)
    finally:
        for key in (_STATISTICS_TISSUES, _STATISTICS_GRID):
            wsi.shapes.pop(key, None)
        if spec is None:
            wsi.attrs.pop(_TILE_SPEC, None)
        else:
            wsi.attrs[_TILE_SPEC] = spec


def tissue_outlines(wsi: WSIData, *, drawn: bool = False) -> list[Any]:
    """Outlines of the tissue of a slide; the slide object stays as it was.

    Parameters
    ----------
    wsi
        A slide from `hf.open_wsi`.
    drawn
        Whether the outlines of ``shapes["tissues"]`` are taken where there are some; else tissue is found anew, by the
        slide alone.

    Returns
    -------
    Shapely polygons in level-0 pixels, with holes.

    Raises
    ------
    SlideMismatchError
        If no tissue is found on the slide.
    """
    key = TISSUES if drawn and len(wsi.shapes.get(TISSUES, ())) else _STATISTICS_TISSUES
    try:
        if key == _STATISTICS_TISSUES:
            _find_tissue(wsi, key)
        shapes = wsi.shapes[key].geometry
        return [polygon for shape in shapes for polygon in getattr(shape, "geoms", [shape])]
    finally:
        wsi.shapes.pop(_STATISTICS_TISSUES, None)


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


def cut_tiles(
    wsi: WSIData,
    tile_px: int,
    mpp: float,
    *,
    tissue_key: str = TISSUES,
    tile_key: str = TILES,
    find: Mapping[str, Any] | None = None,
    **options: Any,
) -> None:
    """Lay LazySlide's tiles over the tissue of a slide: squares of `tile_px` pixels of `mpp` µm.

    A slide whose own pixels are coarser gets tiles of the same µm at its own scale, which ``attrs["tile_spec"]`` then
    records; wsidata itself refuses them.

    Parameters
    ----------
    wsi
        A slide from `hf.open_wsi`; gets ``shapes[tile_key]``, and ``shapes[tissue_key]`` unless it is there.
    tile_px
        Side of a tile in pixels.
    mpp
        µm per pixel of the tiles.
    tissue_key, tile_key
        Names of outlines and tiles.
    find
        Parameters of LazySlide's `find_tissues` that differ from ours.
    **options
        Parameters of LazySlide's `tile_tissues`.

    Raises
    ------
    OptionError
        If size or scale is not a positive number.
    SlideMismatchError
        If no tissue, or no tile on it, is found.
    """
    if not (tile_px >= 1 and 0 < mpp < math.inf):
        raise OptionError(f"tiles of {tile_px} pixels of {mpp} µm; give both above 0")
    if tissue_key not in wsi.shapes:
        _find_tissue(wsi, tissue_key, find)
    native, nominal_um = _mpp(wsi), tile_px * mpp
    if mpp < native:
        factor = mpp / native
        options = {key: _rescaled(key, value, factor) for key, value in options.items()}
        tile_px, mpp = max(1, round(tile_px * factor)), native
    _lazyslide().pp.tile_tissues(wsi, tile_px, mpp=mpp, tissue_key=tissue_key, key_added=tile_key, **options)
    read_grid(wsi, tile_key)
    known = dict(slide_facts(wsi))
    wsi.attrs[UNS] = known | {_TILE_UM: {**known.get(_TILE_UM, {}), tile_key: nominal_um}}


def restrict_tissue(
    wsi: WSIData, tissue_key: str, polygons: Mapping[str, Any], find: Mapping[str, Any] | None = None
) -> None:
    """Keep the tissue inside some polygons and outside others.

    Parameters
    ----------
    wsi
        A slide from `hf.open_wsi`; ``shapes[tissue_key]`` is outlined unless it is there, and replaced.
    tissue_key
        Name of the outlines.
    polygons
        Shapely geometries in level-0 pixels, under ``"include"``, ``"exclude"`` or both.
    find
        As in `cut_tiles`.

    Raises
    ------
    OptionError
        If there are other keys.
    SlideMismatchError
        If nothing is left.
    """
    if unknown := set(polygons) - {"include", "exclude"}:
        raise OptionError(f"polygons has {', '.join(sorted(unknown))}; give include, exclude or both")
    if tissue_key not in wsi.shapes:
        _find_tissue(wsi, tissue_key, find)
    table = wsi.shapes[tissue_key].copy()
    if "include" in polygons:
        table["geometry"] = table.geometry.intersection(polygons["include"])
    if "exclude" in polygons:
        table["geometry"] = table.geometry.difference(polygons["exclude"])
    table = table.explode(ignore_index=True)
    table = table[(table.geometry.geom_type == "Polygon") & (table.geometry.area > 0)].reset_index(drop=True)
    if not len(table):
        raise SlideMismatchError("no tissue is left between the polygons; check that they are in level-0 pixels")
    table["tissue_id"] = np.arange(len(table))
    table.attrs = wsi.shapes[tissue_key].attrs
    wsi.shapes[tissue_key] = table


def _rescaled(option: str, value: Any, factor: float) -> Any:
    """An option of `tile_tissues` in pixels of another size."""
    in_pixels = option == "stride_px" or (option == "overlap" and value >= 1)
    return max(1, round(value * factor)) if in_pixels and value is not None else value


def read_grid(wsi: WSIData, tile_key: str = TILES) -> Grid:
    """Centres of the tiles of a slide, in the order of ``shapes[tile_key]``.

    Raises
    ------
    MissingSlotError
        If there are no tiles of that name.
    """
    table = wsi.shapes.get(tile_key)
    if table is None or not len(table):
        raise MissingSlotError(f'this slide has no tiles in shapes["{tile_key}"]; hf.tile(wsi) lays them')
    bounds = table.geometry.bounds.to_numpy()
    numbers = np.arange(len(table))
    ids = [
        np.asarray(table[column], np.int64) if column in table else default
        for column, default in (("tissue_id", np.zeros_like(numbers)), ("tile_id", numbers))
    ]
    # LazySlide keeps corners; centres are used everywhere else.
    return Grid((bounds[:, :2] + bounds[:, 2:]) / 2, *ids)


def tile_um(wsi: WSIData, tile_key: str = TILES) -> float:
    """Side in µm of the tiles of a slide.

    Raises
    ------
    MissingSlotError
        If there are no tiles of that name.
    """
    read_grid(wsi, tile_key)
    if stated := slide_facts(wsi).get(_TILE_UM, {}).get(tile_key):
        return float(stated)  # tiles are whole pixels wide; what was asked for is the same on every slide
    bounds = wsi.shapes[tile_key].geometry.bounds.to_numpy()
    known = slide_facts(wsi)
    sides = (bounds[:, 2:] - bounds[:, :2]) * [float(known["mpp_x"]), float(known["mpp_y"])]
    return float(np.median(sides))


def _find_tissue(wsi: WSIData, key: str, options: Mapping[str, Any] | None = None) -> None:
    """Outline the tissue with LazySlide, by Otsu's threshold on saturation at about 8 µm per pixel.

    LazySlide's own defaults take the pink glass of some scans for tissue.
    """
    lazyslide = _lazyslide()
    level_mpp = np.asarray(wsi.properties.level_downsample) * _mpp(wsi)
    level = int(np.argmin(np.abs(np.log(level_mpp / _TISSUE_MPP))))
    otsu = {"level": level, "method": "otsu", "to_hsv": True, "filter_artifacts": False, "threshold": None}
    lazyslide.pp.find_tissues(wsi, key_added=key, **(otsu | dict(options or {})))
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
    grid = read_grid(wsi, tiles)
    order = np.lexsort((grid.xy[:, 0], grid.xy[:, 1]))
    return Grid(grid.xy[order], grid.tissue_id[order], grid.tile_id[order])


def annotate_tiles(table: AnnData, tile_key: str) -> AnnData:
    """Say in a table, in place, which tiles its rows are, the way SpatialData reads it.

    Parameters
    ----------
    table
        ``obs["tile_id"]`` holds rows of ``shapes[tile_key]``.
    tile_key
        Name of the tiles.

    Returns
    -------
    The table, with ``obs["library_id"]`` and ``uns["spatialdata_attrs"]``.
    """
    table.obs[_REGION_KEY] = pd.Categorical([tile_key] * table.n_obs)
    table.uns["spatialdata_attrs"] = {"region": tile_key, "region_key": _REGION_KEY, "instance_key": "tile_id"}
    return table


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
    start = low - first + before
    if (start == np.rint(start)).all() and (high - low == patch_px).all():  # pixels as they are, which need no filter
        (left, top), side = start.astype(np.int64), patch_px
        return np.asarray(image[top : top + side, left : left + side], dtype=np.uint8)
    box = (*start, *(high - first + before))
    resized = Image.fromarray(image).resize((patch_px, patch_px), Image.Resampling.BILINEAR, box=box)
    return np.asarray(resized, dtype=np.uint8)
