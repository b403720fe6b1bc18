"""Spots on tissue: own pairs pass, foreign ones are caught, and images without glass are not judged."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histoflow.io.tissue import on_tissue, tissue_mask

ELLIPSE = np.indices((120, 160)).transpose(1, 2, 0)
ELLIPSE = (((ELLIPSE - [60, 80]) / [35, 50]) ** 2).sum(axis=2) < 1


@pytest.mark.parametrize("glass", [(245, 244, 246), (235, 215, 232), (0, 0, 0)])
def test_tissue_is_told_from_white_tinted_and_black_background(glass):
    image = np.where(ELLIPSE[..., None], (150, 90, 160), glass).astype(np.uint8)
    assert (tissue_mask(image) == ELLIPSE).mean() > 0.97


def test_ink_does_not_hide_pale_tissue():
    image = np.where(ELLIPSE[..., None], (215, 180, 212), (245, 244, 246)).astype(np.uint8)
    image[2:15, 130:150] = 0
    assert tissue_mask(image)[ELLIPSE].mean() > 0.97


def test_glass_is_found_inside_when_the_border_is_tissue():
    image = np.where(ELLIPSE[..., None], (245, 244, 246), (150, 90, 160)).astype(np.uint8)
    assert (tissue_mask(image) == ~ELLIPSE).mean() > 0.97


def test_an_image_without_glass_is_not_judged():
    assert tissue_mask(np.full((50, 60, 3), (150, 90, 160), dtype=np.uint8)) is None


@settings(max_examples=20, deadline=None)
@given(dx=st.integers(-25, 25), dy=st.integers(-20, 20))
def test_the_best_shift_finds_moved_spots(dx, dy):
    row, column = np.nonzero(ELLIPSE)
    xy = np.column_stack([column, row])[::7] + np.array([dx, dy])
    here, best = on_tissue(ELLIPSE, xy.astype(float))
    assert best == pytest.approx(1)
    assert here <= best
    if dx == dy == 0:
        assert here == 1


def test_what_leaves_the_mask_does_not_come_back_at_the_other_side():
    mask = np.zeros((40, 40), dtype=bool)
    mask[:, :5] = mask[:, -5:] = True
    xy = np.column_stack([np.arange(20, 30), np.full(10, 20)]).astype(float)
    assert on_tissue(mask, xy) == pytest.approx((0, 0.5))
