"""Sections out of a SpatialData, and sections and predictions into one."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from histoflow._errors import MissingSlotError, OptionError, ReadError, ScaleWarning, SlideMismatchError
from histoflow._files import cache_folder, locked
from histoflow._keys import SPATIAL, SPATIAL_UM, UNS, facts, section_name
from histoflow.io.arrays import check_counts, is_counts, unique_names
from histoflow.io.frames import FULLRES, Frames
from histoflow.io.geojson import ATTRS, LINK, allowed_name, annotation, outline_of, shapes_of, systems_of, unannotated
from histoflow.io.images import RGB, extra, write_pyramid
from histoflow.io.scale import ST_PITCH_UM, VISIUM_PITCH_UM, Scale, fit_pitch, st_step, visium_step
from histoflow.io.section import Given, Source, make_section
from histoflow.io.spots import anndata_section

if TYPE_CHECKING:
    from spatialdata import SpatialData


_TABLE = "_table"
_HIRES, _LOWRES = "hires", "lowres"
_VISIUM_ARRAY, _ST_ARRAY = ["array_col", "array_row"], ["array_x", "array_y"]
# Rows of Visium's lattice are 86.6 µm apart and columns 50; those of a square array, one and the same.
_LARGEST_SQUARE_ASPECT = 1.3
_SAME_PLACE_PX = 1.0
_CHANNELS = ([0, 1, 2, 3], ["0", "1", "2", "3"], ["r", "g", "b", "a"], ["red", "green", "blue", "alpha"])

Matrix = NDArray[np.float64]
"""Affine map of x, y, 1, shape (3, 3)."""


def from_spatialdata(
    sdata: SpatialData,
    *,
    library_id: str | None = None,
    table: str | None = None,
    slide: str | Path | None = None,
    mpp: float | tuple[float, float] | None = None,
) -> AnnData | list[AnnData]:
    """Make a section of every region of a Visium or legacy ST SpatialData.

    Places are the centres of the shapes that the table annotates, brought to the slide through a coordinate system
    that both have; ``obsm["spatial"]`` of the table is not read. An image that lives only in `sdata` is written once
    to the cache as a tiled pyramid, for embedding.

    Parameters
    ----------
    sdata
        As `spatialdata_io.visium` or `to_spatialdata` make it: a table of raw counts that annotates circles (or
        polygons), and images. It is not changed.
    library_id
        Which region; None for all of them.
    table
        Which table; needed where several annotate something.
    slide
        Slide file of the region; or the name of an image in `sdata`. None: the slide that `to_spatialdata` recorded,
        else the image ``<region>_full_image``, else ``<region>_hires_image``, which is said in a warning, else the only
        image that has a coordinate system in common with the region.
    mpp
        µm per level-0 pixel of the slide, one number or (x, y), for every region. None: what `to_spatialdata` recorded,
        else the slide's metadata, else the pitch of the array: Visium's lattice in ``obs`` ``array_row, array_col``,
        legacy ST's in ``array_x, array_y``. Units of coordinate systems are not taken for a scale.

    Returns
    -------
    A section, or a list of them where there are several regions and none was named: X raw counts (n_spots, n_genes),
    float32 in sparse rows; ``obs`` and ``var`` of the table without the columns that link it to the region;
    ``obsm["spatial"]`` (n_spots, 2), x, y of the centres in level-0 pixels from the upper left corner;
    ``obsm["spatial_um"]`` the same in µm; ``uns["histoflow"]`` with slide, scale, pitch, section (the region's name
    unless another was recorded) and spots left out by reason.

    Raises
    ------
    OptionError
        If there is no such table or region, or a choice is left open.
    MissingSlotError
        If no table annotates a shape, or there is neither slide nor image.
    CountsError
        If the table is not raw counts; names the layers that are.
    SlideMismatchError
        If table, shapes, image and slide do not belong together.
    ResolutionError
        If nothing tells the scale, or metadata and pitch contradict each other.
    ReadError
        If an image is not 8-bit RGB or grey, or the slide cannot be read.
    MissingDependencyError
        If spatialdata is not installed.

    Examples
    --------
    >>> section = from_spatialdata(spatialdata.read_zarr("visium.zarr"))  # doctest: +SKIP
    """
    _check_sdata(sdata)
    annotating = _table(sdata, table)
    regions = _regions(sdata, annotating, library_id)
    if slide is not None and len(regions) > 1:
        raise OptionError(
            f"slide belongs to one region, but there are {', '.join(regions)}; name the region with library_id="
        )
    sections = [_region_section(_Region.of(sdata, annotating, region), slide, mpp) for region in regions]
    return sections[0] if len(sections) == 1 else sections


def _check_sdata(sdata: Any) -> None:
    if not isinstance(sdata, extra("spatialdata").SpatialData):
        raise OptionError(
            f"sdata must be a SpatialData, got {type(sdata).__name__}; read a folder with spatialdata.read_zarr"
        )


def _check_ids(section: AnnData, name: str) -> None:
    if not section.obs_names.is_unique:
        raise OptionError(f"section {name} has repeated obs_names; make them unique with obs_names_make_unique()")


def _table(sdata: SpatialData, name: str | None) -> AnnData:
    annotating = [key for key, value in sdata.tables.items() if ATTRS in value.uns]
    if not annotating:
        raise MissingSlotError(
            f'no table of the SpatialData annotates anything (uns["{ATTRS}"]); make one with TableModel.parse'
        )
    if name is None and len(annotating) == 1:
        name = annotating[0]
    if name not in annotating:
        raise OptionError(f"table must be one of {', '.join(map(repr, annotating))}, got {name!r}")
    return sdata.tables[name]


def _regions(sdata: SpatialData, table: AnnData, library_id: str | None) -> list[str]:
    """Regions that are shapes and have rows in the table, or the one asked for."""
    attrs = table.uns[ATTRS]
    annotated = [str(region) for region in np.atleast_1d(attrs["region"])]
    with_rows = set(table.obs[attrs["region_key"]])
    regions = [region for region in annotated if region in sdata.shapes and region in with_rows]
    if not regions:
        raise MissingSlotError(
            f"the table annotates {', '.join(annotated)}, of which none is among the shapes "
            f"({', '.join(sdata.shapes) or 'there are none'}); only circles and polygons have places"
        )
    if library_id is None:
        return regions
    if library_id not in regions:
        raise OptionError(f"library_id must be one of {', '.join(map(repr, regions))}, got {library_id!r}")
    return [library_id]


@dataclass(frozen=True)
class _Region:
    """One region of a table: its rows, without the columns that link them, and where they are.

    `xy` (n_spots, 2) are the centres x, y in the shapes' own coordinates, NaN where a row has no shape.
    """

    sdata: SpatialData
    name: str
    rows: AnnData
    xy: NDArray[np.float64]

    @property
    def known(self) -> dict[str, Any]:
        return facts(self.rows)

    @classmethod
    def of(cls, sdata: SpatialData, table: AnnData, name: str) -> _Region:
        attrs = table.uns[ATTRS]
        rows = table[(table.obs[attrs["region_key"]] == name).to_numpy()]
        xy = _centres(sdata.shapes[name], rows.obs[attrs["instance_key"]], name)
        return cls(sdata, name, unannotated(rows), xy)

    @property
    def shapes(self) -> Any:
        return self.sdata.shapes[self.name]

    def image(self, frame: str) -> str | None:
        """Name of the region's image in one of the frames that Space Ranger has, or None."""
        name = f"{self.name}_{'full' if frame == FULLRES else frame}_image"
        return name if name in self.sdata.images else None

    def to(self, element: str) -> Matrix:
        """How the shapes' own coordinates become those of another element: the way all common systems agree on."""
        here, there = _transformations(self.shapes), _transformations(self.sdata[element])
        ways: dict[str, Matrix] = {key: np.linalg.inv(there[key]) @ here[key] for key in here if key in there}
        if not ways:
            raise SlideMismatchError(
                f"region {self.name} and {element} have no coordinate system in common (here {', '.join(here)}; there "
                f"{', '.join(there)}); align them with spatialdata.transformations.set_transformation"
            )
        system, way = next(iter(ways.items()))
        for other, another in ways.items():
            off = np.nan_to_num(np.abs(_moved(self.xy, way) - _moved(self.xy, another))).max()
            if off > _SAME_PLACE_PX:
                raise SlideMismatchError(
                    f"region {self.name} lies in {element} in one place by coordinate system {system} and {off:.0f} "
                    f"pixels from it by {other}; remove the wrong one with spatialdata.transformations"
                )
        return way


