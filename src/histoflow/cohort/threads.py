"""A fixed number of threads for one task, whatever the worker offers: sums in another order are other numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from threadpoolctl import threadpool_limits

# The limits hold for a whole process, so that a worker of several threads takes one task after the other.
_ONE_TASK = Lock()


@contextmanager
def fixed_threads(n_threads: int) -> Iterator[None]:
    """Compute with `n_threads` threads, in torch and in the libraries of linear algebra, one task at a time."""
    import torch

    with _ONE_TASK, threadpool_limits(n_threads):
        before = torch.get_num_threads()
        torch.set_num_threads(n_threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)
