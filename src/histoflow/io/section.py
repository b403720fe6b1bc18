"""From counts, spot pixels and a slide to a section: frame, scale, and the checks that the three belong together."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from histoflow._errors import DroppedSpotsWarning, ReadError, SlideMismatchError
from histoflow._keys import PATIENT, SPATIAL, SPATIAL_UM, UNS
from histoflow.io.arrays import check_counts
from histoflow.io.cytassist import check_slide_name
from histoflow.io.frames import Frames
from histoflow.io.scale import Scale, choose_scale, given_scale, nearest_distance
from histoflow.io.slides import open_unscaled, read_scale, set_scale
from histoflow.io.tissue import check_on_tissue

if TYPE_CHECKING:
    from wsidata import WSIData

SELECTED = "selected"
PIXEL_X, PIXEL_Y = "pixel_x", "pixel_y"
_FARTHEST = 1e9
"""Pixels or index steps: no slide and no array is so large."""

_IDS = ("patient", "block", "study", "order")
_REASONS = {
    "no_position": "without a position",
    "no_counts": "without counts",
    "outside_image": "outside the image",
}


@dataclass(frozen=True)
class Given:
    """What a user says about a section beside its files.

    Parameters
    ----------
    slide
        Slide file; None for the one that the source records or holds.
    mpp
        µm per level-0 pixel of the slide, one number or (x, y); None to find it out.
    pitch_um
        Distance of neighbouring spots in µm; None for the technology's own.
    spots_frame
        As in `Frames`; None to tell it from the slide's size.
    section, patient, block, study
        Ids; None where unknown, never filled in (a section without an id is named after its files).
    order
        Place of a serial section in its block.
    cache_dir
        Cache folder; None for the default.
    """

    slide: str | Path | None = None
    mpp: float | tuple[float, float] | None = None
    pitch_um: float | None = None
    spots_frame: str | None = None
    section: str | None = None
    patient: str | None = None
    block: str | None = None
    study: str | None = None
    order: int | None = None
    cache_dir: str | Path | None = None


@dataclass(frozen=True)
class Source:
    """What a reader found.

    Parameters
    ----------
    counts
        X counts (n_spots, n_genes); ``obsm["spatial"]`` (n_spots, 2), x, y of the centres in the spots' own frame.
    kind
        ``"visium"``, ``"visium_hd"``, ``"st"`` or ``"h5ad"``.
    name
        Id of the section where none is given.
    pitch
        Scale of the spots' own frame as the array implies it.
    stated
        The same as the files beside the spots state it.
    pitch_um
        Distance of neighbouring spots in µm; None to measure it.
    frames
        The image frames of the source.
    dropped
        Spots already left out, by reason.
    """

    counts: AnnData
    kind: str
    name: str
    pitch: Scale | None = None
    stated: Scale | None = None
    pitch_um: float | None = None
    frames: Frames = field(default_factory=Frames)
    dropped: dict[str, int] = field(default_factory=dict)


def join_spots(counts: AnnData, spots: pd.DataFrame, name: str) -> tuple[AnnData, dict[str, int]]:
    """Counts of the selected spots that have a position, with that position.

    Parameters
    ----------
    counts
        X counts (n_spots, n_genes), one row per spot id.
    spots
        One row per spot id, with columns ``pixel_x`` and ``pixel_y`` and a boolean ``selected``; the others go to
        ``obs``.
    name
        The section, for texts.

    Returns
    -------
    The counts, in their own order, with ``obsm["spatial"]`` in the pixels of `spots`, and the number of spots left
    out by reason.

    Raises
    ------
    SlideMismatchError
        If counts and spots have no id in common.
    """
    known = counts.obs_names.isin(spots.index)
    if not known.any():
        raise SlideMismatchError(
            f"section {name}: counts and spots have no id in common (counts have {_first(counts.obs_names)}, "
            f"spots have {_first(spots.index)}); give the spot table that belongs to these counts"
        )
    selected = spots[spots[SELECTED]]
    kept = counts[counts.obs_names.isin(selected.index)].copy()
    here = selected.loc[kept.obs_names]
    kept.obsm[SPATIAL] = here[[PIXEL_X, PIXEL_Y]].to_numpy(np.float64)
    kept.obs = here.drop(columns=[PIXEL_X, PIXEL_Y, SELECTED])
    return kept, {
        "no_position": int((~known).sum()),
        "no_counts": len(selected) - kept.n_obs,
        "not_selected": len(spots) - len(selected),
    }


def _first(ids: pd.Index[Any]) -> str:
    return f"{len(ids)} such as {ids[0]!r}" if len(ids) else "none"


def check_spot_table(spots: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The spot table itself, once it has rows, unique ids and places that are numbers.

    Raises
    ------
    ReadError
        If it has not.
    """
    if spots.empty:
        raise ReadError(f"spot table {path} has no rows; give a table with a row per spot")
    if not spots.index.is_unique:
        raise ReadError(f"spot table {path} has spot {spots.index[spots.index.duplicated()][0]} more than once")
    places = spots.drop(columns=SELECTED).to_numpy(np.float64)
    unplaced = ~(np.abs(places) < _FARTHEST).all(axis=1)  # NaN is below nothing
    if unplaced.any():
        raise ReadError(
            f"spot table {path} has {int(unplaced.sum())} spots without pixels or array position, or with one beyond "
            f"{_FARTHEST:g}; remove these rows"
        )
    return spots