def _centres(shapes: Any, instances: pd.Series[Any], name: str) -> NDArray[np.float64]:
    """Centres (n_spots, 2) of the shapes that the rows annotate; NaN where there is none."""
    if not shapes.index.is_unique:
        raise SlideMismatchError(f"shapes {name} have repeated ids; a row of the table must annotate one shape")
    places = shapes.index.get_indexer(pd.Index(instances))
    if not (places >= 0).any():
        raise SlideMismatchError(
            f"region {name}: table and shapes have no id in common (the table has ids such as {instances.iloc[0]!r}, "
            f"the shapes such as {shapes.index[0]!r}); give the shapes that belong to this table"
        )
    centroids = shapes.geometry.centroid
    xy: NDArray[np.float64] = np.column_stack([centroids.x, centroids.y])[places]
    xy[places < 0] = np.nan
    return xy


def _transformations(element: Any) -> dict[str, Matrix]:
    """Every coordinate system that an element has, and how its own x, y get there."""
    axes = ("x", "y")
    known = extra("spatialdata.transformations").get_transformation(element, get_all=True)
    return {system: np.asarray(way.to_affine_matrix(axes, axes), dtype=float) for system, way in known.items()}


def _moved(xy: NDArray[np.float64], matrix: Matrix) -> NDArray[np.float64]:
    moved: NDArray[np.float64] = xy @ matrix[:2, :2].T + matrix[:2, 2]
    return moved


