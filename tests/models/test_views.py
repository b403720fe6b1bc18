"""Views: which columns of an embedding are looked at together."""

import numpy as np
import pytest

from histoflow._errors import EncoderMismatchError
from histoflow.models.views import views_of


def columns(*blocks):
    """Columns of blocks of two features."""
    return [2 * block + feature for block in blocks for feature in range(2)]


def test_an_embedding_of_one_part_has_one_view():
    for made in ({}, {"patch_um": [112.0], "context_um": []}):
        (whole,) = views_of(made, 7)
        np.testing.assert_array_equal(whole, np.arange(7))


def test_fields_of_view_and_radii_each_make_views():
    # Two features, two fields of view, two radii: blocks 0 1 at the place, 2 3 within the first radius, 4 5 the second.
    found = views_of({"patch_um": [112.0, 224.0], "context_um": [250.0, 500.0]}, 12)
    wanted = [columns(*range(6)), columns(0, 2, 4), columns(1, 3, 5), columns(0, 1, 2, 3), columns(0, 1, 4, 5)]
    assert [view.tolist() for view in found] == wanted


def test_a_single_radius_is_in_the_whole_already():
    found = views_of({"patch_um": [112.0], "context_um": [250.0]}, 4)
    assert [view.tolist() for view in found] == [[0, 1, 2, 3]]


def test_columns_that_cannot_be_so_many_parts_are_refused():
    with pytest.raises(EncoderMismatchError, match="make a multiple of 6"):
        views_of({"patch_um": [112.0, 224.0], "context_um": [250.0, 500.0]}, 13)


def test_parts_are_looked_at_in_every_field_and_radius():
    found = views_of({"patch_um": [112.0], "context_um": [250.0], "parts": ["0:1 3:5", "2:3"]}, 10)
    assert [view.tolist() for view in found[1:]] == [[0, 3, 4, 5, 8, 9], [2, 7]]


def test_a_part_that_a_field_has_not_is_refused():
    with pytest.raises(EncoderMismatchError, match=r"part '0:6' of the encoder has columns that a field of view of 5"):
        views_of({"parts": ["0:6"]}, 5)
