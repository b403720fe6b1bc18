"""Sections from legacy ST tables, and from an AnnData that another tool has read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from histoflow._errors import CountsError, HistoflowError, MissingSlotError, OptionError, ReadError
from histoflow._keys import EMBEDDINGS, SPATIAL, SPATIAL_UM, UNS, facts
from histoflow.io.arrays import check_counts, is_counts, read_counts_table, table_separator, unique_names
from histoflow.io.frames import FULLRES, Frames
from histoflow.io.hdf5 import READING_ERRORS
from histoflow.io.images import existing_file, slide_id
from histoflow.io.scale import (
    ST_PITCH_UM,
    VISIUM_PITCH_UM,
    Scale,
    fit_pitch,
    nearest_pitch,
    st_step,
    stated_scale,
    visium_step,
)
from histoflow.io.section import PIXEL_X, PIXEL_Y, SELECTED, Given, Source, check_spot_table, join_spots, make_section
from histoflow.io.spaceranger import BIN_SIZE

_LIBRARY = "library_id"


def read_st(
    counts: str | Path,
    spots: str | Path,
    slide: str | Path,
    *,
    spots_frame: str | None = FULLRES,
    mpp: float | tuple[float, float] | None = None,
    section: str | None = None,
    patient: str | None = None,
    cache_dir: str | Path | None = None,
) -> AnnData:
    """Read a legacy Spatial Transcriptomics section (1k or 2k array), placed on its slide.

    Parameters
    ----------
    counts
        Table of raw counts, one row per spot named ``XxY``, one column per gene.
    spots
        Spot table with ``x, y`` (array position), ``pixel_x, pixel_y`` and, if there, ``selected``: 1 is under tissue.
    slide
        The image in which, or in a resized copy of which, the spots were placed.
    spots_frame
        Frame of the spot pixels: ``"fullres"``, level-0 pixels of `slide`; or ``"WxH"``, pixels of an image of W × H
        of which `slide` is a resized copy.
    mpp
        µm per level-0 pixel of `slide`, one number or (x, y). None: its metadata, else the pitch of the array: 200 µm
        between neighbours along a row, which the 1k array has per index step and the 2k array, a checkerboard, per two
        steps. An array of another pitch is read through a manifest, whose column ``pitch_um`` says it.
    section, patient
        Ids. The section is named after its slide if not given; the patient is never filled in.
    cache_dir
        Cache folder; None for the default.

    Returns
    -------
    A section: X raw counts (n_spots, n_genes), float32 in sparse rows; ``obs`` with ``array_x`` and ``array_y``;
    ``obsm["spatial"]`` (n_spots, 2), x, y of the centres in level-0 pixels from the upper left corner;
    ``obsm["spatial_um"]`` the same in µm; ``uns["histoflow"]`` with slide, scale, and spots left out by reason.

    Raises
    ------
    ReadError
        If a file is missing, truncated or not what it should be.
    SlideMismatchError
        If counts, spots and slide do not belong together.
    ResolutionError
        If nothing tells the scale, or metadata and pitch contradict each other.
    CountsError
        If the table is not raw counts.

    Examples
    --------
    >>> section = read_st("counts.tsv.gz", "spots.tsv", "HE.jpg")  # doctest: +SKIP
    """
    given = Given(slide=slide, mpp=mpp, spots_frame=spots_frame, section=section, patient=patient, cache_dir=cache_dir)
    return st_section(counts, spots, given)


def st_section(counts: str | Path, spots: str | Path, given: Given) -> AnnData:
    """As `read_st`, with everything that is given in one object."""
    slide = existing_file(str(given.slide), "slide")
    name = given.section or slide.stem
    table = _read_selection(existing_file(spots, "spot table"))
    joined, dropped = join_spots(read_counts_table(counts), table, name)
    array_xy = table[["array_x", "array_y"]].to_numpy(np.float64)
    step = st_step(array_xy, given.pitch_um)
    source = Source(
        counts=joined,
        kind="st",
        name=name,
        pitch=None if step is None else fit_pitch(array_xy, table[[PIXEL_X, PIXEL_Y]], step),
        pitch_um=given.pitch_um or (None if step is None else ST_PITCH_UM),
        dropped=dropped,
    )
    return make_section(source, given)


def _read_selection(path: Path) -> pd.DataFrame:
    """Every spot of the table by its id ``XxY``: array position, pixels, and whether it is selected."""
    try:
        table = pd.read_csv(path, sep=table_separator(path))
        x, y = table["x"].astype(float), table["y"].astype(float)
        spots = pd.DataFrame(
            {
                "array_x": x,
                "array_y": y,
                PIXEL_X: table[PIXEL_X].astype(float),
                PIXEL_Y: table[PIXEL_Y].astype(float),
                SELECTED: table[SELECTED].astype(float) == 1 if SELECTED in table else True,
            }
        )
    except READING_ERRORS as err:
        raise ReadError(
            f"{path} is not a spot table ({err}); it needs columns x, y, {PIXEL_X}, {PIXEL_Y} of numbers"
        ) from err
    spots.index = pd.Index([f"{a:g}x{b:g}" for a, b in zip(x, y, strict=True)], dtype=object)
    return check_spot_table(spots, path)


def section_from_anndata(
    adata: AnnData,
    *,
    slide: str | Path | None = None,
    library_id: str | None = None,
    mpp: float | tuple[float, float] | None = None,
    section: str | None = None,
    patient: str | None = None,
    spots_frame: str | None = None,
    cache_dir: str | Path | None = None,
) -> AnnData:
    """Make a section of a Visium or Visium HD AnnData as scanpy, squidpy or histoflow itself hold it.

    Parameters
    ----------
    adata
        X raw counts (n_spots, n_genes); ``obsm["spatial"]`` (n_spots, 2), x, y in full-resolution pixels. It is not
        changed.
    slide
        Slide file; None for the one recorded in ``uns["histoflow"]``, ``uns["histo"]`` or the metadata of
        ``uns["spatial"]``.
    library_id
        Which entry of ``uns["spatial"]`` to read; needed where there are several. Its spots are told by
        ``obs["library_id"]``, else by the column that ``uns["spatialdata_attrs"]["region_key"]`` names, else by the
        one column of ``obs`` that holds nothing but names of libraries.
    mpp
        µm per level-0 pixel of `slide`, one number or (x, y). None: what an earlier section recorded, else the slide's
        metadata, else ``microns_per_pixel`` (Visium HD), else the spot distance of 100 µm (Visium HD: of a bin).
    section, patient
        Ids. The section is named after its library, else its slide, if not given; the patient is never filled in.
    spots_frame
        Which frame `slide` is, as in `read_visium`.
    cache_dir
        Cache folder; None for the default.

    Returns
    -------
    A new section as from `read_visium`, with the columns of ``obs`` and ``var`` kept.

    Raises
    ------
    MissingSlotError
        If ``obsm["spatial"]`` or the slide is missing.
    OptionError
        If there are several libraries and none is named, or nothing tells whose a spot is.
    CountsError
        If X is not raw counts; names the layers that are, and ``raw.X``.
    SlideMismatchError
        If spots and slide do not belong together.
    ResolutionError
        If nothing tells the scale, or metadata and pitch contradict each other.

    Examples
    --------
    >>> section = section_from_anndata(adata, slide="HE.tif")  # doctest: +SKIP
    """
    given = Given(slide=slide, mpp=mpp, section=section, patient=patient, spots_frame=spots_frame, cache_dir=cache_dir)
    return anndata_section(adata, given, library_id=library_id)


def anndata_section(adata: AnnData, given: Given, *, library_id: str | None = None) -> AnnData:
    """As `section_from_anndata`, with everything that is given in one object."""
    with _telling_records(given, library_id):
        return _section_of(adata, given, library_id)


@contextmanager
def _telling_records(given: Given, library_id: str | None) -> Iterator[None]:
    """Say of an AnnData that something which tools record in it is not what they write there."""
    try:
        yield
    except HistoflowError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as err:
        name = given.section or library_id or given.slide or "without a name"
        raise ReadError(
            f'AnnData of section {name}: uns["{SPATIAL}"], uns["{UNS}"], obs or obsm["{SPATIAL}"] hold something else '
            f"than scanpy, squidpy and histoflow write there ({type(err).__name__}: {err}); correct it, or remove it"
        ) from err


def _section_of(adata: AnnData, given: Given, library_id: str | None) -> AnnData:
    library, record = _library(adata, library_id)
    alone = len(adata.uns.get(SPATIAL, {})) < 2
    # Of several sections put together, what is recorded of one may be another's.
    known, histo = (facts(adata), adata.uns.get("histo", {})) if alone else ({}, {})
    slide = existing_file(given.slide or _recorded_slide(known, histo, record), "slide")
    same_slide = known.get("slide_id") == slide_id(slide)
    recorded = {key: known.get(key) for key in ("section", "patient", "block", "study", "order")}
    if same_slide and "mpp_x" in known:
        recorded["mpp"] = (float(known["mpp_x"]), float(known["mpp_y"]))
    given = replace(given, slide=slide, **{k: v for k, v in recorded.items() if getattr(given, k) is None})
    counts, n_unselected = _own_spots(adata, library, name=given.section or library or slide.stem)
    scalefactors = record.get("scalefactors", {})
    is_hd = known.get("kind") == "visium_hd"
    bin_um = scalefactors.get(BIN_SIZE, known.get("pitch_um") if is_hd else None)
    bin_um = None if bin_um is None else float(bin_um)
    source = Source(
        counts=counts,
        kind="visium_hd" if is_hd else "h5ad",
        name=library or slide.stem,
        pitch=_pitch_of(counts, given.pitch_um, bin_um=bin_um, is_visium=bool(record)),
        stated=None if BIN_SIZE not in scalefactors else stated_scale(scalefactors, f"library {library}"),
        pitch_um=given.pitch_um or known.get("pitch_um") or bin_um or (VISIUM_PITCH_UM if record else None),
        frames=_frames_of(record, known),
        dropped={"not_selected": n_unselected},
    )
    section = make_section(source, given)
    if same_slide:
        section.uns[UNS] |= {key: known[key] for key in (EMBEDDINGS, "mpp_source") if key in known}
    return section


def _library(adata: AnnData, library_id: str | None) -> tuple[str | None, dict[str, Any]]:
    """Name and record of the library to read; None and an empty record where there is none."""
    libraries: dict[str, Any] = adata.uns.get(SPATIAL, {})
    if library_id is None and len(libraries) < 2:
        return next(iter(libraries.items()), (None, {}))
    if library_id in libraries:
        return library_id, libraries[library_id]
    raise OptionError(
        f"library_id must be one of {', '.join(map(repr, libraries)) or 'none, as there is no library'}; "
        f"got {library_id!r}"
    )


def _recorded_slide(known: dict[str, Any], histo: dict[str, Any], record: dict[str, Any]) -> str:
    places = {
        f'uns["{UNS}"]["slide"]': known.get("slide"),
        'uns["histo"]["wsi_path"]': histo.get("wsi_path"),
        "the library's metadata": record.get("metadata", {}).get("source_image_path"),
    }
    for place, path in places.items():
        if path and not Path(str(path)).is_file():
            raise ReadError(f"the slide {path} recorded in {place} does not exist; give it with slide=")
        if path:
            return str(path)
    raise MissingSlotError(f"the AnnData records no slide in {', '.join(places)}; give it with slide=")


def _own_spots(adata: AnnData, library: str | None, *, name: str) -> tuple[AnnData, int]:
    """Counts of the library's spots under tissue, as a new AnnData, and the number of spots not under tissue."""
    if SPATIAL not in adata.obsm:
        raise MissingSlotError(f'section {name} has no obsm["{SPATIAL}"]; give x, y of the spots in pixels there')
    own = _of_library(adata, library, name)
    if not adata.obs_names[own].is_unique:
        raise OptionError(f"section {name} has repeated obs_names; make them unique with adata.obs_names_make_unique()")
    selected = own & (adata.obs["in_tissue"] == 1).to_numpy() if "in_tissue" in adata.obs else own
    _check_own_counts(adata, name)
    counts = AnnData(
        X=sp.csr_matrix(adata.X, dtype=np.float32)[selected],
        obs=adata.obs[selected].copy(),
        var=adata.var.set_axis(pd.Index(unique_names(adata.var_names, f"section {name}"), dtype=object)),
        obsm={key: value[selected] for key, value in adata.obsm.items() if key != SPATIAL_UM},
    )
    counts.obsm[SPATIAL] = np.asarray(counts.obsm[SPATIAL], dtype=np.float64)[:, :2]
    return counts, int(own.sum() - selected.sum())