@dataclass(frozen=True)
class _Placed:
    """A slide (None: the recorded one), the centres `xy` (n_spots, 2), and the element whose own coordinates they are.

    `frames` are the images that the slide may be, seen from there.
    """

    slide: Path | None
    xy: NDArray[np.float64]
    pixels_of: str
    frames: Frames = field(default_factory=Frames)


def _region_section(region: _Region, slide: str | Path | None, mpp: float | tuple[float, float] | None) -> AnnData:
    placed, is_known = _placed(region, slide), "slide_id" in region.known
    section = (_known_section if is_known else _foreign_section)(region, placed, mpp)
    fresh = section.uns[UNS]
    frame = fresh["image_frame"]
    pixels_of = placed.pixels_of if is_known or frame == FULLRES else region.image(frame)
    fresh[LINK] = {"region": region.name, **({"pixels_of": pixels_of} if pixels_of else {})}
    frames = {region.image(reduced): reduced for reduced in (_HIRES, _LOWRES)}
    fresh["image_frame"] = frames.get(placed.pixels_of, frame)
    return section


def _placed(region: _Region, slide: str | Path | None) -> _Placed:
    """Decide on the slide, and place the region in it."""
    image = slide if isinstance(slide, str) and slide in region.sdata.images else None
    recorded = str(region.known.get("slide", ""))
    if slide is None and not (recorded and Path(recorded).is_file()):
        image = _own_image(region)
    if image is not None:
        xy = _moved(region.xy, region.to(image))
        return _Placed(_cached_slide(region.sdata, image), xy, image)
    path = None if slide is None else Path(slide)
    if "slide_id" in region.known:
        return _Placed(path, region.xy, region.name)
    full = region.image(FULLRES)
    base = region.to(full) if full else np.eye(3)
    return _Placed(path, _moved(region.xy, base), full or region.name, _frames(region, base))


def _own_image(region: _Region) -> str | None:
    """Image of the SpatialData to take for the slide, or None where only a recorded path is left to try."""
    recorded = region.known.get(LINK, {}).get("pixels_of")
    if recorded in region.sdata.images:
        return str(recorded)
    if full := region.image(FULLRES):
        return full
    if hires := region.image(_HIRES):
        text = f"no slide was given for region {region.name}: its hires image is used, detail is lost"
        warnings.warn(text, ScaleWarning, stacklevel=5)
        return hires
    systems = set(_transformations(region.shapes))
    shared = [
        name
        for name, image in region.sdata.images.items()
        if systems & set(_transformations(image)) and not name.endswith(f"_{_LOWRES}_image")
    ]
    if len(shared) > 1:
        raise OptionError(
            f"region {region.name} lies on the images {', '.join(shared)}; name one of them, or a file, with slide="
        )
    if not shared and "slide" not in region.known:
        there = ", ".join(region.sdata.images) or "none"
        raise MissingSlotError(f"no image of region {region.name} is fit for a slide ({there}); give one with slide=")
    return shared[0] if shared else None


def _frames(region: _Region, base: Matrix) -> Frames:
    """The reduced images of a region, by their factor to the frame that `base` leads to, and the size of that."""
    here, factors, size = _transformations(region.shapes), {}, None
    for frame in (FULLRES, _HIRES, _LOWRES):
        name, system = region.image(frame), f"downscaled_{frame}"
        way = region.to(name) if name else here.get(f"{region.name}_{system}", here.get(system, np.zeros((3, 3))))
        way = way @ np.linalg.inv(base)
        factor = float(way[0, 0])
        if factor > 0 and np.allclose(way, np.diag([factor, factor, 1.0]), atol=1e-6):
            factors[frame] = factor
            pixels = _finest(region.sdata.images[name]).sizes if name else None
            size = size or (pixels and (pixels["x"] / factor, pixels["y"] / factor))
    return Frames({frame: factor for frame, factor in factors.items() if frame != FULLRES}, size)


