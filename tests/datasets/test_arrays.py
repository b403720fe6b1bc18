"""Spot arrays: distances between neighbours, places in the array, spots on tissue."""

import numpy as np
import pytest
from scipy.spatial import cKDTree

from histoflow.datasets.arrays import st_array, visium_array
from histoflow.datasets.fields import disc_offsets
from histoflow.datasets.tissue import FIELDS, Tissue


def test_visium_neighbours_are_six_at_100_um():
    spots = visium_array((2000, 1800))
    inner = (np.abs(spots.xy_um - (1000, 900)) < 600).all(axis=1)
    distances, _ = cKDTree(spots.xy_um).query(spots.xy_um[inner], k=8)
    np.testing.assert_allclose(distances[:, 1:7], 100)
    assert (distances[:, 7] > 150).all()


def test_visium_index_is_column_and_row_of_one_parity():
    spots = visium_array((2000, 1800))
    assert (spots.index.sum(axis=1) % 2 == 0).all()
    np.testing.assert_allclose(np.diff(spots.xy_um[:2], axis=0), [[100, 0]])
    assert (spots.xy_um < (2000, 1800)).all()


def test_st_spots_are_200_um_apart_up_to_the_printers_error():
    spots = st_array((3000, 2400), np.random.default_rng(0))
    assert len(spots.index) == 15 * 12
    for axis in (0, 1):
        slope = np.polyfit(spots.index[:, axis], spots.xy_um[:, axis], 1)[0]
        assert slope == pytest.approx(200, rel=0.005)
    assert (spots.xy_um < (3000, 2400)).all()


def test_spots_are_on_tissue_by_more_than_half():
    depth = np.full((225, 250), -1.0)
    depth[:, 125:] = 1.0  # tissue where x > 1000 µm
    tissue = Tissue(np.zeros((len(FIELDS), 225, 250)), depth, depth)
    spots = visium_array((2000, 1800))
    x = spots.xy_um[:, 0]
    clear = np.abs(x - 1000) > 8
    assert np.array_equal(spots.on(tissue)[clear], x[clear] > 1000)


def test_points_fill_the_spot_and_a_choice_keeps_their_order():
    spots = visium_array((2000, 1800))
    chosen = spots[np.array([5, 2])]
    assert np.array_equal(chosen.xy_um, spots.xy_um[[5, 2]])
    radius_px = 55 / 2 / 8
    assert chosen.points().shape == (2, len(disc_offsets(radius_px)), 2)
    assert np.hypot(*(chosen.points() * 8 - chosen.xy_um[:, None]).T).max() <= 55 / 2
