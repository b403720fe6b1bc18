"""Patch features that HEST, TRIDENT or CLAM have written, as sections; no slide is opened.

Their layouts: HEST's benchmark, `embeddings`, `coords`, `barcodes`, with attributes at most on `coords` or `img`;
TRIDENT, `features` (attribute `encoder`) and `coords` (`patch_size`, `patch_size_level0`, `level0_magnification`,
`target_magnification`); CLAM, `features` and `coords`, bare, or with the attributes of its patch files (`patch_size`,
`patch_level`, `downsample`). All three place a patch by its upper left corner in level-0 pixels.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray
from scipy.spatial import KDTree

from histoflow._errors import (
    DroppedSpotsWarning,
    NotFiniteError,
    OptionError,
    ReadError,
    ResolutionError,
    ScaleWarning,
    ShapeError,
    SlideMismatchError,
)
from histoflow._files import value_hash
from histoflow._keys import EMBEDDINGS, PATIENT, SPATIAL, SPATIAL_UM, UNS, facts
from histoflow.io.arrays import check_counts, is_counts, unique_names
from histoflow.io.hdf5 import READING_ERRORS, opened_hdf5, read_anndata
from histoflow.io.images import existing_file, slide_id
from histoflow.io.scale import (
    VISIUM_PITCH_UM,
    Scale,
    choose_scale,
    distinct_places,
    fit_pitch,
    given_scale,
    is_plausible,
    nearest_distance,
    visium_step,
)
from histoflow.io.section import Given

HEST, TRIDENT, CLAM = "hest", "trident", "clam"

_Rows = NDArray[np.int64]
_UNKNOWN = "unknown"
_PARTS = {"features": ("embeddings", "features"), "coords": ("coords",), "barcodes": ("barcodes", "barcode")}
_TRIDENT_ONLY = {"patch_size_level0", "level0_magnification", "target_magnification"}
_DOUBTFUL, _CONTRADICTORY = 0.02, 0.05
_NEAR, _SAME = 0.25, 0.05
"""Parts of a patch's side by which spot and patch may lie apart: joined by place, and joined by barcode."""
_SIDES_UM = (0.1, 1e5)


@dataclass(frozen=True)
class _Patches:
    """What a file holds, before any scale: a row of `features` and an upper left corner in level-0 pixels per id."""

    path: Path
    source_format: str
    features: NDArray[np.float32]
    corners: NDArray[np.float64]
    ids: NDArray[np.str_]
    has_barcodes: bool
    attributes: dict[str, Any]
    encoder: str | None

    def number(self, name: str) -> float | None:
        """An attribute as one number above 0; None where the file lacks it."""
        if name not in self.attributes or str(self.attributes[name]) == "None":
            return None
        try:
            value = float(np.ravel(self.attributes[name])[0])
        except (IndexError, TypeError, ValueError):
            value = math.nan
        if not 0 < value < math.inf:
            raise ReadError(
                f"{self.path}: attribute {name} is {self.attributes[name]!r}, wanted a number above 0; make it anew"
            )
        return value