def _known_section(region: _Region, placed: _Placed, mpp: float | tuple[float, float] | None) -> AnnData:
    """A section that histoflow had before: what it recorded is taken up again."""
    placed_rows = np.isfinite(placed.xy).all(axis=1)
    rows = region.rows[placed_rows].copy()
    rows.obsm[SPATIAL] = placed.xy[placed_rows]
    section = anndata_section(rows, Given(slide=placed.slide, mpp=mpp))
    fresh = section.uns[UNS]
    kept = ["kind"]
    if fresh["slide_id"] == region.known["slide_id"] and section.n_obs == region.rows.n_obs:
        kept += ["image_frame", "dropped", "versions"]
    fresh |= {key: region.known[key] for key in kept if key in region.known}
    return section


def _foreign_section(region: _Region, placed: _Placed, mpp: float | tuple[float, float] | None) -> AnnData:
    """A section that another tool has read."""
    rows, xy = region.rows, placed.xy
    _check_ids(rows, region.name)
    if rows.X is None or not is_counts(rows.X):
        layers = [f'layers["{key}"]' for key, layer in rows.layers.items() if is_counts(layer)]
        check_counts(np.nan if rows.X is None else rows.X, region.name, layers, genes=rows.var_names)
    has_place = np.isfinite(xy).all(axis=1)
    selected = (rows.obs["in_tissue"] == 1).to_numpy() if "in_tissue" in rows.obs else np.ones(rows.n_obs, dtype=bool)
    kept = has_place & selected
    kind, pitch, pitch_um = _array(rows.obs[has_place], xy[has_place])
    counts = AnnData(
        X=sp.csr_matrix(rows.X, dtype=np.float32)[kept],
        obs=rows.obs[kept].copy(),
        var=rows.var.set_axis(pd.Index(unique_names(rows.var_names, f"region {region.name}"), dtype=object)),
        obsm={key: value[kept] for key, value in rows.obsm.items() if key not in (SPATIAL, SPATIAL_UM)},
    )
    counts.obsm[SPATIAL] = xy[kept]
    source = Source(
        counts=counts,
        kind=kind,
        name=region.name,
        pitch=pitch,
        pitch_um=pitch_um,
        frames=placed.frames,
        dropped={"no_position": int((~has_place).sum()), "not_selected": int((has_place & ~selected).sum())},
    )
    return make_section(source, Given(slide=placed.slide, mpp=mpp))


def _array(obs: pd.DataFrame, xy: NDArray[np.float64]) -> tuple[str, Scale | None, float | None]:
    """What the array columns of a table say: technology, scale of the frame of `xy`, µm between neighbours."""
    if set(_ST_ARRAY) <= set(obs):
        array_xy = obs[_ST_ARRAY].to_numpy(np.float64)
        step = st_step(array_xy)
        return ("st", None, None) if step is None else ("st", fit_pitch(array_xy, xy, step), ST_PITCH_UM)
    if set(_VISIUM_ARRAY) <= set(obs):
        array_xy = obs[_VISIUM_ARRAY].to_numpy(np.float64)
        if not _is_square(array_xy, xy):
            return "visium", fit_pitch(array_xy, xy, visium_step()), VISIUM_PITCH_UM
    return "h5ad", None, None


def _is_square(array_xy: NDArray[np.float64], xy: NDArray[np.float64]) -> bool:
    """Whether rows of the array are as far apart as its columns, as no Visium array's are (bins, legacy ST)."""
    design = array_xy - array_xy.mean(axis=0)
    if len(xy) < 3 or np.linalg.matrix_rank(design) < 2:
        return False
    steps = np.linalg.norm(np.linalg.lstsq(design, xy - xy.mean(axis=0), rcond=None)[0], axis=1)
    return bool(steps.max() < _LARGEST_SQUARE_ASPECT * steps.min())


def _cached_slide(sdata: SpatialData, name: str) -> Path:
    """An image of the SpatialData as a tiled pyramid in the cache, named by its content and written once."""
    pixels = _pixels(sdata, name)
    digest = hashlib.sha256(str(pixels.shape).encode())
    digest.update(pixels.data)
    cached = cache_folder() / "slides" / f"{digest.hexdigest()}.tif"
    extra("filelock")
    if not cached.exists():
        with locked(cached):
            if not cached.exists():
                write_pyramid(cached, pixels)
    return cached


