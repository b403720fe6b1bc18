"""The lattice of super-pixels: nearest ones by brute force, tissue by centres, windows that cover, sizes of spots."""

import numpy as np
import pytest
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st
from shapely import Point, Polygon

from histoflow._errors import MissingSlotError
from histoflow._keys import UNS
from histoflow.pp.lattice import Lattice, n_superpixels_of, spot_um_of

LATTICE = Lattice.over((1000, 700), (0.5, 0.6))


def test_it_covers_the_slide():
    assert LATTICE.shape == (53, 63)
    np.testing.assert_allclose(LATTICE.centres(np.array([0]), np.array([2])), [[2.5 * 8 / 0.5, 0.5 * 8 / 0.6]])


@given(x=st.floats(0, 999), y=st.floats(0, 699), n=st.integers(1, 140))
def test_the_nearest_are_the_nearest(x, y, n):
    rows, columns = np.indices(LATTICE.shape).reshape(2, -1)
    um = (LATTICE.centres(rows, columns) - (x, y)) * LATTICE.mpp
    distance = np.hypot(*um.T)
    found = LATTICE.nearest([(x, y)], n)[0]
    assert len(set(found)) == n
    assert (np.diff(found) > 0).all() if n > 1 else True
    assert distance[found].max() <= np.sort(distance)[n - 1] + 1e-6


def test_equal_distances_are_decided_by_the_lattice_and_not_by_company():
    corner = LATTICE.centres(np.array([10]), np.array([10])) + np.array([[4 / 0.5, 4 / 0.6]])
    alone = LATTICE.nearest(corner, 2)
    beside = LATTICE.nearest(np.concatenate([[[3.0, 3.0]], corner]), 2)
    np.testing.assert_array_equal(beside[1], alone[0])
    np.testing.assert_array_equal(alone[0], [10 * 63 + 10, 10 * 63 + 11])


def test_tissue_is_where_centres_lie_in_polygons_and_not_in_their_holes():
    hole = [(400, 200), (600, 200), (600, 400), (400, 400)]
    outline = Polygon([(103, 57), (880, 97), (807, 611), (203, 507)], [hole])
    inside = LATTICE.inside([outline])
    rows, columns = np.indices(LATTICE.shape)
    wanted = np.array([[outline.contains(Point(*xy)) for xy in line] for line in LATTICE.centres(rows, columns)])
    np.testing.assert_array_equal(inside, wanted)
    both = LATTICE.inside([outline, Polygon(hole)])
    assert (both != wanted).sum() == both.sum() - wanted.sum() > 100


@pytest.mark.parametrize("side", [7, 16, 128])
def test_windows_cover_everything_once(side):
    seen = np.zeros(LATTICE.shape, int)
    for window in LATTICE.windows(side):
        seen[window] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize(("spot_um", "n"), [(55.0, 37), (100.0, 123), (8.0, 1), (2.0, 1)])
def test_a_spot_has_its_area_in_super_pixels(spot_um, n):
    assert n_superpixels_of(spot_um) == n


def test_the_diameter_is_stated_or_the_technologys_or_follows_from_the_distance():
    section = AnnData(shape=(1, 0))
    for known, um in (
        ({"kind": "visium", "pitch_um": 100.0}, 55.0),
        ({"kind": "st", "pitch_um": 200.0}, 100.0),
        ({"kind": "tiles", "pitch_um": 112.0}, 61.6),
        ({"kind": "st", "pitch_um": 400.0, "spot_um": 300.0}, 300.0),
    ):
        section.uns[UNS] = {"section": "S"} | known
        assert spot_um_of(section) == pytest.approx(um)
    section.uns[UNS] = {"section": "S", "kind": "h5ad"}
    with pytest.raises(MissingSlotError, match="section S tells neither the diameter nor the distance"):
        spot_um_of(section)
