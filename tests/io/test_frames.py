"""Frames: where spot pixels land on the slide at hand, and when the slide is refused."""

import numpy as np
import pytest

from histoflow._errors import OptionError, ScaleWarning, SlideMismatchError
from histoflow.io.frames import Frames

VISIUM = Frames({"hires": 0.1, "lowres": 0.03}, (20000, 18000))


@pytest.mark.parametrize(
    ("frame", "size", "factor"),
    [
        ("fullres", (20000, 18000), 1),
        ("fullres", (20005, 17990), 1),
        ("hires", (2000, 1800), 0.1),
        ("lowres", (600, 540), 0.03),
        ("20000x18000", (5000, 4500), 0.25),
    ],
)
def test_a_named_frame_scales_spots(frame, size, factor):
    factors, name = VISIUM.place(frame, size, "HE.tif")
    np.testing.assert_allclose(factors, factor)
    assert name == frame


def test_the_full_size_is_recognised():
    assert VISIUM.place(None, (19990, 18010), "HE.tif")[1] == "fullres"


def test_the_hires_size_is_recognised_with_a_warning():
    with pytest.warns(ScaleWarning, match="size of the hires image"):
        factors, name = VISIUM.place(None, (2000, 1800), "HE.png")
    assert name == "hires"
    np.testing.assert_allclose(factors, 0.1)


def test_another_size_shows_all_sizes():
    with pytest.raises(SlideMismatchError, match=r"5000x5000 pixels.*fullres 20000x18000, hires 2000x1800, lowres"):
        VISIUM.place(None, (5000, 5000), "HE.png")


def test_a_named_frame_of_another_size_is_refused():
    with pytest.raises(SlideMismatchError, match=r"2000x1800 pixels, but the fullres image .* has 20000x18000"):
        VISIUM.place("fullres", (2000, 1800), "HE.png")


def test_a_frame_of_other_proportions_is_refused():
    with pytest.raises(SlideMismatchError, match="proportions differ"):
        Frames().place("1000x2000", (500, 500), "HE.png")


def test_unknown_frames_are_refused_by_name():
    with pytest.raises(OptionError, match=r"one of fullres or WxH .* got 'hires'"):
        Frames().place("hires", (10, 10), "HE.png")
    with pytest.raises(OptionError, match="got 'fulres'"):
        VISIUM.place("fulres", (10, 10), "HE.png")


def test_without_any_size_known_the_slide_is_taken_for_the_full_image():
    assert Frames().place(None, (10, 10), "HE.png")[1] == "fullres"
