"""Opened slides with a known scale: paths become WSIData here, and nowhere else."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from anndata import AnnData

from histoflow._errors import MissingSlotError, OptionError, ReadError, SlideMismatchError
from histoflow._keys import UNS, facts, section_name
from histoflow.io.images import TIFF_SUFFIXES, SparingFile, existing_file, extra, needs_pyramid, pyramid_of, slide_id
from histoflow.io.scale import Scale, choose_scale, given_scale, is_plausible

if TYPE_CHECKING:
    from wsidata import WSIData

_DAMAGED = (OSError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError, struct.error)
_UM_PER_UNIT = {"nm": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4}
_UM_PER_RESOLUTION_UNIT = {2: 25_400.0, 3: 10_000.0}  # TIFF 6.0: inch, centimetre


def open_wsi(
    path: str | Path,
    *,
    mpp: float | tuple[float, float] | None = None,
    cache_dir: str | Path | None = None,
    reader: str | None = None,
    **kwargs: Any,
) -> WSIData:
    """Open a slide whose scale is known.

    A jpg, png or bmp, and a TIFF without tiles or pyramid, is converted once to a lossless tiled pyramid in the cache.
    No earlier ``<slide>.zarr`` beside the slide is reopened unless `store` names it.

    Parameters
    ----------
    path
        Slide file.
    mpp
        µm per level-0 pixel, one number or (x, y); None to take the slide's own metadata. The resolution tags of a
        jpg or png, and values outside 0.05–20 µm per pixel such as 72, 96 or 300 dpi, are not taken for a scale.
    cache_dir
        Cache folder; None for the default.
    reader
        A reader of wsidata; None to choose by format.
    **kwargs
        Passed to `wsidata.open_wsi`.

    Returns
    -------
    The slide. ``attrs["histoflow"]`` holds its path, content id, size (width, height) in pixels, µm per pixel by axis
    and where that came from; its own ``mpp`` is their geometric mean.

    Raises
    ------
    ReadError
        If the file is missing, damaged, or of no known format.
    ResolutionError
        If neither `mpp` nor the metadata tell the scale.
    MissingDependencyError
        If the part that opens slides is not installed.

    Examples
    --------
    >>> wsi = open_wsi("HE.tif", mpp=0.5)  # doctest: +SKIP
    """
    given = given_scale(mpp)
    wsi = open_unscaled(path, cache_dir=cache_dir, reader=reader, **kwargs)
    set_scale(wsi, choose_scale(str(path), given=given, metadata=read_scale(wsi)))
    return wsi


def open_unscaled(
    path: str | Path, *, cache_dir: str | Path | None = None, reader: str | None = None, **kwargs: Any
) -> WSIData:
    """Open a slide as `open_wsi` does, leaving its scale open.

    ``attrs["histoflow"]`` holds path, content id and size only.

    Raises
    ------
    ReadError
        If the file is missing, damaged, or of no known format.
    OptionError
        If the reader is unknown.
    """
    wsidata, openslide = extra("wsidata"), extra("openslide")
    if reader is not None and reader not in wsidata.READERS:
        raise OptionError(f"reader must be one of {', '.join(sorted(r.name for r in wsidata.READERS))}, got {reader!r}")
    path = existing_file(path, "slide")
    identity = slide_id(path)
    convert = reader is None and needs_pyramid(path)
    file = pyramid_of(path, identity, cache_dir) if convert else path
    try:
        wsi: WSIData = wsidata.open_wsi(file, **{"store": None, "reader": reader, **kwargs})
    except (ValueError, OSError, RuntimeError, openslide.OpenSlideError) as err:
        raise ReadError(f"cannot open slide {path} ({err}); it is damaged, or no installed reader knows it") from err
    height, width = wsi.properties.shape
    wsi.attrs[UNS] = {"slide": str(path), "slide_id": identity, "slide_size_px": [int(width), int(height)]}
    return wsi


def set_scale(wsi: WSIData, scale: Scale) -> None:
    """Write a slide's scale into ``attrs["histoflow"]`` and its ``mpp``."""
    wsi.attrs[UNS] |= {"mpp_x": scale.mpp_x, "mpp_y": scale.mpp_y, "mpp_source": scale.source}
    wsi.set_mpp(scale.mean)  # type: ignore[no-untyped-call]


