"""Visium HD: one folder of bins in Space Ranger's output, as a section whose spots are the bins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anndata import AnnData

from histoflow._errors import ReadError
from histoflow.io.cytassist import check_not_cytassist
from histoflow.io.scale import fit_pitch, stated_scale
from histoflow.io.section import PIXEL_X, PIXEL_Y, Given, Source, join_spots, make_section
from histoflow.io.spaceranger import (
    BIN_SIZE,
    BINNED,
    frames_of,
    on_hires,
    read_matrix,
    read_positions,
    read_scalefactors,
)

_SQUARES = "square_*"
_LARGEST_BIN_UM = 10_000.0


def read_visium_hd(
    path: str | Path,
    *,
    slide: str | Path | None = None,
    mpp: float | tuple[float, float] | None = None,
    section: str | None = None,
    patient: str | None = None,
    spots_frame: str | None = None,
    cache_dir: str | Path | None = None,
) -> AnnData:
    """Read the bins under tissue of one bin size of a Visium HD output, placed on their slide.

    Bins under tissue without any count are not in Space Ranger's filtered matrix: they are left out and counted.

    Parameters
    ----------
    path
        A folder ``binned_outputs/square_002um``, ``square_008um`` or ``square_016um``: the filtered counts as h5 or as
        a folder of mtx, and ``spatial/`` with ``tissue_positions.parquet`` and ``scalefactors_json.json``.
    slide
        The full-resolution H&E image that Space Ranger aligned; None for the hires image, which is said in a warning.
        The image of the CytAssist instrument shows no H&E and is refused.
    mpp
        µm per level-0 pixel of `slide`, one number or (x, y). None: its metadata, else ``microns_per_pixel`` of the
        scale factors, else the distance of neighbouring bins; those that are known must agree within 5 %.
    section, patient
        Ids. The section is named after its sample and bin folder if not given; the patient is never filled in.
    spots_frame
        Which frame `slide` is, as in `read_visium`.
    cache_dir
        Cache folder; None for the default.

    Returns
    -------
    A section as from `read_visium`, with a row per bin: X raw counts (n_bins, n_genes), float32 in sparse rows;
    ``obsm["spatial"]`` (n_bins, 2), x, y of the bins' centres in level-0 pixels; ``obsm["spatial_um"]`` the same in µm;
    ``uns["histoflow"]["pitch_um"]`` the side of a bin.

    Raises
    ------
    ReadError
        If it is no such folder, or a file is missing, truncated or not what it should be.
    OptionError
        If `mpp` or `spots_frame` has no such value.
    SlideMismatchError
        If counts, positions and slide do not belong together.
    ResolutionError
        If two of the slide's metadata, ``microns_per_pixel`` and the distance of the bins contradict each other.
    CountsError
        If the matrix is not raw counts.

    Examples
    --------
    >>> section = read_visium_hd("outs/binned_outputs/square_008um", slide="HE.tif")  # doctest: +SKIP
    """
    given = Given(slide=slide, mpp=mpp, section=section, patient=patient, spots_frame=spots_frame, cache_dir=cache_dir)
    return visium_hd_section(Path(path), given)


def visium_hd_section(path: Path, given: Given) -> AnnData:
    """As `read_visium_hd`, with everything that is given in one object."""
    folder = _bin_folder(path)
    spatial = folder / "spatial"
    scalefactors = read_scalefactors(spatial)
    bin_um = _bin_size(scalefactors, spatial)
    frames = frames_of(spatial, scalefactors)
    name = given.section or _name(folder)
    given = given if given.slide else on_hires(given, spatial)
    check_not_cytassist(str(given.slide), spatial, frames)
    spots = read_positions(spatial)
    counts, dropped = join_spots(read_matrix(folder), spots, name)
    source = Source(
        counts=counts,
        kind="visium_hd",
        name=name,
        pitch=fit_pitch(spots[["array_col", "array_row"]], spots[[PIXEL_X, PIXEL_Y]], given.pitch_um or bin_um),
        stated=stated_scale(scalefactors, str(spatial)),
        pitch_um=given.pitch_um or bin_um,
        frames=frames,
        dropped=dropped,
    )
    return make_section(source, given)


def _bin_folder(path: Path) -> Path:
    for above in (path, path / BINNED, path / "outs" / BINNED):
        if squares := sorted(found.name for found in above.glob(_SQUARES) if found.is_dir()):
            raise ReadError(f"{above} holds several bin sizes ({', '.join(squares)}); give the folder of one of them")
    if not (path / "spatial").is_dir():
        raise ReadError(
            f"{path} is no bin folder of Visium HD: it has no folder spatial/; give a folder {BINNED}/{_SQUARES}"
        )
    return path.absolute()


def _bin_size(scalefactors: dict[str, Any], spatial: Path) -> float:
    """Side of a bin in µm, which is also the distance of neighbours."""
    if BIN_SIZE not in scalefactors:
        raise ReadError(
            f"{spatial} is not of Visium HD: its scalefactors_json.json has no {BIN_SIZE}; "
            f"give a folder {BINNED}/{_SQUARES}, or read Visium output with hf.read_visium"
        )
    size = scalefactors[BIN_SIZE]
    if not isinstance(size, int | float) or not 0 < size <= _LARGEST_BIN_UM:
        raise ReadError(
            f"{spatial} says {BIN_SIZE} is {repr(size)[:40]}, wanted µm above 0; fetch scalefactors_json.json again"
        )
    return float(size)


def _name(folder: Path) -> str:
    """The sample's folder and the bin folder, so that two bin sizes of a sample have two names."""
    above = [part for part in folder.parts[:-1] if part not in (BINNED, "outs", folder.anchor)]
    return f"{above[-1]}_{folder.name}" if folder.parent.name == BINNED and above else folder.name