def read_features(
    path: str | Path,
    *,
    encoder: str | None = None,
    counts: AnnData | str | Path | None = None,
    mpp: float | tuple[float, float] | None = None,
    patch_um: float | None = None,
    pitch_um: float | None = None,
    section: str | None = None,
    patient: str | None = None,
) -> AnnData:
    """Read patch features that HEST, TRIDENT or CLAM have written, as a section that needs no slide.

    Parameters
    ----------
    path
        HDF5 file of patch features; which of the three wrote it is told by its content. CLAM's must come of coordinates
        at level 0, as ``create_patches_fp`` writes them.
    encoder
        Name of the encoder, also the ``obsm`` slot. None: as the file records it, which TRIDENT's do. Sections are
        embedded alike only under the same name.
    counts
        Raw counts, an AnnData or an h5ad such as HEST's own. Joined by barcode where the file has barcodes; else by
        place: a spot goes with the nearest patch whose centre is within a quarter of the patch's side from
        ``obsm["spatial"]``, x, y in level-0 pixels. None: a section to predict only.
    mpp
        µm per level-0 pixel, one number or (x, y). None: the file's own pixel size, else what `counts` tell.
    patch_um
        Side of a patch in µm. None: as the file tells it, to the whole µm. Files whose sizes differ by up to 5 % are
        embedded alike under the same given `patch_um`.
    pitch_um
        Distance of neighbouring spots in µm. None: as the counts tell it, else measured on the patches.
    section, patient
        Ids. The section is named after the file if not given; the patient is never filled in.

    Returns
    -------
    A section: X raw counts (n_spots, n_genes), float32 in sparse rows, or (n_patches, 0) without counts;
    ``obsm[encoder]`` (n_spots, n_features), float32, in the file's order; ``obsm["spatial"]`` (n_spots, 2), x, y of the
    **centres** in level-0 pixels; ``obsm["spatial_um"]`` the same in µm; ``uns["histoflow"]`` with kind ``"features"``,
    `source_format`, scale, pitch, spots left out, and how the embeddings were made.

    Raises
    ------
    ReadError
        If a file is missing, truncated, empty, or holds no patch features.
    ShapeError
        If features, coordinates and barcodes do not fit each other.
    NotFiniteError
        If features or coordinates hold NaN or infinity.
    OptionError
        If the encoder is neither recorded nor given, or a size is not above 0.
    ResolutionError
        If nothing tells the scale or the size of a patch, or what is given contradicts the file.
    CountsError
        If `counts` are not raw counts.
    SlideMismatchError
        If counts and patches have no spot in common, or lie at different places.

    Warns
    -----
    DroppedSpotsWarning
        If patches have no counts, or spots no patch.
    ScaleWarning
        If a given size is 2 to 5 % from the file's, or a given scale more than 5 %.

    Examples
    --------
    >>> section = read_features("uni/TENX95.h5", encoder="uni", counts="st/TENX95.h5ad", mpp=0.36)  # doctest: +SKIP
    """
    given = Given(mpp=mpp, pitch_um=pitch_um, section=section, patient=patient)
    return features_section(path, given, encoder=encoder, counts=counts, patch_um=patch_um)


def features_section(
    path: str | Path,
    given: Given,
    *,
    encoder: str | None = None,
    counts: AnnData | str | Path | None = None,
    patch_um: float | None = None,
) -> AnnData:
    """As `read_features`, with what is given of the section in one object."""
    _check_sizes(patch_um=patch_um, pitch_um=given.pitch_um)
    patches = _read(path)
    slot = _slot(patches, encoder)
    name = given.section or patches.path.stem
    table = None if counts is None else _read_counts(counts, name)
    scale = _scale(patches, given, table)
    side_px, side_um = _patch_side(patches, scale, patch_um)
    centres = patches.corners + side_px / 2
    if table is None:
        rows, dropped = np.arange(len(centres)), {"no_counts": 0, "no_patch": 0}
        made = AnnData(shape=(len(centres), 0), obs=pd.DataFrame(index=pd.Index(patches.ids, dtype=object)))
    else:
        rows, of_table, dropped = _join(patches, centres, side_px, table, name)
        made = table[of_table].copy()
    made.obsm = {SPATIAL: centres[rows], SPATIAL_UM: centres[rows] * [scale.mpp_x, scale.mpp_y]}
    made.obsm[slot] = patches.features[rows]
    if given.patient is not None:
        made.obs[PATIENT] = given.patient
    made.uns = {UNS: _facts(patches, given, scale, name)}
    made.uns[UNS] |= _pitch(made, table, given) | {"dropped": dropped, "versions": {"histoflow": version("histoflow")}}
    made.uns[UNS][EMBEDDINGS] = {slot: _described(patches, slot, side_um)}
    return made


def _read(path: str | Path) -> _Patches:
    """Every part of the file, checked; leading axes of length 1 are left out."""
    path = existing_file(path, "file of patch features")
    try:
        with opened_hdf5(path) as file:
            names = {part: next((n for n in offered if n in file), None) for part, offered in _PARTS.items()}
            arrays = {part: file[name][()] for part, name in names.items() if name}
            encoder = file[names["features"]].attrs.get("encoder") if names["features"] else None
            of_patches = {k: v for name in ("img", "coords") if name in file for k, v in file[name].attrs.items()}
            held = ", ".join(sorted(file)) or "nothing"
        barcodes = [v.decode() if isinstance(v, bytes) else str(v) for v in np.ravel(arrays.get("barcodes", []))]
    except READING_ERRORS as err:
        raise ReadError(
            f"{path} is not a whole HDF5 file of patch features ({err}); it may be truncated: fetch or make it anew "
            "(of a pair of .pt and .h5, give the .h5)"
        ) from err
    if missing := {"features", "coords"} - set(arrays):
        raise ReadError(
            f"{path} holds {held}, but no {' and no '.join(sorted(missing))}; give a file with the features of its "
            "patches (embeddings or features) and their coords, not one of images or of places alone"
        )
    if not np.size(arrays["coords"]) or not np.size(arrays["features"]):
        raise ReadError(f"{path} holds no patch, as where no tissue was found; check the segmentation of its slide")
    corners = _numbers(arrays["coords"], path, "coords", "(n_patches, 2)").astype(np.float64)
    patches = _Patches(
        path=path,
        source_format=_format(names, of_patches, encoder),
        features=_numbers(arrays["features"], path, "features", "(n_patches, n_features)").astype(np.float32),
        corners=corners,
        ids=np.array(barcodes if names["barcodes"] else [f"patch_{i}" for i in range(len(corners))]),
        has_barcodes=bool(names["barcodes"]),
        attributes=of_patches,
        encoder=None if str(encoder) in ("None", "") else str(encoder),
    )
    _check(patches)
    return patches