def read_scale(wsi: WSIData) -> Scale | None:
    """The scale in a slide's own metadata: the reader's properties, OME, the resolution tags of a TIFF.

    Parameters
    ----------
    wsi
        A slide from `open_unscaled`.

    Returns
    -------
    The first plausible one, or None.
    """
    slide = Path(wsi.attrs[UNS]["slide"])
    found: list[Scale | None] = []
    with contextlib.suppress(*_DAMAGED):  # metadata that make no sense tell no scale, as none do
        if Path(wsi.reader.file) == slide:
            found.append(_reader_scale(wsi.properties))
    with contextlib.suppress(*_DAMAGED):
        if slide.suffix.lower() in TIFF_SUFFIXES:
            found += _tiff_scales(slide)
    return next((scale for scale in found if scale is not None and is_plausible(scale)), None)


def _reader_scale(properties: Any) -> Scale | None:
    raw = json.loads(properties.raw or "{}")
    return _scale(raw.get("mpp-x", properties.mpp), raw.get("mpp-y", properties.mpp))


def _tiff_scales(path: Path) -> list[Scale | None]:
    tifffile = extra("tifffile")
    with contextlib.suppress(tifffile.TiffFileError), SparingFile(path) as file, tifffile.TiffFile(file) as tiff:
        ome = tiff.ome_metadata
        tags = tiff.pages[0].tags
        unit_um = _UM_PER_RESOLUTION_UNIT.get(int(tags.valueof("ResolutionUnit", 1)), 0.0)
        resolution = [tags.valueof(name, (0, 1)) for name in ("XResolution", "YResolution")]
        return [_ome_scale(ome) if ome else None, _scale(*(_um_per_pixel(r, unit_um) for r in resolution))]
    return []


def _um_per_pixel(resolution: tuple[int, int], unit_um: float) -> float:
    pixels, units = resolution
    return unit_um * units / pixels if pixels else 0.0


def _ome_scale(description: str) -> Scale | None:
    try:
        elements = ElementTree.fromstring(description).iter()
    except ElementTree.ParseError:
        return None
    for element in elements:
        if element.tag.endswith("}Pixels") and "PhysicalSizeX" in element.attrib:
            sizes = [element.get(f"PhysicalSize{axis}", element.get("PhysicalSizeX")) for axis in "XY"]
            units = [_UM_PER_UNIT.get(element.get(f"PhysicalSize{axis}Unit", "µm"), 0.0) for axis in "XY"]
            return _scale(*(float(size or 0) * unit for size, unit in zip(sizes, units, strict=True)))
    return None


def _scale(mpp_x: Any, mpp_y: Any) -> Scale | None:
    return Scale(float(mpp_x), float(mpp_y), "metadata") if mpp_x and mpp_y else None


def open_section_slide(section: AnnData, *, cache_dir: str | Path | None = None) -> WSIData:
    """Reopen the slide that a section was read with, at the section's own scale.

    Parameters
    ----------
    section
        A section from one of the readers.
    cache_dir
        Cache folder; None for the default.

    Returns
    -------
    The slide, as from `open_wsi`.

    Raises
    ------
    MissingSlotError
        If the section does not record a slide and its scale.
    ReadError
        If the slide is no longer where it was.
    SlideMismatchError
        If the file there now has another content.

    Examples
    --------
    >>> wsi = open_section_slide(section)  # doctest: +SKIP
    """
    known, name = facts(section), section_name(section)
    missing = [key for key in ("slide", "slide_id", "mpp_x", "mpp_y") if key not in known]
    if missing:
        raise MissingSlotError(
            f'section {name} has no {", ".join(missing)} in uns["{UNS}"]; '
            "read it with its slide: hf.read_visium, hf.read_st or hf.section_from_anndata"
        )
    if not Path(known["slide"]).is_file():
        raise ReadError(f"the slide of section {name}, {known['slide']}, is gone; restore it, or read the section anew")
    wsi = open_unscaled(known["slide"], cache_dir=cache_dir)
    if wsi.attrs[UNS]["slide_id"] != known["slide_id"]:
        raise SlideMismatchError(
            f"slide {known['slide']} is not the file that section {name} was read with; "
            "restore that file, or read the section anew"
        )
    set_scale(wsi, Scale(float(known["mpp_x"]), float(known["mpp_y"]), str(known["mpp_source"])))
    return wsi
