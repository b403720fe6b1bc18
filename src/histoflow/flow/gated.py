"""The gated network of the denoiser, and the two steps of it that edges take block by block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from histoflow.flow.compiled import array, choice_of, compiled, epsilon_of, in_parts, kernels
from histoflow.flow.dropout import Dropout, Keep, new_key


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
        packed = self.fc1(x)
        packed = packed.float() if packed.dtype == torch.bfloat16 else packed
        if not compiled(packed):
            gate, value = packed.chunk(2, dim=-1)
            normal = self.norm(self.dropout(silu(gate) * value))
            result: Tensor = self.dropout(self.fc2(normal))
            return result
        rate = self.dropout.rate
        normal = _Normalize.apply(packed, self.epsilon, rate, new_key() if rate else 0)  # type: ignore[no-untyped-call]
        result = self.dropout(linear(normal, *self.read_out()))
        return result

    def read_out(self) -> tuple[Tensor, Tensor]:
        """Weight (n_out, width // 2) and bias (n_out,) of `fc2` with the scale and shift of the norm taken in."""
        bias = torch.addmv(self.fc2.bias, self.fc2.weight, self.norm.bias)
        return self.fc2.weight * self.norm.weight, bias

    @property
    def epsilon(self) -> float:
        """That of the norm, for numbers which dropout has not rescaled: the norm makes up for any scale but this."""
        return float(self.norm.eps) * (1 - self.dropout.rate) ** 2


class _Normalize(torch.autograd.Function):
    """Gated rows, dropped and normalised, in one compiled pass each way; only what was gated is kept in between."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, epsilon: float, rate: float, key: int) -> Tensor:
        rows = packed.reshape(-1, packed.shape[-1])
        normal = rows.new_empty(len(rows), rows.shape[1] // 2)
        ctx.save_for_backward(packed)
        ctx.chance = epsilon, rate, key
        choice = _choice(normal, rate, key)
        arrays, spread = (array(rows), array(normal)), epsilon_of(packed, epsilon)
        in_parts(lambda part: kernels().normalize(arrays[0], choice, spread, part, arrays[1]), len(rows))
        return normal.view(*packed.shape[:-1], -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_normal: Tensor) -> tuple[Tensor | None, ...]:
        (packed,), (epsilon, rate, key) = ctx.saved_tensors, ctx.chance
        rows, d_rows = packed.reshape(-1, packed.shape[-1]), d_normal.reshape(-1, d_normal.shape[-1])
        d_packed = torch.empty_like(rows, memory_format=torch.contiguous_format)
        choice = _choice(d_rows, rate, key)
        arrays, spread = (array(rows), array(d_rows), array(d_packed)), epsilon_of(packed, epsilon)
        in_parts(
            lambda part: kernels().normalize_backward(arrays[0], choice, spread, part, arrays[1], arrays[2]), len(rows)
        )
        return d_packed.view(packed.shape), None, None, None


def _choice(like: Tensor, rate: float, key: int) -> Any:
    return choice_of(Keep.of(like, rate, (key,)))


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
    def of(cls, packed: Tensor, rate: float, key: tuple[int, ...], n_copies: int = 1) -> Gated:
        """Gate the rows of `packed`: dropout chooses for the first of so many copies, and alike for the others."""
        gate, value = packed.chunk(2, dim=-1)
        opened = silu(gate)
        x = opened * value
        keep = Keep.of(x[: len(x) // n_copies], rate, key)
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
