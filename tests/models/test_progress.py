"""A fit that is killed after any epoch goes on from there to the same bits, and trains no finished network again."""

import numpy as np
import pytest
from tests.models.conftest import GENES, make_section

from histoflow import models
from histoflow.models import stflow, training

SIZES = {"hidden_dim": 8, "pairwise_dim": 8, "n_layers": 1, "n_heads": 1, "n_components": 4}
STEPS = {"max_epochs": 3, "patience": 2, "crops_per_section": 2, "n_members": 2, "n_searches": 2}
KINDS = {
    "stflow": lambda: models.STFlow(network=models.Network(**SIZES), training=models.Training(**STEPS)),
    "calibrated": lambda: models.Calibrated(KINDS["stflow"]()),
    "istar": lambda: models.SubspotRegressor(training=models.Training(**STEPS, batch_size=16), hidden_dim=4),
    "auto": lambda: models.Auto({"stflow": KINDS["stflow"](), "mean": models.MeanBaseline()}, level=0.9),
}
SECTIONS = [make_section(f"S{i}", seed=i, n_spots=25) for i in range(3)]


class KilledError(BaseException):
    """Stands for a process that ends; `except Exception` does not hold it up."""


class Kept:
    """Progress in memory, which ends the process after so many epochs."""

    def __init__(self):
        self.arrays, self.n_left, self.n_written, self.names = {}, None, 0, []

    def read(self, name):
        self.names.append(name)
        found = self.arrays.get(name)
        return None if found is None else {key: value.copy() for key, value in found.items()}

    def write(self, name, arrays):
        if self.n_left == 0:
            raise KilledError
        self.arrays[name] = {key: np.array(value) for key, value in arrays.items()}
        self.n_written += 1
        self.n_left = None if self.n_left is None else self.n_left - 1


def fitted(kind, progress=None):
    estimator = KINDS[kind]()
    estimator = estimator if progress is None else estimator.with_progress(progress)
    return estimator.fit(SECTIONS, panel=GENES)


def check_same(one, other):
    assert one.training_ == other.training_
    mine, theirs = one._state(), other._state()
    assert mine.keys() == theirs.keys()
    for name in mine:
        np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_that_is_killed_again_and_again_ends_in_the_same_bits(kind):
    whole, progress = fitted(kind), Kept()
    for n_epochs in (1, 2, 3, 2, 1):
        progress.n_left = n_epochs
        with pytest.raises(KilledError):
            fitted(kind, progress)
    progress.n_left = None
    n_before = progress.n_written
    assert n_before == 9
    check_same(fitted(kind, progress), whole)
    uninterrupted = Kept()
    fitted(kind, uninterrupted)
    assert progress.n_written == uninterrupted.n_written  # no epoch was run twice
    assert len(set(progress.arrays)) == len(uninterrupted.arrays)


def test_networks_that_are_done_are_not_trained_again(monkeypatch):
    progress = Kept()
    whole = fitted("stflow", progress)
    monkeypatch.setattr(training, "_epoch", lambda *_: pytest.fail("an epoch was run again"))
    check_same(fitted("stflow", progress), whole)


def test_every_training_of_a_fit_has_a_name_of_its_own():
    progress = Kept()
    fitted("stflow", progress)
    assert len(progress.names) == len(set(progress.names)) == STEPS["n_searches"] + STEPS["n_members"]


@pytest.mark.parametrize("changes", [{"seed": 1}, {"n_sample_steps": 3}, {"normalize": "none"}])
def test_what_was_kept_of_other_settings_is_not_taken_up(changes):
    progress = Kept()
    fitted("stflow", progress)
    before = set(progress.arrays)
    KINDS["stflow"]().clone(**changes).with_progress(progress).fit(SECTIONS, panel=GENES)
    assert not before & set(progress.names[len(before) :])


def test_what_was_kept_of_other_data_is_not_taken_up():
    progress = Kept()
    fitted("stflow", progress)
    before = set(progress.arrays)
    moved = [section.copy() for section in SECTIONS]
    for section in moved:
        section.obsm["scatter"] = section.obsm["scatter"][::-1].copy()
    KINDS["stflow"]().with_progress(progress).fit(moved, panel=GENES)
    assert not before & set(progress.names[len(before) :])


def test_early_stopping_goes_on_counting(monkeypatch):
    errors = iter([3.0, 2.0, 2.5, 2.0, 1.0])
    monkeypatch.setattr(stflow.STFlow, "_error", lambda *_: next(errors))
    steps = STEPS | {"max_epochs": 9, "n_searches": 1, "n_members": 1}
    model = models.STFlow(network=models.Network(**SIZES), training=models.Training(**steps))
    progress = Kept()
    progress.n_left = 3
    with pytest.raises(KilledError):
        model.with_progress(progress).fit(SECTIONS, panel=GENES)
    errors = iter([2.0, 1.0])
    progress.n_left = None
    searched = model.with_progress(progress).fit(SECTIONS, panel=GENES).history_["search"][0]
    assert searched["held_out"] == (3.0, 2.0, 2.5, 2.0)
    assert searched["best_epoch"] == 2
