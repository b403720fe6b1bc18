"""Pixel frames: from the frame in which spot pixels are written to level-0 pixels of the slide at hand."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from histoflow._errors import OptionError, ScaleWarning, SlideMismatchError

FULLRES = "fullres"
_TOLERANCE = 0.01

Size = tuple[float, float]
"""Width and height in pixels."""


@dataclass(frozen=True)
class Frames:
    """What a section's source says about its image frames.

    Spot pixels are written in the full-resolution frame. `spots_frame` says where the slide at hand stands to it:

    - ``"fullres"``: the slide is the full-resolution image; spot pixels are its level-0 pixels;
    - ``"hires"``, ``"lowres"`` (Visium): the slide is that reduced image; spot pixels are multiplied by its factor;
    - ``"WxH"``: spot pixels are those of an image of W × H pixels of which the slide is a resized copy.

    Parameters
    ----------
    factors
        Pixels of a reduced image per full-resolution pixel, by frame name.
    fullres_size
        Width and height of the full-resolution image as far as known (from a reduced image and its factor).
    """

    factors: dict[str, float] = field(default_factory=dict)
    fullres_size: Size | None = None

    def place(self, spots_frame: str | None, size: tuple[int, int], slide: str) -> tuple[NDArray[np.float64], str]:
        """How spot pixels become level-0 pixels of the slide.

        Parameters
        ----------
        spots_frame
            As in the class; None to tell it from the slide's size.
        size
            Width and height of the slide, level 0.
        slide
            Name of the slide, for texts.

        Returns
        -------
        Slide pixels per spot pixel, (x, y), and the name of the frame.

        Raises
        ------
        OptionError
            If the frame is none of those above.
        SlideMismatchError
            If the slide has not the size that this frame has.

        Warns
        -----
        ScaleWarning
            If no frame was given and the slide is a reduced image.
        """
        if spots_frame is None:
            spots_frame = self._frame_of(size, slide)
        if match := re.fullmatch(r"(\d+)x(\d+)", spots_frame):
            return _resized((int(match[1]), int(match[2])), size, slide), spots_frame
        known = {FULLRES: 1.0, **self.factors}
        if spots_frame not in known:
            raise OptionError(
                f"spots_frame must be one of {', '.join(known)} or WxH in pixels (such as 6954x7435) here, "
                f"got {spots_frame!r}"
            )
        expected = self._size(known[spots_frame])
        if expected is not None and not _same(expected, size):
            raise SlideMismatchError(
                f"slide {slide} has {_show(size)} pixels, but the {spots_frame} image that belongs to the spots has "
                f"{_show(expected)}; give that slide, or name its frame with spots_frame= (fullres, hires or WxH)"
            )
        return np.full(2, known[spots_frame]), spots_frame

    def is_fullres(self, size: Size) -> bool:
        """Whether an image of this size may be the full-resolution image, whose size need not be known."""
        return self.fullres_size is None or _same(self.fullres_size, size)

    def _frame_of(self, size: Size, slide: str) -> str:
        if self.is_fullres(size):
            return FULLRES
        sizes = {name: self._size(factor) for name, factor in self.factors.items()}
        for name, expected in sizes.items():
            if expected is not None and _same(expected, size):
                text = f"slide {slide} has the size of the {name} image: spots are placed in that frame, detail is lost"
                warnings.warn(text, ScaleWarning, stacklevel=3)
                return name
        offered = ", ".join(f"{name} {_show(s)}" for name, s in {FULLRES: self.fullres_size, **sizes}.items() if s)
        raise SlideMismatchError(
            f"slide {slide} has {_show(size)} pixels, which is none of the images of the spots ({offered}); "
            "give the slide that was aligned, or its frame with spots_frame='WxH'"
        )

    def _size(self, factor: float) -> Size | None:
        if self.fullres_size is None:
            return None
        return self.fullres_size[0] * factor, self.fullres_size[1] * factor


def _resized(frame: Size, size: Size, slide: str) -> NDArray[np.float64]:
    factor = np.divide(size, np.maximum(frame, 1)).astype(np.float64)
    if not 1 - _TOLERANCE < factor[0] / factor[1] < 1 + _TOLERANCE:
        raise SlideMismatchError(
            f"slide {slide} has {_show(size)} pixels and is no resized copy of the spots' frame of {_show(frame)}, "
            "as the proportions differ; check spots_frame and the slide"
        )
    return factor


def _same(a: Size, b: Size) -> bool:
    # A reduced image is rounded to whole pixels, which leaves the full size known to within a part of a percent.
    return bool(np.allclose(a, b, rtol=_TOLERANCE, atol=1))


def _show(size: Size) -> str:
    return f"{size[0]:.0f}x{size[1]:.0f}"
