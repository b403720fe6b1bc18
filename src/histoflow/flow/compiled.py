"""Where the compiled loops of `kernels` do the work, on which memory, and how threads share it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from copy import copy
from functools import cache
from importlib import import_module
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Result = TypeVar("Result")
_ALIGNMENT = 64


def compiled(x: Tensor) -> bool:
    """Whether compiled loops work on `x`: they do on a processor; elsewhere torch does the same."""
    return x.device.type == "cpu" and x.dtype in {torch.bfloat16, torch.float32, torch.float64}


@cache
def kernels() -> Any:
    """`histoflow.flow.kernels`, which is imported when it is first needed: numba takes a while."""
    return import_module("histoflow.flow.kernels")


def array(x: Tensor) -> NDArray[Any]:
    """The numbers of a tensor, not copied where they are contiguous; the bits of a bfloat16, which numpy has not."""
    x = x.detach().contiguous()
    made: NDArray[Any] = x.view(torch.uint16).numpy() if x.dtype == torch.bfloat16 else x.numpy()
    return made


def empty(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers not set yet, on the device of `like` and of its type if no other is given.

    On a processor in pages as large as the system has, which numpy asks for and torch does not: the first touch of each
    page takes longer than what is done with a small one.
    """
    return _made(np.empty, torch.empty, like, shape, dtype or like.dtype)


def zeros(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """As `empty`, all zero."""
    return _made(np.zeros, torch.zeros, like, shape, dtype or like.dtype)


def _made(
    of_bytes: Callable[..., Any],
    elsewhere: Callable[..., Tensor],
    like: Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    if like.device.type != "cpu":
        return elsewhere(shape, dtype=dtype, device=like.device)
    n_bytes = math.prod(shape) * dtype.itemsize
    held = of_bytes(n_bytes + _ALIGNMENT, np.uint8)
    start = -held.ctypes.data % _ALIGNMENT
    return torch.from_numpy(held[start : start + n_bytes]).view(dtype).view(shape)


def in_parts(
    work: Callable[[tuple[int, int]], Result], n_items: int, device: torch.device, least: int = 1
) -> list[Result]:
    """What `work` makes of the (start, stop) of each part of a range, in order; parts are handled side by side.

    There are as many as torch has threads for a processor, if each has at least so many items, and one elsewhere. In
    its thread a part has torch to itself without further threads: those would wait for work at full speed, in the way
    of the others.
    """
    n_threads = torch.get_num_threads()
    n_parts = min(n_threads, n_items // least) if device.type == "cpu" else 1
    if n_parts < 2:
        return [work((0, n_items))]
    ends, inference = [n_items * part // n_parts for part in range(n_parts + 1)], torch.is_inference_mode_enabled()
    halved = torch.autocast("cpu", torch.get_autocast_dtype("cpu"), enabled=torch.is_autocast_enabled("cpu"))

    def one(part: tuple[int, int]) -> Result:
        with torch.inference_mode(inference), torch.no_grad(), copy(halved):
            return work(part)

    first, *others = pairwise(ends)
    beside = [_threads(n_parts - 1).submit(one, part) for part in others]
    try:
        torch.set_num_threads(1)
        return [one(first), *(other.result() for other in beside)]
    finally:
        wait(beside)
        torch.set_num_threads(n_threads)  # of threads to come: those that stay keep to one


@cache
def _threads(n_threads: int) -> ThreadPoolExecutor:
    """Threads that stay, as those of torch do: to start them takes longer than many a part."""
    return ThreadPoolExecutor(n_threads, "histoflow", torch.set_num_threads, (1,))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.cache_clear)  # a copy of this process has none of its threads


@contextmanager
def threads_of_torch(n_threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads in each of which torch keeps to that one."""
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)  # of threads to come: those of the pool set it for themselves and for these
