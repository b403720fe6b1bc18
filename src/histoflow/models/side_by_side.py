"""Independent pieces of linear algebra on all processors: a few threads with one BLAS thread each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from threadpoolctl import threadpool_info, threadpool_limits

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(call: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Call `call` on every item, on as many threads as BLAS may use here.

    An eigendecomposition gains little from more threads; several of them beside each other do. The number of BLAS
    threads is 1 while this runs, and afterwards what it was.

    Parameters
    ----------
    call
        Must be free to run beside itself.
    items
        Its arguments.

    Returns
    -------
    The results, in the order of the items.
    """
    given = list(items)
    n_threads = max((lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"), default=1)
    if min(n_threads, len(given)) < 2:
        return [call(item) for item in given]
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(min(n_threads, len(given))) as pool:
        return list(pool.map(call, given))