def _format(names: dict[str, str | None], of_patches: dict[str, Any], encoder: Any) -> str:
    if names["barcodes"] or names["features"] == "embeddings":
        return HEST
    return TRIDENT if encoder is not None or _TRIDENT_ONLY & set(of_patches) else CLAM


def _numbers(array: Any, path: Path, part: str, wanted: str) -> NDArray[Any]:
    """An array of two axes, once leading axes of length 1 are left out."""
    values = np.asarray(array)
    while values.ndim > 2 and len(values) == 1:
        values = values[0]
    if values.ndim != 2 or values.dtype.kind not in "fiu":
        told = "; one vector for the whole slide cannot be placed" if part == "features" and values.ndim == 1 else ""
        raise ShapeError(f"{path}: {part} have shape {values.shape} of {values.dtype}, wanted numbers {wanted}{told}")
    return values


def _check(patches: _Patches) -> None:
    """Refuse parts that do not fit each other, numbers that are none, and repeated ids."""
    path, n_patches = patches.path, len(patches.corners)
    if patches.corners.shape[1] != 2:
        raise ShapeError(f"{path}: coords have shape {patches.corners.shape}, wanted x and y, (n_patches, 2)")
    if not len(patches.features) == n_patches == len(patches.ids):
        told = f"{len(patches.features)} features, {n_patches} coords, {len(patches.ids)} ids"
        raise ShapeError(f"{path} holds {told}; wanted one of each per patch: make the file anew")
    for part, values in (("features", patches.features), ("coords", patches.corners)):
        if bad := int((~np.isfinite(values).all(axis=1)).sum()):
            raise NotFiniteError(f"{path}: {part} of {bad} of {n_patches} patches hold NaN or infinity; embed it anew")
    if repeated := list(pd.Index(patches.ids)[pd.Index(patches.ids).duplicated()]):
        raise ReadError(f"{path} has barcode {repeated[0]} more than once; give a file of one section")


def _check_sizes(**sizes: float | None) -> None:
    for name, size in sizes.items():
        if size is not None and not 0 < size < math.inf:
            raise OptionError(f"{name} is {size!r}; give µm above 0")


def _slot(patches: _Patches, encoder: str | None) -> str:
    """Name of the encoder: as given, else as the file records it."""
    name = encoder or patches.encoder
    if not name or name in (SPATIAL, SPATIAL_UM):
        raise OptionError(
            f"{patches.path} does not record its encoder, and encoder is {encoder!r}; give the encoder's name, such as "
            'encoder="uni_v1", the same for all files that belong together'
        )
    return name


def _scale(patches: _Patches, given: Given, counts: AnnData | None) -> Scale:
    """µm per level-0 pixel: as given, as the file says, as the counts tell."""
    pixel = patches.number("pixel_size") or patches.number("level0_mpp") or math.nan
    metadata = Scale(pixel, pixel, "metadata")
    known = metadata if is_plausible(metadata) else None
    told = given_scale(given.mpp)
    if told or known:
        return choose_scale(str(patches.path), given=told, metadata=known)
    if counts is not None and (found := _scale_of_counts(counts)):
        return found
    magnification = patches.number("level0_magnification")
    level = "" if magnification is None else f", only a magnification of {magnification:g}×"
    source = "HEST's metadata table" if patches.source_format == HEST else "the metadata of its slide"
    raise ResolutionError(
        f"{patches.path} records no usable scale{level}. A magnification is that of an objective, not a pixel size: "
        f"slides of one magnification differ by a tenth and more. Give µm per level-0 pixel, as {source} have it, with "
        "mpp= (--mpp, or the manifest's column mpp)"
    )


