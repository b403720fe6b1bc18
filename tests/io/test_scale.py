"""Scale: the pitch fit recovers every affine scale it may, and contradictions are told."""

import warnings

import numpy as np
import pytest
import scipy.spatial
from hypothesis import given
from hypothesis import strategies as st

from histoflow._errors import OptionError, ResolutionError, ScaleWarning
from histoflow.io.scale import (
    Scale,
    choose_scale,
    distinct_places,
    fit_pitch,
    given_scale,
    is_plausible,
    nearest_distance,
    nearest_pitch,
    st_step,
    visium_step,
)

GRID = np.stack(np.meshgrid(np.arange(9), np.arange(7)), axis=-1).reshape(-1, 2)
HEXAGONS = np.array([(c, r) for r in range(8) for c in range(12) if (r + c) % 2 == 0])


def rotation(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


@given(
    mpp_x=st.floats(0.2, 6),
    aspect=st.floats(0.8, 1.25),
    angle=st.floats(0, 2 * np.pi),
    mirror=st.sampled_from([1.0, -1.0]),
    shift=st.floats(-1e4, 1e4),
)
def test_pitch_is_recovered_under_rotation_mirror_shift_and_anisotropy(mpp_x, aspect, angle, mirror, shift):
    um = (HEXAGONS * visium_step() * [mirror, 1]) @ rotation(angle).T
    scale = fit_pitch(HEXAGONS, um / [mpp_x, mpp_x * aspect] + shift, visium_step())
    assert (scale.mpp_x, scale.mpp_y) == pytest.approx((mpp_x, mpp_x * aspect), rel=1e-6)
    assert scale.source == "pitch"


def test_visium_neighbours_are_one_pitch_apart():
    assert nearest_distance(HEXAGONS * visium_step()) == pytest.approx(100)
    assert nearest_distance(HEXAGONS * visium_step(55.0)) == pytest.approx(55)


def test_points_of_one_place_are_apart_by_nothing():
    assert nearest_distance(np.repeat(GRID * 50.0, [3] * 40 + [1] * 23, axis=0)) == 0
    assert nearest_distance(np.repeat(GRID * 50.0, [2] * 10 + [1] * 53, axis=0)) == 50
    np.testing.assert_array_equal(distinct_places(GRID[[5, 2, 5, 0, 2, 5]]), ([0, 1, 3], [3, 2, 1]))


def test_places_that_are_no_numbers_are_not_one_place():
    assert len(distinct_places(np.full((3, 2), np.nan))[0]) == 3


def test_a_tree_is_given_each_place_once(monkeypatch):
    # Of points of one place it compares all with all.
    asked, tree = [], scipy.spatial.KDTree
    monkeypatch.setattr("scipy.spatial.KDTree", lambda points: asked.append(len(points)) or tree(points))
    nearest_distance(np.repeat(GRID * 50.0, 3, axis=0))
    assert asked == [len(GRID)]


@pytest.mark.parametrize("points", [GRID[:0], GRID[:1], GRID[:2], GRID[:9], np.repeat(GRID[:1], 5, axis=0)])
def test_fewer_than_three_spots_or_one_line_leave_the_pitch_open(points):
    assert fit_pitch(points, points * 50.0, 200) is None


def test_spots_off_the_array_are_refused():
    pixels = np.random.default_rng(0).permutation(GRID * 50.0)
    with pytest.raises(ResolutionError, match="spot pixels do not follow the array positions"):
        fit_pitch(GRID, pixels, 200)


def test_a_square_grid_taken_for_visium_is_refused():
    with pytest.raises(ResolutionError, match="too far apart for one image"):
        fit_pitch(GRID, GRID * 50.0, visium_step())


def test_jitter_of_a_tenth_moves_the_scale_little():
    pixels = GRID * 50.0 + np.random.default_rng(0).normal(0, 5, GRID.shape)
    assert fit_pitch(GRID, pixels, 200).mpp_x == pytest.approx(4, rel=0.02)


def test_one_k_arrays_step_one_pitch_and_two_k_arrays_half():
    one_k = np.stack(np.meshgrid(np.arange(1, 34), np.arange(1, 36)), axis=-1).reshape(-1, 2)
    two_k = np.concatenate([one_k * 2 - 1, one_k * 2])
    assert st_step(one_k) == 200
    assert st_step(two_k) == 100
    assert st_step(two_k, pitch_um=300) == 150
    assert st_step(two_k[two_k.max(axis=1) < 20]) == 100


def test_an_array_that_cannot_be_told_has_no_step():
    assert st_step(np.array([[1, 1], [3, 3], [5, 1]])) is None
    assert st_step(GRID * 6) == 100
    large = np.stack(np.meshgrid(np.arange(60), np.arange(60)), axis=-1).reshape(-1, 2)
    assert st_step(large) is None
    assert st_step(large, pitch_um=50) == 50


def test_nearest_pitch_is_isotropic_and_open_below_three_spots():
    scale = nearest_pitch(HEXAGONS * visium_step() / 0.5, 100)
    assert (scale.mpp_x, scale.mpp_y) == pytest.approx((0.5, 0.5))
    assert nearest_pitch(np.zeros((2, 2)), 100) is None
    assert nearest_pitch(np.zeros((5, 2)), 100) is None


@pytest.mark.parametrize(("mpp", "flagged"), [((1, 1.029), False), ((1.04, 1), True)])
def test_more_than_three_percent_is_anisotropic(mpp, flagged):
    assert Scale(*mpp, "given").anisotropic is flagged


def test_resizing_keeps_the_field_of_view():
    scale = Scale(0.5, 0.6, "pitch").resized([0.5, 2])
    assert (scale.mpp_x, scale.mpp_y) == pytest.approx((1.0, 0.3))


def test_72_96_and_300_dpi_are_no_scale():
    assert not any(is_plausible(Scale(25400 / dpi, 25400 / dpi, "metadata")) for dpi in (72, 96, 300))
    assert is_plausible(Scale(0.25, 0.25, "metadata"))


A, B = Scale(0.5, 0.5, "metadata"), Scale(0.6, 0.6, "pitch")


def test_given_wins_over_metadata_over_pitch():
    near = Scale(0.51, 0.51, "pitch")
    assert choose_scale("s", given=given_scale(0.49), metadata=A, pitch=near).source == "given"
    assert choose_scale("s", metadata=A, pitch=near) == A
    assert choose_scale("s", pitch=near) == near


def test_no_source_says_how_to_give_one():
    with pytest.raises(ResolutionError, match=r"scale of HE\.jpg is unknown.*mpp= \(--mpp, or the manifest's column"):
        choose_scale("HE.jpg")


def test_metadata_against_pitch_shows_both():
    with pytest.raises(ResolutionError, match=r"metadata say 0\.5 .*pitch of its spot array says 0\.6 "):
        choose_scale("s", metadata=A, pitch=B)


def test_metadata_against_pitch_on_one_axis_is_a_contradiction_too():
    with pytest.raises(ResolutionError, match="contradictory"):
        choose_scale("s", metadata=A, pitch=Scale(0.5, 0.53, "pitch"))


def test_given_against_metadata_wins_with_a_warning():
    with pytest.warns(ScaleWarning, match=r"the given 0\.7 .* is used, although its metadata says 0\.5"):
        assert choose_scale("s", given=given_scale(0.7), metadata=A).mpp_x == 0.7


def test_anisotropy_is_told_and_both_are_kept():
    with pytest.warns(ScaleWarning, match="pixels are not square"):
        assert choose_scale("s", pitch=Scale(4.6, 4.2, "pitch")) == Scale(4.6, 4.2, "pitch")


def test_sources_five_percent_apart_are_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choose_scale("s", metadata=A, pitch=Scale(0.524, 0.524, "pitch"))


@pytest.mark.parametrize("mpp", [0, -1, 72, float("nan"), "half", (1, 2, 3)])
def test_an_impossible_mpp_is_refused(mpp):
    with pytest.raises(OptionError, match="mpp"):
        given_scale(mpp)