def make_section(source: Source, given: Given) -> AnnData:
    """Place the spots on the slide and write everything known about the section.

    Parameters
    ----------
    source
        Counts with spot pixels, from one of the readers.
    given
        What the user says; its slide must be named.

    Returns
    -------
    A section: X counts, ``obsm["spatial"]`` in level-0 pixels, ``obsm["spatial_um"]`` in µm, ``uns["histoflow"]``.

    Raises
    ------
    CountsError
        If X is not raw counts.
    ResolutionError
        If no source tells the scale, or metadata and pitch contradict.
    SlideMismatchError
        If the slide is one of Space Ranger's own pictures, has the wrong size, no spot lies in it, or the spots do not
        lie on its tissue.
    ReadError
        If no spot is left, or the slide cannot be read.

    Warns
    -----
    DroppedSpotsWarning
        If spots were left out for want of counts, position or image.
    """
    name, counts = given.section or source.name, source.counts
    if not counts.n_obs or not counts.n_vars:
        raise ReadError(f"section {name} has {counts.n_obs} spots and {counts.n_vars} genes; there is nothing to read")
    check_counts(counts.X, name, genes=counts.var_names)
    check_slide_name(str(given.slide))
    wsi = open_unscaled(str(given.slide), cache_dir=given.cache_dir)
    try:
        frame = _place(wsi, source, given)
        section, n_outside = _inside(counts, wsi, name)
        check_on_tissue(wsi, section.obsm[SPATIAL], name)
        slide_facts = dict(wsi.attrs[UNS])
    finally:
        wsi.close()  # type: ignore[no-untyped-call]
    dropped = {"no_position": 0, "no_counts": 0, "not_selected": 0, **source.dropped, "outside_image": n_outside}
    _tell_dropped(dropped, name)
    scale = Scale(slide_facts["mpp_x"], slide_facts["mpp_y"], slide_facts["mpp_source"])
    section.obsm[SPATIAL_UM] = section.obsm[SPATIAL] * [scale.mpp_x, scale.mpp_y]
    if given.patient is not None:
        section.obs[PATIENT] = given.patient
    section.uns[UNS] = {
        "section": name,
        "kind": source.kind,
        **{key: value for key in _IDS if (value := getattr(given, key)) is not None},
        **slide_facts,
        "anisotropic": scale.anisotropic,
        **_pitch(section, source.pitch_um),
        "image_frame": frame,
        "dropped": dropped,
        "versions": {"histoflow": version("histoflow")},
    }
    return section


def _place(wsi: WSIData, source: Source, given: Given) -> str:
    """Bring spots (in place) and slide to a common frame and scale, and return the frame's name."""
    slide = str(given.slide)
    factor, frame = source.frames.place(given.spots_frame, wsi.attrs[UNS]["slide_size_px"], slide)
    source.counts.obsm[SPATIAL] = source.counts.obsm[SPATIAL] * factor
    stated, pitch = (scale.resized(factor) if scale else None for scale in (source.stated, source.pitch))
    given_mpp = given_scale(given.mpp)
    set_scale(wsi, choose_scale(slide, given=given_mpp, metadata=read_scale(wsi), stated=stated, pitch=pitch))
    return frame


def _inside(counts: AnnData, wsi: WSIData, name: str) -> tuple[AnnData, int]:
    """The spots whose centre lies in the slide, and the number of the others."""
    size = wsi.attrs[UNS]["slide_size_px"]
    xy: NDArray[np.float64] = counts.obsm[SPATIAL]
    inside = ((xy >= 0) & (xy < size)).all(axis=1)
    if not inside.any():
        raise SlideMismatchError(
            f"section {name}: all {len(xy)} spots lie outside the slide of {size[0]}x{size[1]} pixels (x from "
            f"{xy[:, 0].min():.0f} to {xy[:, 0].max():.0f}, y from {xy[:, 1].min():.0f} to {xy[:, 1].max():.0f}); "
            "check slide and spots_frame"
        )
    return counts[inside].copy(), int((~inside).sum())


def _tell_dropped(dropped: dict[str, int], name: str) -> None:
    told = [f"{dropped[reason]} {text}" for reason, text in _REASONS.items() if dropped.get(reason)]
    if told:
        text = f"section {name}: spots were left out: {', '.join(told)}"
        warnings.warn(text, DroppedSpotsWarning, stacklevel=4)


def _pitch(section: AnnData, pitch_um: float | None) -> dict[str, float]:
    pitch = nearest_distance(section.obsm[SPATIAL_UM]) if pitch_um is None else pitch_um
    return {} if math.isnan(pitch) else {"pitch_um": float(pitch)}
