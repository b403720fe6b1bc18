"""Shuffled counts: the same rows under other spots, the same way for one seed, and the input as it was."""

import numpy as np
import pytest
from tests.models.conftest import make_section

from histoflow.bench import shuffle_counts
from histoflow.pp.expression import library_size


@pytest.fixture
def section():
    return make_section("S", seed=3)


def test_rows_are_the_same_under_other_spots(section):
    before, after = section.X.toarray(), shuffle_counts(section, seed=0).X.toarray()
    assert sorted(map(tuple, after)) == sorted(map(tuple, before))
    assert (after != before).any(axis=1).mean() > 0.8
    np.testing.assert_array_equal(np.sort(library_size(section)), np.sort(after.sum(axis=1)))


def test_places_names_and_embeddings_stay(section):
    shuffled = shuffle_counts(section, seed=0)
    assert list(shuffled.obs_names) == list(section.obs_names)
    assert list(shuffled.var_names) == list(section.var_names)
    for slot in section.obsm:
        np.testing.assert_array_equal(shuffled.obsm[slot], section.obsm[slot])
    assert shuffled.uns["histoflow"] == section.uns["histoflow"]


def test_a_seed_is_one_permutation(section):
    first, again, other = (shuffle_counts(section, seed=seed).X.toarray() for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("dense", [False, True])
def test_the_input_is_not_changed(section, dense):
    if dense:
        section.X = section.X.toarray()
    before = section.copy()
    shuffled = shuffle_counts(section, seed=0)
    shuffled.X *= 0
    shuffled.obsm["scatter"][:] = 0
    np.testing.assert_array_equal(section.to_df(), before.to_df())
    np.testing.assert_array_equal(section.obsm["scatter"], before.obsm["scatter"])