def _pixels(sdata: SpatialData, name: str) -> RGB:
    """The finest level of an image, (height, width, 3); refused unless it is 8-bit RGB or grey."""
    image = _finest(sdata.images[name])
    channels = [str(c).lower() if isinstance(c, str) else int(c) for c in image.coords["c"].to_numpy()]
    is_colour = any(channels == known[: len(channels)] for known in _CHANNELS) and len(channels) in (3, 4)
    if set(image.dims) != {"c", "y", "x"} or image.dtype != np.uint8 or not (is_colour or len(channels) == 1):
        raise ReadError(
            f"image {name} holds {image.dtype} with axes {', '.join(image.dims)} and channels "
            f"{', '.join(map(str, channels[:8]))}; give 8-bit RGB or grey, or the slide's file with slide="
        )
    pixels = image.transpose("y", "x", "c").to_numpy()
    return np.ascontiguousarray(np.repeat(pixels, 3, axis=2) if len(channels) == 1 else pixels[..., :3])


def _finest(image: Any) -> Any:
    """The full-size level, whether an image has one level or is a tree of them."""
    is_tree = isinstance(image, extra("xarray").DataTree)
    return extra("spatialdata").get_pyramid_levels(image, n=0) if is_tree else image


def to_spatialdata(section: AnnData, *, sdata: SpatialData | None = None, name: str | None = None) -> SpatialData:
    """Make a SpatialData of a section or a prediction, or of an existing one with it added.

    Parameters
    ----------
    section
        A section or a prediction: ``obsm["spatial"]`` (n_spots, 2), x, y of the centres in level-0 pixels, and the
        scale in ``uns["histoflow"]``. It is not changed.
    sdata
        What to add it to; it is not changed, and the result shares its elements.
    name
        Name of the new shapes, and with ``_table`` appended of the new table; None for the section's id, for a
        prediction followed by ``_`` and its method.

    Returns
    -------
    Everything in `sdata`, and:

    - shapes `name`, indexed by the ids of the spots: circles of 27.5 µm radius for Visium, 50 µm for legacy ST, half
      the pitch otherwise; for tiles squares of one pitch. Their own coordinates are level-0 pixels, which is coordinate
      system ``"global"`` (unless the region has it in other pixels); ``"um"`` is µm from the slide's upper left corner.
      Where `sdata` holds the image or the region that `from_spatialdata` made the section of, they are in its
      coordinate systems too.
    - table `name` + ``_table``, a copy of the section that annotates them. What zarr does not give back as it was
      (None, lists of mixed types, keys with a slash) stands in ``uns`` as JSON text, under ``_json``; names that
      SpatialData refuses are replaced and noted in ``uns["histoflow"]``. `from_spatialdata` undoes both.

    Raises
    ------
    MissingSlotError
        If places, scale or a pitch that is needed are missing.
    OptionError
        If the name is taken or not allowed, ids are repeated, or ``uns`` holds something that cannot be stored.
    MissingDependencyError
        If spatialdata is not installed.

    Examples
    --------
    >>> to_spatialdata(model.predict(section), sdata=sdata).write("predicted.zarr")  # doctest: +SKIP
    """
    spatialdata = extra("spatialdata")
    outline = outline_of(section)
    _check_ids(section, section_name(section))
    if sdata is not None:
        _check_sdata(sdata)
    name = _element_name(section, sdata, name)
    shapes = shapes_of(section, outline, systems_of(section, sdata))
    kinds = ("images", "labels", "points", "shapes", "tables")
    parts = {kind: {} if sdata is None else dict(getattr(sdata, kind)) for kind in kinds}
    parts["shapes"][name] = shapes
    parts["tables"][f"{name}{_TABLE}"] = annotation(section, name)
    made: SpatialData = spatialdata.SpatialData(**parts, attrs=None if sdata is None else dict(sdata.attrs))
    return made


def _element_name(section: AnnData, sdata: SpatialData | None, name: str | None) -> str:
    """A name that SpatialData allows, and that is free together with that of the table."""
    if name is None:
        method = facts(section).get("method")
        name = allowed_name(section_name(section) + (f"_{method}" if method else ""))
    elif name != allowed_name(name):
        raise OptionError(f"name must be of letters, digits, '_', '-' and '.', and not begin with '__'; got {name!r}")
    taken = set() if sdata is None else {key.lower() for _, key, _ in sdata.gen_elements()}
    for wanted in (name, f"{name}{_TABLE}"):
        if wanted.lower() in taken:
            raise OptionError(f"the SpatialData has an element {wanted!r} already; give another name with name=")
    return name
