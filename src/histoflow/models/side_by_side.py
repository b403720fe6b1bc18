"""Independent pieces of linear algebra beside each other: as many threads as BLAS may use, one BLAS thread in each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from threadpoolctl import threadpool_info, threadpool_limits

Run = Callable[..., Iterable[Any]]
"""Calls a function on each of some items and gives the results in their order, as `map` does."""


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