def _of_library(adata: AnnData, library: str | None, name: str) -> NDArray[np.bool_]:
    """Which spots are the library's: (n_spots,); all of them where there is one library only."""
    libraries = {str(key) for key in adata.uns.get(SPATIAL, {})}
    column = _library_column(adata, libraries)
    if column is None:
        if len(libraries) > 1:
            raise OptionError(
                f'section {name}: there are several libraries and no obs["{_LIBRARY}"] tells them apart; '
                "write there which library each spot is of"
            )
        return np.ones(adata.n_obs, dtype=bool)
    owner = adata.obs[column].astype(str)
    own: NDArray[np.bool_] = (owner == str(library)).to_numpy()
    if len(libraries) < 2 and owner.nunique() < 2:
        return np.ones(adata.n_obs, dtype=bool)
    if not own.any():
        raise OptionError(
            f'section {name}: no spot is of library {library!r}; obs["{column}"] holds '
            f"{', '.join(map(repr, owner.unique()[:5]))}: give the spots of one section, or name the libraries there "
            f'as in uns["{SPATIAL}"]'
        )
    return own


def _library_column(adata: AnnData, libraries: set[str]) -> str | None:
    named = (_LIBRARY, adata.uns.get("spatialdata_attrs", {}).get("region_key"))
    for column in named:
        if column in adata.obs:
            return str(column)
    if len(libraries) < 2:
        return None
    fitting = [column for column in adata.obs if set(adata.obs[column].astype(str)) <= libraries]
    return str(fitting[0]) if len(fitting) == 1 else None


