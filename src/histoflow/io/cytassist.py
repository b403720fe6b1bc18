"""Pictures in Space Ranger's folder that are no H&E slide: the CytAssist instrument's, and those of quality control."""

from __future__ import annotations

import re
import struct
from pathlib import Path

from histoflow._errors import SlideMismatchError
from histoflow.io.frames import Frames
from histoflow.io.images import SparingFile, extra, slide_id

_CYTASSIST = "cytassist_image.tiff"
_INSTRUMENT = "the image of the CytAssist instrument: eosin only, a few µm per pixel"
_PICTURES = {
    r"cytassist_image\.tiff?$": _INSTRUMENT,
    r"aligned_tissue_image\.jpe?g$": "a checkerboard of the CytAssist and the microscope image",
    r"detected_tissue_image\.jpe?g$": "a reduced image with the detected tissue drawn on it",
    r"aligned_fiducials\.jpe?g$": "a reduced image with the fiducial frame drawn on it",
}


def check_slide_name(slide: str | Path) -> None:
    """Refuse a slide whose name is that of a picture of Space Ranger that is no H&E image.

    Names and meanings are those of Space Ranger 2 to 4 (spatial outputs); a prefix does not hide them.

    Raises
    ------
    SlideMismatchError
        If it is one: which.
    """
    for name, what in _PICTURES.items():
        if re.search(name, Path(slide).name, re.I):
            raise _not_the_slide(slide, what)


def check_not_cytassist(slide: str | Path, spatial: Path, frames: Frames) -> None:
    """Refuse a slide that shows what the CytAssist instrument saw, whatever it is called.

    It does if it is the same file as ``cytassist_image.tiff``. Where Space Ranger ran without a microscope image, the
    CytAssist image is its full-resolution image, and the hires and lowres images are made from it.

    Parameters
    ----------
    slide
        The slide that was given, or the hires image.
    spatial
        Space Ranger's folder ``spatial``.
    frames
        The image frames it describes.

    Raises
    ------
    SlideMismatchError
        If the slide is the CytAssist image, or is made from it.
    """
    picture = spatial / _CYTASSIST
    if not picture.is_file():
        return
    reduced = Path(slide).absolute().parent == spatial.absolute() and frames.fullres_size is not None
    if reduced and frames.is_fullres(_tiff_size(picture)):
        raise _not_the_slide(slide, f"made from {_INSTRUMENT} (Space Ranger ran without a microscope image)")
    if slide_id(slide) == slide_id(picture):
        raise _not_the_slide(slide, _INSTRUMENT)


def _not_the_slide(slide: str | Path, what: str) -> SlideMismatchError:
    return SlideMismatchError(
        f"slide {slide} is no H&E slide but {what}; give the microscope image of the H&E stain that Space Ranger "
        "aligned with slide="
    )


def _tiff_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels; zero for a damaged file, which nobody needs and which resembles nothing."""
    try:
        with SparingFile(path) as file, extra("tifffile").TiffFile(file) as tiff:
            page = tiff.pages[0]
            return int(page.imagewidth), int(page.imagelength)
    except (OSError, ValueError, IndexError, struct.error):
        return 0, 0