def _scale_of_counts(counts: AnnData) -> Scale | None:
    """The scale of the slide that the counts were placed on: as recorded, or by the lattice of Visium's spots."""
    known = facts(counts)
    if "mpp_x" in known:
        return Scale(float(known["mpp_x"]), float(known["mpp_y"]), str(known.get("mpp_source", "given")))
    if SPATIAL in counts.obsm and {"array_row", "array_col"} <= set(counts.obs):
        return fit_pitch(counts.obs[["array_col", "array_row"]], counts.obsm[SPATIAL], visium_step())
    return None


def _patch_side(patches: _Patches, scale: Scale, patch_um: float | None) -> tuple[NDArray[np.float64], float]:
    """Side of a patch in level-0 pixels along x and y, and in µm as it enters the record."""
    side_px = _recorded_side_px(patches)
    if side_px is not None:
        side_um = side_px * scale.mean
        if not _SIDES_UM[0] < side_um < _SIDES_UM[1]:
            raise ResolutionError(
                f"{patches.path}: by its attributes and scale a patch is {side_px:g} level-0 pixels or {side_um:g} µm "
                f"wide, wanted {_SIDES_UM[0]:g} to {_SIDES_UM[1]:g} µm; correct them, or make the file anew"
            )
        return np.full(2, side_px), _agreed_um(patches.path, side_px, side_um, patch_um)
    if patch_um is None:
        raise ResolutionError(
            f"{patches.path} does not record the size of its patches at level 0, without which their corners do not "
            "tell their centres; give their side in µm with patch_um="
        )
    return float(patch_um) / np.array([scale.mpp_x, scale.mpp_y]), float(patch_um)


def _agreed_um(path: Path, side_px: float, side_um: float, given_um: float | None) -> float:
    """The size that is recorded: the given one where it is that of the file, else the file's to the whole µm."""
    if given_um is None:
        return float(max(1, round(side_um)))
    apart = max(side_um, given_um) / min(side_um, given_um) - 1
    text = f"{path}: patches are {side_px:g} level-0 pixels or {side_um:.4g} µm, patch_um is {given_um:g}"
    if apart > _CONTRADICTORY:
        raise ResolutionError(f"{text}; more than 5 % apart: correct mpp or patch_um, or leave patch_um out")
    if apart > _DOUBTFUL:
        warnings.warn(f"{text}; they are recorded as the latter", ScaleWarning, stacklevel=5)
    return float(given_um)


def _recorded_side_px(patches: _Patches) -> float | None:
    """Side of a patch in level-0 pixels; None where the attributes do not settle it."""
    number, size = patches.number, patches.number("patch_size")
    if known := number("patch_size_level0") or number("patch_size_src"):
        return known
    if (target := number("patch_size_target")) and (downsample := number("downsample")):
        return target * downsample
    if size and (level0 := number("level0_magnification")) and (wanted := number("target_magnification")):
        return size * level0 / wanted
    downsample = number("downsample") or (1.0 if str(patches.attributes.get("patch_level")) == "0" else None)
    return size * round(downsample) * (number("custom_downsample") or 1.0) if size and downsample else None


def _read_counts(counts: AnnData | str | Path, name: str) -> AnnData:
    """Raw counts, float32 in sparse rows, under unique gene names; a new object."""
    table = counts if isinstance(counts, AnnData) else read_anndata(counts, "AnnData")
    if not table.n_obs or not table.n_vars or table.X is None:
        raise ReadError(
            f"counts of section {name}: {table.n_obs} spots, {table.n_vars} genes; there is nothing to read"
        )
    if not table.obs_names.is_unique:
        raise OptionError(f"counts of section {name} have repeated obs_names; call obs_names_make_unique() on them")
    layers = [f'layers["{key}"]' for key, layer in table.layers.items() if is_counts(layer)]
    check_counts(table.X, name, layers, genes=table.var_names)
    genes = table.var.set_axis(pd.Index(unique_names(table.var_names, f"section {name}"), dtype=object))
    kept = AnnData(X=sp.csr_matrix(table.X, dtype=np.float32), obs=table.obs.copy(), var=genes)
    if SPATIAL in table.obsm:
        kept.obsm[SPATIAL] = np.asarray(table.obsm[SPATIAL], dtype=np.float64)[:, :2]
    kept.uns[UNS] = dict(facts(table))
    return kept


