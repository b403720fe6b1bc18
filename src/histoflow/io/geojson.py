"""What other programs get of a prediction: outlines of its places, GeoJSON for QuPath, tables for SpatialData."""

from __future__ import annotations

import json
import math
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from histoflow._errors import MissingSlotError, NotFiniteError, OptionError
from histoflow._files import atomic_path
from histoflow._keys import SPATIAL, UNS, check_section, facts, section_name
from histoflow.io.images import extra
from histoflow.io.scale import VISIUM_PITCH_UM

if TYPE_CHECKING:
    from spatialdata import SpatialData

ATTRS = "spatialdata_attrs"
"""``uns`` entry of a table that says which element it annotates."""
GLOBAL, UM = "global", "um"
"""Coordinate systems of what `to_spatialdata` adds: level-0 pixels, and µm from the slide's upper left corner."""
LINK = "spatialdata"
"""Entry of ``uns["histoflow"]``: the region a section was, and the element whose own pixels are its level-0 pixels."""

_VISIUM_RADIUS_UM, _ST_RADIUS_UM = 27.5, 50.0
_VISIUM_ARRAY, _ST_ARRAY = {"array_row", "array_col"}, {"array_x", "array_y"}
_SQUARE_KINDS = ("tiles", "visium_hd")
_N_CORNERS = 24
_DECIMALS = 2
_COLOURS = {"Spot": [230, 159, 0], "Tile": [86, 180, 233]}
_REGION, _INSTANCE = "region", "instance_id"
_RENAMED, _JSON = "renamed", "_json"
_NAMED = ("obs", "var", "obsm", "varm", "obsp", "varp", "layers", "uns")
# Any fixed value does: it only makes the ids of two exports of one prediction the same.
_NAMESPACE = uuid.UUID("5f0c7a52-6a0e-5d3b-9c1f-2f6b8f3f9a41")


@dataclass(frozen=True)
class Outline:
    """What the places of a section look like on its slide.

    Parameters
    ----------
    square
        Whether they are squares (tiles) and not circles (spots).
    half_um
        Radius of the circle, or half the side of the square, in µm.
    half_px
        The same in level-0 pixels along x and y.
    """

    square: bool
    half_um: float
    half_px: tuple[float, float]

    @property
    def radius_px(self) -> float:
        """The radius in level-0 pixels, the geometric mean of both axes."""
        return math.sqrt(self.half_px[0] * self.half_px[1])

    def rings(self, xy: NDArray[np.float64]) -> NDArray[np.float64]:
        """Closed outlines, counter-clockwise where y is drawn upwards, as GeoJSON has them.

        Parameters
        ----------
        xy
            Centres (n_spots, 2), x, y in level-0 pixels.

        Returns
        -------
        Corners (n_spots, n_corners + 1, 2), x, y in level-0 pixels; the last is the first again.
        """
        if self.square:
            corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=np.float64)
        else:
            angle = 2 * np.pi * np.arange(_N_CORNERS) / _N_CORNERS
            corners = np.column_stack([np.cos(angle), np.sin(angle)])
        closed = np.concatenate([corners, corners[:1]]) * self.half_px
        return np.asarray(xy, dtype=np.float64)[:, None, :] + closed


def outline_of(section: AnnData) -> Outline:
    """The outline that the places of a section or a prediction have.

    Tiles and bins are squares of one pitch. Spots are circles: 27.5 µm radius for Visium, 50 µm for legacy ST, half
    the pitch for anything else.

    Parameters
    ----------
    section
        A section, or a prediction at its places.

    Raises
    ------
    MissingSlotError
        If ``uns["histoflow"]`` lacks the scale, or a pitch that is needed.
    """
    check_section(section, needs=[SPATIAL, UNS])
    known = facts(section)
    missing = [key for key in ("mpp_x", "mpp_y") if key not in known]
    if missing:
        raise MissingSlotError(
            f'section {section_name(section)} has no {", ".join(missing)} in uns["{UNS}"]; '
            "read it with its slide: hf.read_visium, hf.read_st or hf.section_from_anndata"
        )
    half_um = _half_um(section, known)
    half_px = (half_um / float(known["mpp_x"]), half_um / float(known["mpp_y"]))
    return Outline(known.get("kind") in _SQUARE_KINDS, half_um, half_px)


def _half_um(section: AnnData, known: dict[str, Any]) -> float:
    kind, pitch_um = known.get("kind"), known.get("pitch_um")
    columns = set(section.obs)
    if kind == "visium" or (kind == "h5ad" and columns >= _VISIUM_ARRAY and pitch_um == VISIUM_PITCH_UM):
        return _VISIUM_RADIUS_UM
    if kind == "st" or (kind == "h5ad" and columns >= _ST_ARRAY):
        return _ST_RADIUS_UM
    if pitch_um is None or not float(pitch_um) > 0:
        raise MissingSlotError(
            f'section {section_name(section)} has no pitch_um in uns["{UNS}"], so the size of its places is unknown; '
            "set it to the distance of neighbouring places in µm"
        )
    return float(pitch_um) / 2


