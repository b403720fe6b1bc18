"""Types of numbers: what products of matrices take, what rows are kept in, and what sums are taken in."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

PRECISIONS = ("fp32", "bf16")


def matrices(precision: str, device: torch.device) -> torch.autocast:
    """Context in which products of matrices are of this precision, one of `PRECISIONS`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def widened(x: Tensor) -> Tensor:
    """A tensor of bfloat16 in float32, any other as it is: rows are kept in bfloat16, sums are not taken so."""
    return x.float() if x.dtype == torch.bfloat16 else x


def type_of_sums(x: Tensor) -> Any:
    """Type of numbers, numpy's, in which rows of `x` are worked on."""
    return np.float64 if x.dtype == torch.float64 else np.float32


def dtype_of_products(x: Tensor) -> torch.dtype:
    """Type of numbers that matrix products take now: bfloat16 where autocast asks for it, else that of `x`."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if x.dtype == torch.float32 and torch.is_autocast_enabled(kind) else x.dtype


def add_product(x: Tensor, y: Tensor, total: Tensor) -> None:
    """Add the matrix product of `x` and `y`, which may be of another type, to `total`."""
    if x.dtype == total.dtype:
        total.addmm_(x, y)
    else:
        total.add_(x @ y)
