"""Space Ranger's output folder, versions 1 to 4, as a section; Visium HD is in `visium_hd`."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from anndata import AnnData

from histoflow._errors import OptionError, ReadError, ScaleWarning
from histoflow._files import read_json
from histoflow.io.arrays import read_10x_h5, read_10x_mtx
from histoflow.io.cytassist import check_not_cytassist
from histoflow.io.frames import FULLRES, Frames, Size
from histoflow.io.hdf5 import READING_ERRORS
from histoflow.io.images import image_size
from histoflow.io.scale import VISIUM_PITCH_UM, fit_pitch, visium_step
from histoflow.io.section import PIXEL_X, PIXEL_Y, SELECTED, Given, Source, check_spot_table, join_spots, make_section

_MATRIX = "filtered_feature_bc_matrix"
_POSITIONS = ("tissue_positions.parquet", "tissue_positions.csv", "tissue_positions_list.csv")
_COLUMNS = ["barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"]
_HIRES = "hires"
_REDUCED = (_HIRES, "lowres")
_LARGEST_FACTOR = 1000.0
BINNED = "binned_outputs"
"""Folder of Visium HD output that holds a folder per bin size."""
BIN_SIZE = "bin_size_um"
"""Scale factor that only Visium HD has: the side of a bin, which is also the distance of neighbours."""


def read_visium(
    outs: str | Path,
    *,
    slide: str | Path | None = None,
    mpp: float | tuple[float, float] | None = None,
    section: str | None = None,
    patient: str | None = None,
    spots_frame: str | None = None,
    cache_dir: str | Path | None = None,
) -> AnnData:
    """Read the spots under tissue of a Space Ranger output, placed on its slide.

    Parameters
    ----------
    outs
        The ``outs`` folder, or the folder that holds it: ``spatial/`` with positions (headerless csv of version 1, csv
        with a header, or parquet), and the filtered counts as h5 or as a folder of mtx. Arrays of 6.5 and 11 mm.
    slide
        The full-resolution H&E image that Space Ranger aligned; None for the hires image, which is said in a warning.
        The image of the CytAssist instrument shows no H&E and is refused.
    mpp
        µm per level-0 pixel of `slide`, one number or (x, y). None: its metadata, else the 100 µm spot distance.
    section, patient
        Ids. The section is named after its folder if not given; the patient is never filled in.
    spots_frame
        Which frame `slide` is, for positions are always written in full-resolution pixels: ``"fullres"``, ``"hires"``
        or ``"lowres"`` (positions are multiplied by Space Ranger's factor), or ``"WxH"`` (the slide is a resized copy
        of the full-resolution image, which has W × H pixels). None to tell it from the slide's size. Without a slide
        it is ``"hires"``.
    cache_dir
        Cache folder; None for the default.

    Returns
    -------
    A section: X raw counts (n_spots, n_genes), float32 in sparse rows; ``obs`` with ``array_row`` and ``array_col``;
    ``obsm["spatial"]`` (n_spots, 2), x, y of the centres in level-0 pixels from the upper left corner;
    ``obsm["spatial_um"]`` the same in µm; ``uns["histoflow"]`` with slide, scale, and spots left out by reason.

    Raises
    ------
    ReadError
        If a file is missing, truncated or not what it should be.
    OptionError
        If `mpp` or `spots_frame` has no such value.
    SlideMismatchError
        If counts, positions and slide do not belong together.
    ResolutionError
        If the slide's metadata and the spot distance contradict each other.
    CountsError
        If the matrix is not raw counts.

    Examples
    --------
    >>> section = read_visium("outs/", slide="HE.tif")  # doctest: +SKIP
    """
    given = Given(slide=slide, mpp=mpp, section=section, patient=patient, spots_frame=spots_frame, cache_dir=cache_dir)
    return visium_section(Path(outs), given)


def visium_section(outs: Path, given: Given) -> AnnData:
    """As `read_visium`, with everything that is given in one object."""
    outs = _outs_folder(outs)
    spatial = outs / "spatial"
    scalefactors = read_scalefactors(spatial)
    if BIN_SIZE in scalefactors:
        raise _visium_hd(outs)
    frames = frames_of(spatial, scalefactors)
    name = given.section or (outs.parent.name if outs.name == "outs" else outs.name)
    given = given if given.slide else on_hires(given, spatial)
    check_not_cytassist(str(given.slide), spatial, frames)
    spots = read_positions(spatial)
    counts, dropped = join_spots(read_matrix(outs), spots, name)
    source = Source(
        counts=counts,
        kind="visium",
        name=name,
        pitch=fit_pitch(spots[["array_col", "array_row"]], spots[[PIXEL_X, PIXEL_Y]], visium_step(given.pitch_um)),
        pitch_um=given.pitch_um or VISIUM_PITCH_UM,
        frames=frames,
        dropped=dropped,
    )
    return make_section(source, given)


def _outs_folder(folder: Path) -> Path:
    for outs in (folder, folder / "outs"):
        if (outs / BINNED).is_dir():
            raise _visium_hd(outs)
        if (outs / "spatial").is_dir():
            return outs.absolute()
    raise ReadError(f"{folder} is no Space Ranger output: it has no folder spatial/; give the folder outs")


def _visium_hd(folder: Path) -> ReadError:
    return ReadError(
        f"{folder} is Visium HD output, which read_visium does not read; give one of its folders "
        f"{BINNED}/square_* to hf.read_visium_hd (in a manifest: kind visium_hd)"
    )


def on_hires(given: Given, spatial: Path) -> Given:
    """What is given, with the hires image for the slide that is not; a warning says so.

    Raises
    ------
    ReadError
        If there is no hires image.
    OptionError
        If the frame of a slide was given.
    """
    slide = spatial / "tissue_hires_image.png"
    if not slide.is_file():
        raise ReadError(f"no slide was given and {slide} does not exist; give the aligned image with slide=")
    if given.spots_frame not in (None, FULLRES, _HIRES):
        raise OptionError(
            f"spots_frame {given.spots_frame!r} names the frame of a slide, but none was given; "
            "leave it out, or give the image with slide="
        )
    text = f"no slide was given for {spatial.parent}: the hires image of Space Ranger is used, detail is lost"
    warnings.warn(text, ScaleWarning, stacklevel=4)
    return replace(given, slide=slide, spots_frame=_HIRES)


def read_matrix(outs: Path) -> AnnData:
    """Filtered counts (n_spots, n_genes) of a folder, from h5 or else from mtx.

    Raises
    ------
    ReadError
        If there is none, there are several, or it is damaged.
    """
    files = sorted(outs.glob(f"*{_MATRIX}.h5"))
    if len(files) > 1:
        raise ReadError(f"{outs} has several count matrices ({', '.join(f.name for f in files)}); keep one")
    if files:
        return read_10x_h5(files[0])
    if (outs / _MATRIX).is_dir():
        return read_10x_mtx(outs / _MATRIX)
    raise ReadError(f"{outs} has neither {_MATRIX}.h5 nor a folder {_MATRIX}; give a whole Space Ranger output")


def read_positions(spatial: Path) -> pd.DataFrame:
    """Every spot of the array by barcode: array position, full-resolution pixels, and whether under tissue.

    Raises
    ------
    ReadError
        If there is no table of positions, or it is damaged.
    """
    path = next((spatial / name for name in _POSITIONS if (spatial / name).is_file()), None)
    if path is None:
        raise ReadError(f"{spatial} has none of {', '.join(_POSITIONS)}; give a whole Space Ranger output")
    try:
        table = _positions_table(path)
        spots = pd.DataFrame(
            {
                "array_row": table["array_row"].astype(int),
                "array_col": table["array_col"].astype(int),
                PIXEL_X: table["pxl_col_in_fullres"].astype(float),
                PIXEL_Y: table["pxl_row_in_fullres"].astype(float),
                SELECTED: table["in_tissue"].astype(int) == 1,
            }
        )
    except READING_ERRORS as err:
        raise ReadError(
            f"{path} is not a table of spot positions ({err}); it needs {', '.join(_COLUMNS)} and may be truncated"
        ) from err
    return check_spot_table(spots, path)


def _positions_table(path: Path) -> pd.DataFrame:
    if path.suffix == ".parquet":
        table = pd.read_parquet(path)
        return table.set_index("barcode") if "barcode" in table else table
    with path.open() as handle:
        headerless = not handle.readline().startswith("barcode")
    table = pd.read_csv(path, header=None if headerless else 0, names=_COLUMNS if headerless else None)
    return table.set_index("barcode")


def read_scalefactors(spatial: Path) -> dict[str, Any]:
    """What ``scalefactors_json.json`` says, nothing where it is not there.

    Raises
    ------
    ReadError
        If it is no JSON object.
    """
    path = spatial / "scalefactors_json.json"
    known = read_json(path) if path.is_file() else {}
    if not isinstance(known, dict):
        raise ReadError(f"{path} holds no scale factors by name; fetch it again")
    return known


def frames_of(spatial: Path, scalefactors: dict[str, Any]) -> Frames:
    """Factors of the reduced images, and the full size that the first one there implies."""
    keys = {name: f"tissue_{name}_scalef" for name in _REDUCED}
    factors = {name: _factor(scalefactors[key], key, spatial) for name, key in keys.items() if scalefactors.get(key)}
    return Frames(factors, _fullres_size(spatial, factors))


def _factor(value: Any, key: str, spatial: Path) -> float:
    if not isinstance(value, int | float) or not 0 < value <= _LARGEST_FACTOR:
        raise ReadError(
            f"{spatial} says {key} is {str(value)[:40]}, wanted a number above 0; fetch scalefactors_json.json again"
        )
    return float(value)


def _fullres_size(spatial: Path, factors: dict[str, float]) -> Size | None:
    for name, factor in factors.items():
        image = spatial / f"tissue_{name}_image.png"
        if image.is_file():
            width, height = image_size(image)
            return width / factor, height / factor
    return None