def to_geojson(prediction: AnnData, path: str | Path, *, genes: Sequence[str] | None = None) -> None:
    """Write a prediction as detections that QuPath opens by dragging the file onto the slide.

    Parameters
    ----------
    prediction
        X (n_spots, n_genes), log1p for a prediction and counts for a section; ``obsm["spatial"]`` (n_spots, 2), x, y
        of the centres in level-0 pixels.
    path
        File to write, ``.geojson``; written whole or not at all.
    genes
        Genes to write as measurements; None for all.

    Notes
    -----
    A FeatureCollection after RFC 7946, with pixels of level 0 for coordinates, x right and y down: one Polygon per
    place, named after it, ``objectType`` ``detection``, classified ``Spot`` or ``Tile``, with one measurement per gene
    in the unit of X, to six significant digits. Ids are made of slide, section and name, so that they stay the same.

    Raises
    ------
    OptionError
        If a gene is not in the prediction.
    MissingSlotError
        If places, scale or pitch are missing.
    NotFiniteError
        If a place or a value to be written is NaN or infinite, which JSON cannot say.
    OutputError
        If the file cannot be written.

    Examples
    --------
    >>> to_geojson(predicted, "S1.geojson", genes=["KRT8"])  # doctest: +SKIP
    """
    outline = outline_of(prediction)
    names = _names(prediction, genes)
    matrix = _matrix(prediction, names)
    _check_finite(prediction, matrix)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        for row, feature in enumerate(_features(prediction, outline)):
            feature["properties"]["measurements"] = dict(zip(names, _values(matrix, row), strict=True))
            file.write((",\n" if row else "\n") + json.dumps(feature, allow_nan=False, ensure_ascii=False))
        file.write("\n]}\n")


def _names(prediction: AnnData, genes: Sequence[str] | None) -> list[str]:
    there = [] if prediction.X is None else list(prediction.var_names)
    if genes is None:
        return there
    names = list(dict.fromkeys([genes] if isinstance(genes, str) else genes))
    unknown = sorted(set(names) - set(there), key=names.index)
    if unknown:
        raise OptionError(
            f"genes: {len(unknown)} are not in the prediction of section {section_name(prediction)}, such as "
            f"{unknown[0]!r}; give names out of its var_names"
        )
    return names


def _matrix(prediction: AnnData, names: list[str]) -> Any:
    """The columns to write, (n_spots, n_names), sparse in rows or dense."""
    if not names:
        return np.empty((prediction.n_obs, 0))
    matrix = prediction.X[:, prediction.var_names.get_indexer(names)]
    return sp.csr_matrix(matrix) if sp.issparse(matrix) else np.asarray(matrix)


def _check_finite(prediction: AnnData, matrix: Any) -> None:
    parts = {f'obsm["{SPATIAL}"]': prediction.obsm[SPATIAL], "X": matrix.data if sp.issparse(matrix) else matrix}
    for slot, values in parts.items():
        if not np.isfinite(values).all():
            raise NotFiniteError(
                f"section {section_name(prediction)}: {slot} holds NaN or infinity, which GeoJSON cannot hold; "
                "leave those spots or genes out"
            )


def _features(prediction: AnnData, outline: Outline) -> Iterator[dict[str, Any]]:
    """One detection per place, still without measurements."""
    kind = "Tile" if outline.square else "Spot"
    rings = outline.rings(prediction.obsm[SPATIAL]).round(_DECIMALS)
    origin = f"{facts(prediction).get('slide_id', '')}/{section_name(prediction)}"
    for name, ring in zip(prediction.obs_names, rings, strict=True):
        yield {
            "type": "Feature",
            "id": str(uuid.uuid5(_NAMESPACE, f"{origin}/{name}")),
            "geometry": {"type": "Polygon", "coordinates": [ring.tolist()]},
            "properties": {
                "objectType": "detection",
                "name": str(name),
                "classification": {"name": kind, "color": _COLOURS[kind]},
            },
        }


def _values(matrix: Any, row: int) -> list[float]:
    values = matrix[row].toarray().ravel() if sp.issparse(matrix) else matrix[row]
    return [float(f"{value:.6g}") for value in values]


def systems_of(section: AnnData, sdata: SpatialData | None) -> dict[str, Any]:
    """Coordinate systems of level-0 pixels: our own, and in `sdata` those of the element they are the pixels of."""
    transformations, known = extra("spatialdata.transformations"), facts(section)
    link = known.get(LINK, {})
    shared, region = (
        transformations.get_transformation(sdata[name], get_all=True) if sdata is not None and name in sdata else {}
        for name in (link.get("pixels_of"), link.get("region"))
    )
    # A region that is there in other pixels (of the full image, say) has given "global" its meaning already.
    own = {} if GLOBAL in region else {GLOBAL: transformations.Identity()}
    um = transformations.Scale([float(known["mpp_x"]), float(known["mpp_y"])], axes=("x", "y"))
    return {**own, **shared, UM: um}


