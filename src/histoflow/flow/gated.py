"""The gated network of the denoiser, and the two steps of it that edges take block by block."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from histoflow.flow.dropout import Dropout, Keep


class GatedMLP(nn.Module):
    """``fc2(LayerNorm(dropout(SiLU(a) * b)))`` with ``[a, b] = fc1(x)``, and dropout on the result."""

    def __init__(self, n_in: int, width: int, n_out: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(n_in, width)
        self.norm = nn.LayerNorm(width // 2)
        self.fc2 = nn.Linear(width // 2, n_out)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, n_in) to (…, n_out)."""
        gate, value = self.fc1(x).chunk(2, dim=-1)
        result: Tensor = self.dropout(self.fc2(self.norm(self.dropout(silu(gate) * value))))
        return result

    def read_out(self) -> tuple[Tensor, Tensor]:
        """Weight (n_out, width // 2) and bias (n_out,) of `fc2` with the scale and shift of the norm taken in."""
        bias = torch.addmv(self.fc2.bias, self.fc2.weight, self.norm.bias)
        return self.fc2.weight * self.norm.weight, bias

    @property
    def epsilon(self) -> float:
        """That of the norm, for numbers which dropout has not rescaled: the norm makes up for any scale but this."""
        return float(self.norm.eps) * (1 - self.dropout.rate) ** 2


@dataclass(frozen=True)
class Gated:
    """``x = keep * SiLU(a) * b`` for the rows of a block, with what going back needs.

    Attributes
    ----------
    packed
        a, then b, shape (n_rows, width).
    opened
        SiLU(a), shape (n_rows, width // 2).
    x
        The result, shape (n_rows, width // 2).
    keep
        What was not dropped.
    """

    packed: Tensor
    opened: Tensor
    x: Tensor
    keep: Keep

    @classmethod
    def of(cls, packed: Tensor, rate: float, key: tuple[int, ...]) -> Gated:
        """Gate the rows of `packed`."""
        gate, value = packed.chunk(2, dim=-1)
        opened = silu(gate)
        x = opened * value
        keep = Keep.of(x, rate, key)
        return cls(packed, opened, keep.zero_(x), keep)

    def moments(self, epsilon: float) -> tuple[Tensor, Tensor]:
        """Mean and inverse spread of every row of `x`, each of shape (n_rows,)."""
        mean = self.x.sum(dim=-1) / self.x.shape[-1]
        square = torch.linalg.vector_norm(self.x, dim=-1).square_() / self.x.shape[-1]
        return mean, square.addcmul_(mean, mean, value=-1).clamp_(min=0).add_(epsilon).rsqrt_()

    def backward_(self, d_x: Tensor) -> Tensor:
        """Turn the gradient of `x`, which is overwritten, into that of `packed`, in its place."""
        gate, value = self.packed.chunk(2, dim=-1)
        self.keep.zero_(d_x)
        d_opened = d_x * value
        torch.mul(d_x, self.opened, out=value)
        torch.ops.aten.silu_backward.grad_input(d_opened, gate, grad_input=gate)
        return self.packed