def _join(
    patches: _Patches, centres: NDArray[np.float64], side_px: NDArray[np.float64], counts: AnnData, name: str
) -> tuple[_Rows, _Rows, dict[str, int]]:
    """Rows of the patches that have counts, the rows of their counts, and how many of each were left over."""
    if patches.has_barcodes:
        of_counts = counts.obs_names.get_indexer(pd.Index(patches.ids))
    else:
        of_counts = _nearest_spots(centres / side_px, counts, side_px, name)
    rows = np.flatnonzero(of_counts >= 0)
    if not len(rows):
        how = "barcode" if patches.has_barcodes else "place"
        raise SlideMismatchError(
            f"section {name}: patches (such as {patches.ids[0]}) and counts (such as {counts.obs_names[0]}) have no "
            f"{how} in common; give the counts of the same section"
        )
    if patches.has_barcodes and SPATIAL in counts.obsm:
        _check_places((centres[rows] - counts.obsm[SPATIAL][of_counts[rows]]) / side_px, name)
    dropped = {"no_counts": len(centres) - len(rows), "no_patch": counts.n_obs - len(rows)}
    if any(dropped.values()):
        text = f"{dropped['no_counts']} patches without counts, {dropped['no_patch']} spots without a patch"
        warnings.warn(f"section {name}: left out: {text}", DroppedSpotsWarning, stacklevel=4)
    return rows, of_counts[rows], dropped


def _nearest_spots(
    centres: NDArray[np.float64], counts: AnnData, side_px: NDArray[np.float64], name: str
) -> NDArray[np.int64]:
    """Row of the spot at each patch, -1 for none; places are in units of the patch's side."""
    if SPATIAL not in counts.obsm:
        raise SlideMismatchError(
            f'section {name}: the file has no barcodes and the counts no obsm["{SPATIAL}"], so nothing joins them; '
            "give x, y of the spots in level-0 pixels there"
        )
    rows, _ = distinct_places(centres)
    distance, patch = KDTree(centres[rows]).query(counts.obsm[SPATIAL] / side_px, distance_upper_bound=_NEAR)
    found = np.full(len(centres), -1, dtype=np.int64)
    for spot in np.argsort(-distance, kind="stable"):  # the nearest spot of a patch comes last and stays
        if np.isfinite(distance[spot]):
            found[rows[patch[spot]]] = spot
    return found


def _check_places(offset: NDArray[np.float64], name: str) -> None:
    """Refuse patches whose spots lie elsewhere; `offset` is in units of the patch's side."""
    x, y = np.median(offset, axis=0)
    if np.median(np.abs(offset).max(axis=1)) > _SAME:
        raise SlideMismatchError(
            f"section {name}: patches lie beside the spots of the same barcode, by {x:.2g} (x) and {y:.2g} (y) of "
            f'their side; check mpp and patch_um, and that obsm["{SPATIAL}"] of the counts is in level-0 pixels'
        )


def _facts(patches: _Patches, given: Given, scale: Scale, name: str) -> dict[str, Any]:
    ids = {key: value for key in ("patient", "block", "study", "order") if (value := getattr(given, key)) is not None}
    return {
        "section": name,
        "kind": "features",
        "source_format": patches.source_format,
        **ids,
        "features": str(patches.path),
        "slide_id": slide_id(patches.path),
        "mpp_x": scale.mpp_x,
        "mpp_y": scale.mpp_y,
        "mpp_source": scale.source,
        "anisotropic": scale.anisotropic,
        "n_patches": len(patches.corners),
    }


def _pitch(section: AnnData, counts: AnnData | None, given: Given) -> dict[str, float]:
    """Distance of neighbouring spots in µm: as given, as the counts record it, by Visium's lattice, as measured."""
    pitch = given.pitch_um or (None if counts is None else facts(counts).get("pitch_um"))
    if pitch is None and counts is not None and section.uns[UNS]["mpp_source"] == "pitch":
        pitch = VISIUM_PITCH_UM
    pitch = nearest_distance(section.obsm[SPATIAL_UM]) if pitch is None else float(pitch)
    return {} if math.isnan(pitch) else {"pitch_um": float(pitch)}


def _described(patches: _Patches, name: str, side_um: float) -> dict[str, Any]:
    """How the embeddings were made, in the form that `hf.embed` records; `id` is of what decides whether they fit."""
    n_features = int(patches.features.shape[1])
    identity = {"name": name, "n_features": n_features, "patch_um": [side_um], "context_um": []}
    patch_px = patches.number("patch_size_target") or patches.number("patch_size")
    return {
        **identity,
        **({} if patch_px is None else {"patch_px": round(patch_px)}),
        "version": _UNKNOWN,
        "licence": _UNKNOWN,
        "weights_hash": _UNKNOWN,
        "grid_um": 0.0,
        "standardize": False,
        "id": value_hash(identity)[:12],
        "slide_id": slide_id(patches.path),
        "recorded_encoder": patches.encoder or _UNKNOWN,
    }
