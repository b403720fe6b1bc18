"""Trainings beside each other: every one ends as it would alone, progress counts once, a failure ends the others."""

import threading

import numpy as np
import pytest
import torch
from tests.models.conftest import GENES, make_section

from histoflow.models import Network, STFlow, Training, side_by_side, stflow
from histoflow.models.side_by_side import finished
from histoflow.pp import Panel

SMALL = {
    "network": Network(hidden_dim=16, pairwise_dim=16, n_layers=2, n_heads=2, n_components=8),
    "training": Training(max_epochs=3, crops_per_section=2, n_members=3),
}


def sections():
    return [make_section(f"S{number}", seed=number) for number in range(3)]


@pytest.fixture(params=[1, 3])
def n_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def told(monkeypatch):
    """How often the bar was moved on."""
    seen = []

    def track(items, label):
        for item in items:
            seen.append(item)
            yield item

    monkeypatch.setattr(side_by_side, "track", track)
    return seen


def course(result, n_steps, first=1):
    yield from range(first, n_steps + 1)
    return result


def test_results_keep_their_order_and_every_step_is_told_once(n_threads, told):
    courses = [course("a", 4), course("b", 2), course("c", 4, first=3), course("d", 0)]
    assert finished(courses, 4, "test") == ["a", "b", "c", "d"]
    assert told == list(range(16))


def test_on_threads_each_course_has_one_thread_of_torch(n_threads):
    def watched():
        yield 1
        return torch.get_num_threads(), threading.current_thread() is threading.main_thread()

    assert finished([watched(), watched(), watched()], 1, "test") == [(1, n_threads == 1)] * 3
    assert finished([watched(), watched()], 1, "test", beside=False) == [(n_threads, True)] * 2
    assert torch.get_num_threads() == n_threads


def test_the_error_of_a_course_is_raised_and_the_others_end(n_threads):
    ended = []

    def long():
        try:
            yield from range(1, 10_000_000)
        finally:
            ended.append(True)

    def failing():
        yield 1
        raise ZeroDivisionError("here")

    others = [] if n_threads == 1 else [long()]
    with pytest.raises(ZeroDivisionError, match="here"):
        finished([*others, failing(), course("never taken up", 1)], 10_000_000, "test")
    assert len(ended) == len(others)


@pytest.mark.usefixtures("n_threads")
def test_a_fit_is_the_same_on_any_number_of_threads(alone):
    fitted = STFlow(**SMALL, seed=3).fit(sections(), panel=Panel(tuple(GENES)))._state()
    for name, numbers in alone.items():
        np.testing.assert_array_equal(fitted[name], numbers, err_msg=name)


@pytest.fixture(scope="module")
def alone():
    """A fit of which every network was trained by itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stflow, "finished", lambda courses, *_, **__: [to_end(one) for one in courses])
        return STFlow(**SMALL, seed=3).fit(sections(), panel=Panel(tuple(GENES)))._state()


def to_end(course):
    while True:
        try:
            next(course)
        except StopIteration as end:
            return end.value
