"""Whether the compiled passes are at hand, and how threads share them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from histoflow.flow.dropout import Keep


def kernels_for(x: Tensor) -> ModuleType | None:
    """`histoflow.flow.kernels`, where numba is installed and `x` is what it takes; None where torch does the work."""
    takes = x.device.type == "cpu" and x.dtype in {torch.float32, torch.float64}
    return _kernels() if takes else None


@cache
def _kernels() -> ModuleType | None:
    return import_module("histoflow.flow.kernels") if find_spec("numba") else None


def array(x: Tensor) -> NDArray[Any]:
    """The numbers of a tensor, not copied where they are contiguous."""
    made: NDArray[Any] = x.detach().contiguous().numpy()
    return made


def choice_of(kernels: ModuleType, keep: Keep) -> Any:
    """What was chosen, as the kernels take it."""
    return kernels.Choice(array(keep.words.view(len(keep.words), -1)), keep.least)


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
        list(pool.map(work, zip(ends[:-1], ends[1:], strict=True)))
