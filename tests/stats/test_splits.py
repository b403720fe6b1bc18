"""Splits: never one group on both sides, honest labels, blocks that partition the spots and keep their distance."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import cdist

from histoflow._errors import NotFiniteError, OptionError, ShapeError, SplitError
from histoflow.stats import SectionFacts, describe_shares, leave_one_out, spatial_blocks

LEVELS = ["section", "block", "patient", "study"]
SERIAL = [SectionFacts(f"C{i}", "C", "C1", "her2st", order=i) for i in (2, 3, 4, 5)]


def random_fact(index, numbers):
    block, study = numbers
    return SectionFacts(f"s{index}", f"p{block // 2}", f"b{block}", f"t{study}", order=index)


COHORTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=8).map(
    lambda rows: [random_fact(index, row) for index, row in enumerate(rows)]
)


@pytest.mark.parametrize("by", LEVELS)
@given(facts=COHORTS)
def test_a_group_is_never_on_both_sides_and_every_section_is_held_out_once(by, facts):
    if len({getattr(fact, by) for fact in facts}) < 2:
        with pytest.raises(SplitError, match="at least 2 are needed"):
            leave_one_out(facts, by=by)
        return
    folds = leave_one_out(facts, by=by)
    assert sorted(i for fold in folds for i in fold.test) == list(range(len(facts)))
    for fold in folds:
        assert sorted(fold.train + fold.test) == list(range(len(facts)))
        assert {getattr(facts[i], by) for i in fold.test} == {fold.name}
        assert fold.name not in {getattr(facts[i], by) for i in fold.train}
        assert fold.shares == describe_shares([facts[i] for i in fold.train], [facts[i] for i in fold.test])


def test_serial_sections_are_labelled_as_what_they_are():
    folds = leave_one_out(SERIAL)
    assert [(fold.name, fold.train, fold.test) for fold in folds][1] == ("C3", (0, 2, 3), (1,))
    assert {fold.shares for fold in folds} == {"adjacent serial sections of one block: optimistic"}


@pytest.mark.parametrize(
    ("test", "label"),
    [
        (("s", "P", "B", "S", 1), "same section: optimistic"),
        (("x", "P", "B", "S", 2), "adjacent serial sections of one block: optimistic"),
        (("x", "P", "B", "S", 3), "same block, serial: optimistic"),
        (("x", "P", "B", "S", None), "same block, serial: optimistic"),
        (("x", None, "B", "S", None), "same block, serial: optimistic"),
        (("x", "P", None, "S", 2), "same patient, block not stated"),
        (("x", "P", "other", "S", 2), "same patient, another block"),
        (("x", "P", "other", "other", None), "same patient, another block"),
        (("x", None, None, None, None), "patient not stated"),
        (("x", None, "other", "S", None), "patient not stated"),
        (("x", "other", None, "S", None), "same study, another patient"),
        (("x", "other", "other", None, 2), "another patient, study not stated"),
        (("x", "other", "other", "other", None), "another patient, another study"),
    ],
)
def test_labels_from_worst_to_best(test, label):
    train = SectionFacts("s", "P", "B", "S", 1)
    assert describe_shares([train], [SectionFacts(*test)]) == label


def test_the_worst_pair_names_the_fold():
    far, near = SectionFacts("far", "Q", "Q1", "other"), SectionFacts("near", "C", "C1", "her2st", order=1)
    assert describe_shares([far], SERIAL) == "another patient, another study"
    assert describe_shares([far, near], SERIAL) == "adjacent serial sections of one block: optimistic"


@pytest.mark.parametrize("by", ["patient", "block", "study"])
def test_a_level_that_is_not_stated_is_refused_and_names_the_sections(by):
    facts = [*SERIAL, SectionFacts("V1"), SectionFacts("V2")]
    with pytest.raises(SplitError, match=f"cannot split by {by}: not stated for V1, V2; fill the column '{by}'"):
        leave_one_out(facts, by=by)


def test_one_group_is_not_a_split():
    with pytest.raises(SplitError, match=r"by patient: 4 sections give 1 group \(C\), at least 2 are needed"):
        leave_one_out(SERIAL, by="patient")


def test_repeated_section_ids_are_refused():
    with pytest.raises(SplitError, match="section ids must be unique, but C2 came more than once"):
        leave_one_out([*SERIAL, SERIAL[0]])


def test_a_block_of_two_patients_is_refused():
    facts = [SectionFacts("A", "P", "1"), SectionFacts("B", "Q", "1")]
    with pytest.raises(SplitError, match="section B: block '1' is said to come from patient 'Q', elsewhere from 'P'"):
        leave_one_out(facts, by="patient")


def test_unknown_levels_empty_ids_and_empty_sides_are_refused():
    with pytest.raises(OptionError, match="by must be one of section, block, patient, study, got 'slide'"):
        leave_one_out(SERIAL, by="slide")
    with pytest.raises(OptionError, match="section 'A': patient is an empty text"):
        SectionFacts("A", patient="")
    with pytest.raises(SplitError, match="sections on both sides, got 4 to train and 0 to test"):
        describe_shares(SERIAL, [])


LATTICE = np.stack(np.meshgrid(np.arange(12), np.arange(7)), axis=-1).reshape(-1, 2) * 100.0
CLOUD = np.random.default_rng(0).gamma(2.0, (900, 250), size=(101, 2))  # skewed and elongated: its axis has a direction
PLACES = arrays(float, st.tuples(st.integers(2, 30), st.just(2)), elements=st.integers(0, 20).map(lambda i: 100.0 * i))


def partition(blocks):
    return {frozenset(test.tolist()) for _, test in blocks}


@given(xy=PLACES, n_folds=st.integers(2, 6), buffer_um=st.sampled_from([0.0, 100.0, 250.0]))
def test_blocks_partition_the_spots_and_train_keeps_its_distance(xy, n_folds, buffer_um):
    try:
        blocks = spatial_blocks(xy, n_folds, buffer_um=buffer_um)
    except SplitError:
        # Only where some block leaves nothing at that distance; without a buffer every fold can be trained.
        assert buffer_um > 0
        free = spatial_blocks(xy, n_folds, buffer_um=0)
        assert any((cdist(xy[train], xy[test]).min(axis=1) < buffer_um).all() for train, test in free)
        return
    assert len(blocks) == min(n_folds, len(xy))
    assert sorted(np.concatenate([test for _, test in blocks])) == list(range(len(xy)))
    sizes = {len(test) for _, test in blocks}
    assert max(sizes) - min(sizes) <= 1
    for train, test in blocks:
        distance = cdist(xy, xy[test]).min(axis=1)
        outside = ~np.isin(np.arange(len(xy)), test)
        np.testing.assert_array_equal(train, np.flatnonzero(outside & (distance >= buffer_um)))


def test_blocks_are_cut_across_the_longer_axis():
    strip = LATTICE[LATTICE[:, 1] < 300]
    tests = [test for _, test in spatial_blocks(strip, 4, buffer_um=150)]
    assert [sorted(set(strip[test, 0])) for test in tests] == [
        [0, 100, 200],
        [300, 400, 500],
        [600, 700, 800],
        [900, 1000, 1100],
    ]


@given(shift=st.tuples(st.floats(-1e5, 1e5), st.floats(-1e5, 1e5)), n_folds=st.integers(2, 7))
def test_a_shift_changes_nothing_even_on_a_lattice(shift, n_folds):
    square = LATTICE[LATTICE[:, 0] < 700]
    for xy in (LATTICE, square):
        moved = spatial_blocks(xy + shift, n_folds, buffer_um=0)
        assert partition(moved) == partition(spatial_blocks(xy, n_folds, buffer_um=0))


@given(angle=st.floats(0, 2 * np.pi), n_folds=st.integers(2, 7))
def test_a_rotation_changes_nothing_where_there_is_a_longer_axis(angle, n_folds):
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turned = spatial_blocks(CLOUD @ rotation.T, n_folds, buffer_um=0)
    assert partition(turned) == partition(spatial_blocks(CLOUD, n_folds, buffer_um=0))


@given(order=st.permutations(range(len(LATTICE))), n_folds=st.integers(2, 5))
def test_the_order_of_the_spots_changes_nothing(order, n_folds):
    shuffled = spatial_blocks(LATTICE[order], n_folds, buffer_um=0)
    named = {frozenset(order[i] for i in test) for _, test in shuffled}
    assert named == partition(spatial_blocks(LATTICE, n_folds, buffer_um=0))


def test_fewer_spots_than_folds_are_held_out_one_by_one():
    blocks = spatial_blocks([[0, 0], [500, 0], [0, 900]], 5, buffer_um=200)
    assert sorted(test.tolist() for _, test in blocks) == [[0], [1], [2]]


def test_spots_in_one_place_are_still_split():
    blocks = spatial_blocks(np.zeros((4, 2)), 2, buffer_um=0)
    assert [(train.tolist(), test.tolist()) for train, test in blocks] == [([2, 3], [0, 1]), ([0, 1], [2, 3])]


def test_a_buffer_that_leaves_nothing_is_told():
    with pytest.raises(SplitError, match=r"buffer_um=400 leaves no training spot: all 2 lie within 200 µm of the 2"):
        spatial_blocks([[0, 0], [100, 0], [200, 0], [300, 0]], 2, buffer_um=400)


def test_one_spot_cannot_be_split():
    with pytest.raises(SplitError, match="spatial blocks need at least 2 spots, got 1"):
        spatial_blocks([[0, 0]], 2, buffer_um=0)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((np.zeros((5, 3)), 2, 0), ShapeError, r"xy_um must have shape \(n_spots, 2\), got \(5, 3\)"),
        (([[0, np.nan], [1, 1]], 2, 0), NotFiniteError, "xy_um holds NaN or infinite positions"),
        ((LATTICE, 1, 0), OptionError, "n_folds must be at least 2, got 1"),
        ((LATTICE, 2, -1), OptionError, "buffer_um must be a distance in µm of at least 0, got -1"),
        ((LATTICE, 2, np.nan), OptionError, "buffer_um must be a distance in µm of at least 0, got nan"),
    ],
)
def test_wrong_arguments_say_what_came(arguments, error, text):
    *positional, buffer_um = arguments
    with pytest.raises(error, match=text):
        spatial_blocks(*positional, buffer_um=buffer_um)
