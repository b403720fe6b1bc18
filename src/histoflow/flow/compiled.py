"""Whether the compiled passes are at hand, and how threads share them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from histoflow.flow.dropout import Keep


def compiled(x: Tensor) -> bool:
    """Whether compiled passes do the work on `x`: numba is installed, and `x` is what they take."""
    return _has_numba() and x.device.type == "cpu" and x.dtype in {torch.float32, torch.float64}


@cache
def _has_numba() -> bool:
    return find_spec("numba") is not None


@cache
def kernels() -> Any:
    """`histoflow.flow.kernels`; only where something is `compiled`."""
    return import_module("histoflow.flow.kernels")


def array(x: Tensor) -> NDArray[Any]:
    """The numbers of a tensor, not copied where they are contiguous."""
    made: NDArray[Any] = x.detach().contiguous().numpy()
    return made


def choice_of(keep: Keep) -> Any:
    """What was chosen, as the kernels take it."""
    return kernels().Choice(array(keep.words.view(len(keep.words), -1)), keep.least)


def epsilon_of(x: Tensor, epsilon: float) -> NDArray[Any]:
    """A constant in the type of `x`, shape (1,)."""
    return np.full(1, epsilon, array(x[:0]).dtype)


def in_parts(work: Callable[[tuple[int, int]], None], n_items: int) -> None:
    """Run `work` on (start, stop) of the parts of a range, on as many threads as torch uses; parts share no result."""
    n_parts = min(torch.get_num_threads(), n_items)
    if n_parts < 2:
        work((0, n_items))
        return
    ends = [n_items * part // n_parts for part in range(n_parts + 1)]
    with ThreadPoolExecutor(n_parts) as pool:
        list(pool.map(work, pairwise(ends)))
