"""Image files below the slide: their content id, their size, and the one conversion to a tiled pyramid."""

from __future__ import annotations

import hashlib
import importlib
import struct
import zlib
from collections.abc import Iterator
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histoflow._errors import MissingDependencyError, ReadError
from histoflow._files import atomic_path, cache_folder, locked

RGB = NDArray[np.uint8]
"""Image of shape (height, width, 3), 8 bits per channel."""
PLAIN_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
"""Images without tiles, pyramid or trustworthy scale: always converted before they are opened."""
TIFF_SUFFIXES = (".tif", ".tiff")

_TILE_PX = 256
_COARSEST_PX = 1024
_LARGEST_SINGLE_LEVEL_PX = 4096
_MOST_PIXELS = 1 << 32
_ID_BLOCKS, _ID_BLOCK = 64, 1 << 16
_FEW_PIXELS = 1 << 22
MOST_PACKED = 1100
"""Bytes, or pixels, that one byte of a file can hold: deflate makes nothing smaller than a part in 1032."""
_DECODING_ERRORS = (
    *(OSError, RuntimeError, SyntaxError, ValueError, LookupError, TypeError, ArithmeticError, AttributeError),
    *(EOFError, AssertionError, struct.error, zlib.error),
)


def extra(module: str) -> Any:
    """Import a library of the optional part that opens slides.

    Raises
    ------
    MissingDependencyError
        If it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as err:
        raise MissingDependencyError(
            f"opening slides needs {module}, which is not installed: pip install 'histoflow[slides]'"
        ) from err


def existing_file(path: str | Path, what: str) -> Path:
    """The absolute path of a file that is there.

    Raises
    ------
    ReadError
        If it is missing or a folder; `what` names its part in the text.
    """
    try:
        found = Path(path).expanduser().absolute()
        is_file = found.is_file()
    except (OSError, RuntimeError, ValueError) as err:  # too long for a name, or of a user that is not there
        raise ReadError(f"{what} {str(path)[:200]} cannot be a file ({err}); give an existing file") from err
    if not is_file:
        raise ReadError(f"{what} {path} {'is a folder' if found.is_dir() else 'does not exist'}; give an existing file")
    return found


def slide_id(path: str | Path) -> str:
    """Content id of a slide file, quick also for many gigabytes.

    SHA-256, as 64 hex digits, of the file's size and 64 evenly spaced blocks of 64 KiB (all of a file up to 4 MiB).

    Raises
    ------
    ReadError
        If the file cannot be read.
    """
    path = existing_file(path, "slide")
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    try:
        with path.open("rb") as handle:
            if size <= _ID_BLOCKS * _ID_BLOCK:
                digest.update(handle.read())
            else:
                for start in np.linspace(0, size - _ID_BLOCK, _ID_BLOCKS).astype(np.int64):
                    handle.seek(int(start))
                    digest.update(handle.read(_ID_BLOCK))
    except OSError as err:
        raise ReadError(f"cannot read slide {path}: {err.strerror or err}; check its permissions") from err
    return digest.hexdigest()


def needs_pyramid(path: Path) -> bool:
    """Whether a file must be converted before it opens as a slide: a plain image, or a TIFF without tiles or levels."""
    suffix = path.suffix.lower()
    if suffix not in TIFF_SUFFIXES:
        return suffix in PLAIN_SUFFIXES
    openslide = extra("openslide")
    vendor = openslide.OpenSlide.detect_format(path)
    if vendor != "generic-tiff":
        return vendor is None
    try:
        with openslide.OpenSlide(path) as slide:
            return bool(slide.level_count == 1 and max(slide.dimensions) > _LARGEST_SINGLE_LEVEL_PX)
    except openslide.OpenSlideError:
        return True


def pyramid_of(path: Path, identity: str, cache_dir: str | Path | None = None) -> Path:
    """The cached tiled pyramid of an image file, made on first need and never seen half written.

    Parameters
    ----------
    path
        An image that `needs_pyramid`.
    identity
        Its `slide_id`, which names the cached file.
    cache_dir
        Cache folder; None for the default.

    Raises
    ------
    ReadError
        If the image is damaged, too large, or not 8-bit grey or RGB.
    """
    cached = cache_folder(cache_dir) / "slides" / f"{identity}.tif"
    extra("filelock")
    if not cached.exists():
        with locked(cached):
            if not cached.exists():
                write_pyramid(cached, read_image(path))
    return cached


def write_pyramid(path: Path, image: RGB) -> None:
    """Write a lossless tiled TIFF whose levels halve, by area mean, until both sides are below 1024 pixels.

    Parameters
    ----------
    path
        File to write, atomically.
    image
        (height, width, 3), 8 bits per channel.
    """
    tifffile = extra("tifffile")
    with atomic_path(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=image.nbytes > 2**31) as writer:
        for number, level in enumerate(_levels(image)):
            writer.write(
                level,
                tile=(_TILE_PX, _TILE_PX),
                photometric="rgb",
                compression="zlib",
                compressionargs={"level": 1},
                subfiletype=int(number > 0),
                metadata=None,
            )


def _levels(image: RGB) -> Iterator[RGB]:
    yield image
    while max(image.shape[:2]) >= _COARSEST_PX and min(image.shape[:2]) > 1:
        image = _halved(image)
        yield image


def _halved(image: RGB) -> RGB:
    height, width = (side // 2 * 2 for side in image.shape[:2])
    total = np.zeros((height // 2, width // 2, image.shape[2]), dtype=np.uint16)
    for row in (0, 1):
        for column in (0, 1):
            total += image[row:height:2, column:width:2]
    return ((total + 2) >> 2).astype(np.uint8)


def read_image(path: Path) -> RGB:
    """Decode a whole image file to (height, width, 3).

    Raises
    ------
    ReadError
        If the image is damaged, too large, or not 8-bit grey or RGB.
    """
    is_tiff = path.suffix.lower() in TIFF_SUFFIXES
    # tifffile's own error is a ValueError only in its newer versions.
    errors = (*_DECODING_ERRORS, extra("tifffile").TiffFileError) if is_tiff else _DECODING_ERRORS
    try:
        return _read_tiff(path) if is_tiff else _read_plain(path)
    except ReadError:
        raise
    except errors as err:
        raise ReadError(f"cannot decode image {path} ({err}); it may be truncated: fetch or export it again") from err


def image_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels of a jpg, png or bmp, from its header alone.

    Raises
    ------
    ReadError
        If the header is damaged.
    """
    try:
        with SparingFile(path) as file, _plain_image(path, file) as image:
            width, height = image.size
            return width, height
    except _DECODING_ERRORS as err:
        raise ReadError(f"cannot decode image {path} ({err}); it may be truncated: fetch or export it again") from err


