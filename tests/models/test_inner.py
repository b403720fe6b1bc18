"""Inner folds: whole sections, else blocks with a buffer, else nothing; and in each case it is said."""

import warnings
from contextlib import nullcontext

import numpy as np
import pytest
from scipy.spatial import KDTree

from histoflow._errors import TrainingWarning
from histoflow.models.inner import inner_folds
from histoflow.models.spots import Spots


def lattice(name: str, n_spots: int, pitch_um: float = 200.0, told_um: float | None = None) -> Spots:
    side = int(np.ceil(np.sqrt(n_spots)))
    xy = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2)[:n_spots] * pitch_um
    return Spots(
        section=name,
        slide_id=name,
        ids=np.array([f"{name}-{i}" for i in range(n_spots)]),
        xy_um=xy.astype(float),
        tissue=np.zeros(n_spots, dtype=np.int64),
        pitch_um=pitch_um if told_um is None else told_um,
        embedding=np.zeros((n_spots, 0), dtype=np.float32),
    )


def quiet(sections):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrainingWarning)
        return inner_folds(sections)


DIAGONAL = 224 * 2**0.5


@pytest.mark.parametrize(("sizes", "n_folds"), [((5, 3, 4), 3), ((2, 3, 4, 5, 6), 5), ((3, 1, 4, 1, 5, 9, 2), 5)])
def test_three_sections_or_more_are_held_out_whole(sizes, n_folds):
    inner = inner_folds([lattice(f"S{i}", n) for i, n in enumerate(sizes)])
    assert inner.how == f"{n_folds} folds of whole sections"
    assert len(inner.folds) == n_folds
    section_of = np.repeat(np.arange(len(sizes)), sizes)
    for train, test in inner.folds:
        assert not set(section_of[train]) & set(section_of[test])
        np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(sum(sizes)))
    tested = np.concatenate([test for _, test in inner.folds])
    np.testing.assert_array_equal(np.sort(tested), np.arange(sum(sizes)))


@pytest.mark.parametrize(
    ("sections", "buffer_um"),
    [
        ([lattice("A", 100)], DIAGONAL),
        ([lattice("A", 100), lattice("B", 64)], DIAGONAL),
        ([lattice("A", 400, pitch_um=100.0)], DIAGONAL),  # no two patches may share pixels
        ([lattice("A", 100, told_um=np.nan)], DIAGONAL),
        ([lattice("A", 100), lattice("B", 100, told_um=240.0)], 360.0),  # the widest of the sections counts
    ],
)
def test_blocks_keep_their_distance_within_every_section(sections, buffer_um):
    inner = quiet(sections)
    assert inner.how == f"4 spatial blocks with a buffer of {buffer_um:.0f} µm"
    assert len(inner.folds) == 4
    sizes = [len(section) for section in sections]
    section_of, xy = np.repeat(np.arange(len(sizes)), sizes), np.concatenate([s.xy_um for s in sections])
    for train, test in inner.folds:
        for section in range(len(sections)):
            own_train, own_test = (rows[section_of[rows] == section] for rows in (train, test))
            assert len(own_train)
            assert len(own_test)
            assert KDTree(xy[own_train]).query(xy[own_test])[0].min() >= buffer_um
    tested = np.concatenate([test for _, test in inner.folds])
    np.testing.assert_array_equal(np.sort(tested), np.arange(sum(sizes)))


def test_no_more_is_left_out_than_the_buffer_asks_for():
    section = lattice("A", 100)
    for train, test in quiet([section]).folds:
        left_out = np.setdiff1d(np.arange(100), np.concatenate([train, test]))
        assert KDTree(section.xy_um[test]).query(section.xy_um[left_out])[0].max() < DIAGONAL


@pytest.mark.parametrize(
    "sections",
    [
        [lattice("A", 15)],
        [lattice("A", 100), lattice("B", 15)],
        [lattice("A", 16, pitch_um=50.0)],  # all within the buffer
    ],
)
def test_too_few_spots_hold_out_nothing(sections):
    inner = quiet(sections)
    assert inner.folds == ()
    assert inner.how == "nothing (too few spots to hold any out: fixed defaults)"


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ((100,), "1 training section: settings are chosen on 4 spatial blocks with a buffer of 317 µm, which flatters"),
        ((100, 100), "2 training sections: settings are chosen on 4 spatial blocks"),
        ((9,), r"1 training section: settings are chosen on nothing \(too few spots .*give three sections or more"),
        ((9, 9, 9), None),
    ],
)
def test_what_stands_in_for_sections_is_said(sizes, text):
    said = nullcontext() if text is None else pytest.warns(TrainingWarning, match=text)
    with said:
        inner_folds([lattice(f"S{i}", n) for i, n in enumerate(sizes)])
