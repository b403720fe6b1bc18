"""Neighbours: against brute force, whole rings on lattices, no regard to order or orientation, groups, few spots."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import distance_matrix

from histoflow._errors import OptionError, ShapeError
from histoflow.pp.graph import neighbors, neighbors_within

JITTERED = np.random.default_rng(0).uniform(0, 2000, (150, 2))


def grid(side, *, hexagonal=False, pitch_um=100.0):
    """Square or hexagonal lattice of side x side spots, µm."""
    column, row = np.meshgrid(np.arange(side), np.arange(side))
    if not hexagonal:
        return pitch_um * np.stack([column, row], axis=-1).reshape(-1, 2)
    return pitch_um * np.stack([column + 0.5 * (row % 2), row * np.sqrt(3) / 2], axis=-1).reshape(-1, 2)


def as_sets(found):
    return [frozenset(i[m].tolist()) for i, m in zip(found.index, found.mask, strict=True)]


def turned(xy, angle, shift=(0.0, 0.0)):
    cos, sin = np.cos(angle), np.sin(angle)
    return (xy * [1, -1]) @ np.array([[cos, -sin], [sin, cos]]).T + shift


@given(seed=st.integers(0, 1000), n_spots=st.integers(2, 40), k=st.integers(1, 10), tolerance=st.floats(0, 0.3))
@settings(deadline=None, max_examples=50)
def test_neighbours_are_those_of_brute_force(seed, n_spots, k, tolerance):
    xy = np.random.default_rng(seed).uniform(0, 1000, (n_spots, 2))
    distance = distance_matrix(xy, xy)
    np.fill_diagonal(distance, np.inf)
    reach = np.sort(distance, axis=1)[:, min(k, n_spots - 1) - 1] * (1 + tolerance)
    expected = [frozenset(np.flatnonzero(row <= limit)) for row, limit in zip(distance, reach, strict=True)]
    found = neighbors(xy, k, tie_tolerance=tolerance)
    assert all(len(want) > 4 * k + 8 or want == got for want, got in zip(expected, as_sets(found), strict=True))


def test_neighbours_come_nearest_first():
    found = neighbors(JITTERED, 8)
    distance = np.linalg.norm(JITTERED[found.index] - JITTERED[:, None], axis=-1)
    assert (np.diff(distance, axis=1)[found.mask[:, 1:]] >= 0).all()


@pytest.mark.parametrize(
    ("hexagonal", "k", "ring"),
    [(False, 1, 4), (False, 4, 4), (False, 5, 8), (False, 8, 8), (True, 1, 6), (True, 6, 6), (True, 8, 12)],
)
def test_whole_rings_of_a_lattice_are_kept(hexagonal, k, ring):
    xy = grid(9, hexagonal=hexagonal)
    assert neighbors(xy, k).mask[40].sum() == ring


def test_rounded_pixels_do_not_break_rings():
    exact = grid(9, hexagonal=True, pitch_um=137.3)
    assert as_sets(neighbors(exact.round(), 8))[40] == as_sets(neighbors(exact, 8))[40]


@pytest.mark.parametrize("xy", [JITTERED, grid(8), grid(8, hexagonal=True)], ids=["jittered", "square", "hexagonal"])
@given(angle=st.floats(0, 7), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=20)
def test_order_rotation_mirror_and_shift_change_nothing(xy, angle, seed):
    order = np.random.default_rng(seed).permutation(len(xy))
    found = as_sets(neighbors(turned(xy, angle, (3e4, -2e4))[order], 8))
    back = [frozenset(order[list(near)].tolist()) for near in found]
    assert [back[i] for i in np.argsort(order)] == as_sets(neighbors(xy, 8))


@pytest.mark.parametrize("codes", [np.arange(150) % 3, np.array(["a", "b", "c"])[np.arange(150) % 3]])
def test_groups_are_as_if_alone(codes):
    together = as_sets(neighbors(JITTERED, 5, groups=codes))
    for code in np.unique(codes):
        members = np.flatnonzero(codes == code)
        alone = as_sets(neighbors(JITTERED[members], 5))
        assert [together[i] for i in members] == [frozenset(members[list(near)].tolist()) for near in alone]


@pytest.mark.parametrize("n_spots", [0, 1, 2, 5])
def test_few_spots_know_all_others_and_nothing_else(n_spots):
    found = neighbors(JITTERED[:n_spots], 8)
    assert found.index.shape == found.mask.shape == (n_spots, 8)
    assert found.index.dtype == np.int64
    assert as_sets(found) == [frozenset(range(n_spots)) - {i} for i in range(n_spots)]
    assert (found.index[~found.mask] == np.repeat(np.arange(n_spots), 8 - max(n_spots - 1, 0))).all()


def test_many_spots_in_one_place_stay_bounded():
    found = neighbors(np.zeros((200, 2)), 3)
    assert found.index.shape[1] <= 4 * 3 + 8 + 1
    assert (found.mask.sum(axis=1) >= 3).all()
    assert not ((found.index == np.arange(200)[:, None]) & found.mask).any()


def test_a_long_section_is_searched_in_blocks(monkeypatch):
    whole = neighbors(JITTERED, 8)
    monkeypatch.setattr("histoflow.pp.graph._BLOCK", 7)
    blocks = neighbors(JITTERED, 8)
    np.testing.assert_array_equal(whole.index, blocks.index)
    np.testing.assert_array_equal(whole.mask, blocks.mask)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"xy_um": np.zeros((4, 3))}, ShapeError, r"xy_um has shape \(4, 3\); give x and y"),
        ({"xy_um": 3.0}, ShapeError, r"xy_um has shape \(\)"),
        ({"groups": [0, 1]}, ShapeError, r"groups has shape \(2,\); give one code per spot, \(150,\)"),
        ({"n_neighbors": 0}, OptionError, "n_neighbors is 0; give at least 1"),
        ({"tie_tolerance": -0.1}, OptionError, r"tie_tolerance is -0\.1"),
        ({"xy_um": [[0, 0], [np.nan, 1], [np.inf, 1]]}, OptionError, "2 of 3 spots without a finite position"),
    ],
)
def test_wrong_input_is_named(arguments, error, text):
    with pytest.raises(error, match=text):
        neighbors(**{"xy_um": JITTERED, "n_neighbors": 8} | arguments)


@given(seed=st.integers(0, 1000), n_spots=st.integers(0, 40), radius=st.floats(1, 900))
@settings(deadline=None, max_examples=30)
def test_neighbours_within_a_radius_are_those_of_brute_force(seed, n_spots, radius):
    rng = np.random.default_rng(seed)
    xy, groups = rng.uniform(0, 1000, (n_spots, 2)), rng.integers(0, 3, n_spots)
    near = distance_matrix(xy, xy) <= radius
    wanted = near & (groups[:, None] == groups) & ~np.eye(n_spots, dtype=bool)
    np.testing.assert_array_equal(neighbors_within(xy, radius, groups=groups).toarray() > 0, wanted)


def test_a_spot_at_just_the_radius_is_within_however_it_is_turned():
    for angle in (0.0, 0.3, 2.1):
        found = neighbors_within(turned(grid(5), angle, (1e4, 3e3)), 100.0)
        n_near = np.asarray(found.sum(axis=1)).ravel()
        assert n_near.sum() == 2 * 2 * 5 * 4
        assert n_near.max() == 4


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"xy_um": np.zeros((4, 3))}, ShapeError, r"xy_um has shape \(4, 3\)"),
        ({"groups": [0, 1]}, ShapeError, r"groups has shape \(2,\)"),
        ({"radius_um": 0.0}, OptionError, r"radius_um is 0\.0; give µm above 0"),
        ({"xy_um": [[0, np.nan]]}, OptionError, "1 of 1 spots without a finite position"),
    ],
)
def test_wrong_input_to_a_radius_is_named(arguments, error, text):
    with pytest.raises(error, match=text):
        neighbors_within(**{"xy_um": JITTERED, "radius_um": 8.0} | arguments)