def shapes_of(section: AnnData, outline: Outline, systems: Mapping[str, Any]) -> Any:
    """The places as shapes, a GeoDataFrame with one row per spot."""
    xy = np.asarray(section.obsm[SPATIAL], dtype=np.float64)
    index = pd.Index(list(section.obs_names), dtype=object)
    parse = extra("spatialdata.models").ShapesModel.parse
    if not outline.square:
        return parse(xy, geometry=0, radius=outline.radius_px, index=index, transformations=dict(systems))
    corners = np.column_stack([xy - outline.half_px, xy + outline.half_px])
    frame = extra("geopandas").GeoDataFrame({"geometry": extra("shapely").box(*corners.T)}, index=index)
    return parse(frame, transformations=dict(systems))


def allowed_name(text: str) -> str:
    """The nearest name that SpatialData allows."""
    name = re.sub(r"[^\w.-]", "_", text)
    if name.startswith("__"):
        name = "_" + name.lstrip("_")
    return "_" if name in ("", ".", "..") else name


def annotation(section: AnnData, region: str) -> AnnData:
    """A copy of the section that annotates the shapes `region`, with everything in it that zarr can hold."""
    table = section.copy()
    table.uns.pop(ATTRS, None)
    known = dict(facts(table))
    renamed = {attribute: found for attribute in _NAMED if (found := _refused(getattr(table, attribute)))}
    for attribute, names in renamed.items():
        _rename(table, attribute, {old: new for new, old in names.items()})
    if renamed:
        known[LINK] = {**known.get(LINK, {}), _RENAMED: renamed}
    table.uns = {key: _storable(value, f'uns["{key}"]') for key, value in {**table.uns, UNS: known}.items()}
    region_key, instance_key = (_free(key, table.obs) for key in (_REGION, _INSTANCE))
    table.obs[region_key] = pd.Categorical([region] * table.n_obs)
    table.obs[instance_key] = table.obs_names.to_numpy(dtype=object)
    model = extra("spatialdata.models").TableModel
    parsed: AnnData = model.parse(table, region=region, region_key=region_key, instance_key=instance_key)
    return parsed


def unannotated(rows: AnnData) -> AnnData:
    """A copy of rows of a table with everything undone that `annotation` did, and without the link to a region."""
    attrs = rows.uns[ATTRS]
    table = rows.copy()
    table.obs = table.obs.drop(columns=[attrs["region_key"], attrs["instance_key"]])
    table.uns = {key: _restored(value) for key, value in table.uns.items() if key != ATTRS}
    for attribute, names in facts(table).get(LINK, {}).get(_RENAMED, {}).items():
        _rename(table, attribute, names)
    return table


def _refused(slot: Any) -> dict[str, str]:
    """Names in a slot that SpatialData refuses, also for differing only in case: what to write instead → the name."""
    taken = {"_index"}
    instead = {}
    for old in map(str, slot):
        new = allowed_name(old)
        while new.lower() in taken:
            new += "_"
        taken.add(new.lower())
        if new != old:
            instead[new] = old
    return instead


def _rename(table: AnnData, attribute: str, names: dict[str, str]) -> None:
    slot = getattr(table, attribute)
    if isinstance(slot, pd.DataFrame):
        setattr(table, attribute, slot.rename(columns=names))
    else:
        setattr(table, attribute, {names.get(key, key): value for key, value in slot.items()})


def _free(column: str, obs: pd.DataFrame) -> str:
    taken = {str(name).lower() for name in obs}
    return column if column not in taken else f"{UNS}_{column}"


def _storable(value: Any, place: str) -> Any:
    """A value of ``uns`` as zarr gives it back: lists of one type as arrays, what it loses or refuses as JSON."""
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and key not in ("", ".", "..") and "/" not in key for key in value):
            return {key: _storable(held, f'{place}["{key}"]') for key, held in value.items()}
        return _as_json(value, place)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return np.asarray(value) if _is_uniform(value) else _as_json(value, place)
    if value is None or isinstance(value, set | frozenset) or (isinstance(value, int) and abs(value) >= 1 << 63):
        return _as_json(value, place)
    return value


def _is_uniform(values: list[Any] | tuple[Any, ...]) -> bool:
    if values and all(isinstance(value, str) for value in values):
        return True
    try:
        return np.asarray(values).dtype.kind in "biuf"
    except ValueError:  # rows of unequal length
        return False


def _as_json(value: Any, place: str) -> dict[str, str]:
    try:
        return {_JSON: json.dumps(value, default=_plain)}
    except (TypeError, ValueError) as err:
        raise OptionError(f"{place} cannot be stored in a SpatialData ({err}); remove it, or write it as text") from err


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"it holds a {type(value).__name__}")


def _restored(value: Any) -> Any:
    """What `_storable` was given, but for numbers in a list, which stay an array."""
    if isinstance(value, Mapping):
        if set(value) == {_JSON}:
            return json.loads(value[_JSON])
        return {key: _restored(held) for key, held in value.items()}
    if isinstance(value, np.ndarray) and (value.size == 0 or value.dtype.kind in "OUT"):
        return value.tolist()
    return value