class SparingFile(BufferedReader):
    """A file of which a read makes room for no more than is left of it, whatever a header claims."""

    def __init__(self, path: Path) -> None:
        super().__init__(FileIO(path))
        self._size = path.stat().st_size

    def read(self, size: int | None = -1) -> bytes:
        """Read so many bytes, or what is left."""
        left = max(0, self._size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


def _plain_image(path: Path, file: BufferedReader) -> Any:
    # The format classes rather than Image.open, whose limit on pixels is meant for web servers and is global.
    from PIL.BmpImagePlugin import BmpImageFile
    from PIL.JpegImagePlugin import JpegImageFile
    from PIL.PngImagePlugin import PngImageFile

    formats = {".png": PngImageFile, ".bmp": BmpImageFile}
    return formats.get(path.suffix.lower(), JpegImageFile)(file)


def _read_plain(path: Path) -> RGB:
    from PIL import Image

    with SparingFile(path) as file, _plain_image(path, file) as image:
        _check_pixels(path, *image.size)
        if image.mode[0] in "IF":
            raise ReadError(f"image {path} has mode {image.mode}; export it with 8 bits per channel")
        if image.has_transparency_data:
            glass = Image.new("RGBA", image.size, "white")
            return np.asarray(Image.alpha_composite(glass, image.convert("RGBA")).convert("RGB"))
        return np.asarray(image.convert("RGB"))


def _read_tiff(path: Path) -> RGB:
    with SparingFile(path) as file, extra("tifffile").TiffFile(file) as tiff:
        series = tiff.series[0]
        sizes = dict(zip(series.axes, series.shape, strict=True))
        _check_pixels(path, sizes.get("X", 0), sizes.get("Y", 0))
        channels = [axis for axis, size in sizes.items() if axis not in "XY" and size > 1]
        colours = sizes.get(channels[0], 0) if channels else 1
        if series.dtype != np.uint8 or len(channels) > 1 or colours not in (1, 3, 4) or not {"X", "Y"} <= set(sizes):
            raise ReadError(
                f"TIFF {path} holds {series.dtype} with axes {series.axes}, shape {series.shape}; "
                "export it as 8-bit RGB or grey"
            )
        pixels = series.asarray()
    order = [series.axes.index(axis) for axis in ("Y", "X", *channels)]
    pixels = pixels.transpose(order + [axis for axis in range(pixels.ndim) if axis not in order])
    pixels = pixels.reshape(sizes["Y"], sizes["X"], colours)
    return np.ascontiguousarray(np.repeat(pixels, 3, axis=2) if colours == 1 else pixels[..., :3])


def _check_pixels(path: Path, width: int, height: int) -> None:
    pixels, most = width * height, max(_FEW_PIXELS, MOST_PACKED * path.stat().st_size)
    if not 0 < pixels <= min(most, _MOST_PIXELS):
        raise ReadError(
            f"image {path} of {path.stat().st_size} bytes claims {width} x {height} pixels; it is damaged, or too "
            "large to convert"
        )