def _check_own_counts(adata: AnnData, name: str) -> None:
    if adata.X is not None and is_counts(adata.X):
        return
    held = _layers_with_counts(adata)
    if adata.X is None:
        advice = f"counts are in {', '.join(held)}: make them X" if held else "give the raw counts as X"
        raise CountsError(f"section {name} holds no raw counts: it has no X; {advice}")
    check_counts(adata.X, name, held, genes=adata.var_names)


def _layers_with_counts(adata: AnnData) -> list[str]:
    held = [f'layers["{key}"]' for key, layer in adata.layers.items() if is_counts(layer)]
    return held + (["raw.X"] if adata.raw is not None and is_counts(adata.raw.X) else [])


def _pitch_of(counts: AnnData, pitch_um: float | None, *, bin_um: float | None, is_visium: bool) -> Scale | None:
    xy = counts.obsm[SPATIAL]
    if {"array_row", "array_col"} <= set(counts.obs):
        step = visium_step(pitch_um) if bin_um is None else pitch_um or bin_um
        return fit_pitch(counts.obs[["array_col", "array_row"]], xy, step)
    if pitch_um is None and not is_visium:
        return None
    return nearest_pitch(xy, pitch_um or bin_um or VISIUM_PITCH_UM)


def _frames_of(record: dict[str, Any], known: dict[str, Any]) -> Frames:
    if "slide_size_px" in known:  # spots of an earlier section are level-0 pixels of its slide
        width, height = known["slide_size_px"]
        return Frames({}, (float(width), float(height)))
    scalefactors = record.get("scalefactors", {})
    keys = {name: f"tissue_{name}_scalef" for name in ("hires", "lowres")}
    factors = {name: float(scalefactors[key]) for name, key in keys.items() if key in scalefactors}
    for name, factor in factors.items():
        if name in record.get("images", {}):
            height, width = record["images"][name].shape[:2]
            return Frames(factors, (width / factor, height / factor))
    return Frames(factors)
