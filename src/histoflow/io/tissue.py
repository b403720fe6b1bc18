"""Whether spots lie on the tissue of a slide: a mask of tissue against glass, and the test of the pair."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from histoflow._errors import SlideMismatchError
from histoflow.io.images import RGB

if TYPE_CHECKING:
    from wsidata import WSIData

_THUMBNAIL_PX = 512
_BORDER_PX = 4
_BLUR_PX = 1.5
# Ink and folds are no more tissue than tissue is: colour distances are cut here (of 441).
_STRONG_COLOUR = 80.0
_LIGHT, _DARK, _PALE = 170, 40, 60
_LEAST_GLASS = 0.02
_LEAST_SPOTS = 16
_LEAST_ON_TISSUE = 0.5
_LARGEST_GAIN = 0.05
_LEAST_GAINED_SPOTS = 5


def check_on_tissue(wsi: WSIData, xy: NDArray[np.float64], name: str) -> None:
    """Refuse a slide on whose tissue the spots do not lie.

    Two rules: at least half of the spots are on tissue; and no shift of all spots together puts more than 5 % more of
    them on tissue, as it would on a serial section mounted elsewhere. On the four serial sections C2–C5 of
    HER2ST patient C and on two olfactory bulbs, a section's own slide holds 95–100 % of its spots and a shift gains
    at most 1.6 %; another section's slide holds 18–85 % and a shift gains 8–78 %. Fewer than 16 spots, and an image
    without glass, are not tested.

    Parameters
    ----------
    wsi
        The opened slide.
    xy
        Spot centres (n_spots, 2), x, y in level-0 pixels.
    name
        The section, for texts.

    Raises
    ------
    SlideMismatchError
        With the fraction of spots on tissue.
    """
    if len(xy) < _LEAST_SPOTS:
        return
    image = thumbnail(wsi)
    mask = tissue_mask(image)
    if mask is None:
        return
    height, width = wsi.properties.shape
    here, best = on_tissue(mask, xy * [mask.shape[1] / width, mask.shape[0] / height])
    if here < _LEAST_ON_TISSUE:
        reason = f"only {here:.0%} of its {len(xy)} spots lie on tissue"
    elif best - here > max(_LARGEST_GAIN, _LEAST_GAINED_SPOTS / len(xy)):
        reason = f"{here:.0%} of its {len(xy)} spots lie on tissue, but shifted together {best:.0%} would"
    else:
        return
    raise SlideMismatchError(
        f"section {name} and its slide do not belong together: {reason}; check slide, spots_frame and spots "
        "(if it is the right slide, read all spots under tissue first and take a part of the section after that)"
    )


def thumbnail(wsi: WSIData, *, most_px: int = _THUMBNAIL_PX) -> RGB:
    """The slide reduced by area mean to at most `most_px` pixels a side, (height, width, 3)."""
    shapes = wsi.properties.level_shape
    level = max((i for i, shape in enumerate(shapes) if max(shape) >= most_px), default=0)
    height, width = shapes[level]
    reader: Any = wsi.reader
    image = reader.get_region(0, 0, width, height, level=level)
    step = -(-max(height, width) // most_px)
    rows, columns = height // step, width // step
    blocks = image[: rows * step, : columns * step].reshape(rows, step, columns, step, 3)
    reduced: RGB = blocks.mean(axis=(1, 3)).astype(np.uint8)
    return reduced


def tissue_mask(image: RGB) -> NDArray[np.bool_] | None:
    """Where a thumbnail shows tissue: far from the colour of the glass, by Otsu's threshold.

    Parameters
    ----------
    image
        Thumbnail (height, width, 3); its background may be white, tinted, or black.

    Returns
    -------
    Mask (height, width), or None where no glass is seen.
    """
    glass = _glass_colour(image)
    if glass is None:
        return None
    distance = np.linalg.norm(image - glass, axis=2)
    distance = ndimage.gaussian_filter(np.minimum(distance, _STRONG_COLOUR), _BLUR_PX)
    mask: NDArray[np.bool_] = distance > _otsu(distance)
    return mask


def _glass_colour(image: RGB) -> NDArray[np.float64] | None:
    b = _BORDER_PX
    border = np.concatenate([part.reshape(-1, 3) for part in (image[:b], image[-b:], image[:, :b], image[:, -b:])])
    colour: NDArray[np.float64] = np.median(border, axis=0)
    if _is_glass(colour[None])[0]:
        return colour
    pixels = image.reshape(-1, 3)
    glass = pixels[_is_glass(pixels)]
    return np.median(glass, axis=0) if len(glass) >= _LEAST_GLASS * len(pixels) else None


def _is_glass(pixels: NDArray[np.generic]) -> NDArray[np.bool_]:
    low, high = pixels.min(axis=1).astype(float), pixels.max(axis=1).astype(float)
    glass: NDArray[np.bool_] = (high <= _DARK) | ((low >= _LIGHT) & (high - low <= _PALE))
    return glass


def _otsu(values: NDArray[np.float64]) -> float:
    counts, edges = np.histogram(values, bins=256)
    centres = (edges[:-1] + edges[1:]) / 2
    below, above = np.cumsum(counts)[:-1], np.cumsum(counts[::-1])[::-1][1:]
    sums = np.cumsum(counts * centres)
    with np.errstate(invalid="ignore"):
        apart = (sums[:-1] / below - (sums[-1] - sums[:-1]) / above) ** 2 * below * above
    return float(centres[:-1][np.nanargmax(apart)])


def on_tissue(mask: NDArray[np.bool_], xy: NDArray[np.float64]) -> tuple[float, float]:
    """Fraction of spots on tissue, in place and after the best shift of all together.

    Parameters
    ----------
    mask
        Tissue (height, width).
    xy
        Spot centres (n_spots, 2), x, y in pixels of the mask.

    Returns
    -------
    Both fractions; the second is at least the first.
    """
    height, width = mask.shape
    column, row = np.clip(xy.astype(np.int64), 0, [width - 1, height - 1]).T
    spots = np.zeros(mask.shape)
    np.add.at(spots, (row, column), 1)
    # Correlation over all shifts at once; twice the size, so that what leaves one side does not enter at the other.
    size = (2 * height, 2 * width)
    shifted = np.fft.irfft2(np.fft.rfft2(mask, size) * np.fft.rfft2(spots, size).conj(), size)
    here = float(mask[row, column].mean())
    return here, max(here, float(shifted.max()) / len(xy))
