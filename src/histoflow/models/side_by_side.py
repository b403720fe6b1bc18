"""Independent work beside each other: as many threads as BLAS, or torch, may use, with one thread of it in each."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Event
from typing import Any, TypeVar, cast

import torch
from threadpoolctl import threadpool_info, threadpool_limits

from histoflow._progress import track
from histoflow.flow.compiled import threads_of_torch

T = TypeVar("T")
Course = Generator[int, None, T]
"""Work that yields how many of its steps are done, after each of them, and returns what came of it."""
Run = Callable[..., Iterable[Any]]
"""Calls a function on each of some items and gives the results in their order, as `map` does."""
_ENDED = 0


@contextmanager
def side_by_side(worth_it: bool = True) -> Iterator[Run]:
    """Give what runs calls on threads, each with one thread of BLAS, while the block lasts.

    Eigendecompositions and products of middling size gain little from several threads of BLAS, and lose much where the
    processors are shared; several of them beside each other gain. Results are the same on any number of threads.
    Afterwards BLAS has as many threads as before.

    Parameters
    ----------
    worth_it
        Whether the calls take longer than to arrange this; otherwise they are run one after the other.
    """
    n_threads = max((lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"), default=1)
    if n_threads < 2 or not worth_it:
        yield map
        return
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(n_threads) as pool:
        yield pool.map


def finished(courses: Sequence[Course[T]], n_steps: int, label: str, *, beside: bool = True) -> list[T]:
    """Take courses to their ends, beside each other where torch may use several threads.

    Small networks gain little from a second thread each, and several of them much. On a thread of its own a course has
    torch to itself without further threads, and may draw from no generator but its own. When one fails, or the caller
    is interrupted, the others end after the step that they are in.

    Parameters
    ----------
    courses
        What to do.
    n_steps
        Steps of each at most.
    label
        What the progress bar says.
    beside
        False for courses of one device that is no processor: one after the other.

    Returns
    -------
    What the courses returned, in their order.
    """
    bar = iter(track(range(n_steps * len(courses)), label))

    def tell(n_done: int) -> None:
        for _ in range(n_done):
            next(bar, None)

    tell(1)  # the bar is at the first step; one more than there are end it
    n_threads = min(torch.get_num_threads(), len(courses)) if beside else 1
    if n_threads < 2:
        return [cast("T", _to_end(course, n_steps, tell, Event())) for course in courses]
    return _on_threads(n_threads, courses, n_steps, tell)


def _on_threads(n_threads: int, courses: Sequence[Course[T]], n_steps: int, tell: Callable[[int], None]) -> list[T]:
    stopped, done = Event(), SimpleQueue[int]()

    def work(course: Course[T]) -> T | None:
        try:
            return _to_end(course, n_steps, done.put, stopped)
        except BaseException:
            stopped.set()
            raise
        finally:
            done.put(_ENDED)

    with threadpool_limits(1, user_api="blas"), threads_of_torch(n_threads) as pool:
        try:
            futures, n_left = [pool.submit(work, course) for course in courses], len(courses)
            while n_left:
                n_done = done.get()
                n_left -= n_done == _ENDED
                tell(n_done)
            return [cast("T", future.result()) for future in futures]
        finally:
            stopped.set()


def _to_end(course: Course[T], n_steps: int, tell: Callable[[int], None], stopped: Event) -> T | None:
    """Take a course to its end, or to the step in which it is when it is stopped, and tell of every step once."""
    told = 0
    while not stopped.is_set():
        try:
            n_done = next(course)
        except StopIteration as end:
            if n_steps > told:
                tell(n_steps - told)
            returned: T = end.value
            return returned
        tell(n_done - told)
        told = n_done
    course.close()
    return None
