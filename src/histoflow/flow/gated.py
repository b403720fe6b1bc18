"""The gated network of the denoiser, and the two steps of it that edges take block by block where torch does them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from histoflow.flow.compiled import array, compiled, empty, in_parts, kernels
from histoflow.flow.dropout import Choice, Dropout
from histoflow.flow.precision import type_of_sums, widened


class GatedMLP(nn.Module):
    """``fc2(LayerNorm(dropout(SiLU(a) * b)))`` with ``[a, b] = fc1(x)``, and dropout on the result."""

    def __init__(self, n_in: int, width: int, n_out: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(n_in, width)
        self.norm = nn.LayerNorm(width // 2)
        self.fc2 = nn.Linear(width // 2, n_out)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        """Map (…, n_in) to (…, n_out); added to `onto`, (n_rows, n_out), if that is given."""
        packed = linear(x, self.fc1.weight)  # the bias is added where it is read
        choice = Choice.of(self.dropout.rate, self.dropout.new_key())
        normal = _Normalize.apply(packed, self.fc1.bias, choice, self.epsilon)  # type: ignore[no-untyped-call]
        weight, bias = self.read_out()
        if onto is None:
            result: Tensor = self.dropout(linear(normal, weight, bias))
            return result
        dropped = self.dropout.rate, Choice.of(self.dropout.rate, self.dropout.new_key())
        added: Tensor = _AddDropped.apply(linear(normal, weight), bias, onto, *dropped)  # type: ignore[no-untyped-call]
        return added

    def read_out(self) -> tuple[Tensor, Tensor]:
        """Weight (n_out, width // 2) and bias (n_out,) of `fc2` with the scale and shift of the norm taken in."""
        bias = torch.addmv(self.fc2.bias, self.fc2.weight, self.norm.bias)
        return self.fc2.weight * self.norm.weight, bias

    @property
    def epsilon(self) -> float:
        """That of the norm, for numbers which dropout has not rescaled: the norm makes up for any scale but this."""
        return float(self.norm.eps) * (1 - self.dropout.rate) ** 2


class _Normalize(torch.autograd.Function):
    """Gated rows with a bias, dropped and normalised, in one pass each way; only what was gated is kept in between."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, bias: Tensor, choice: Choice, epsilon: float) -> Tensor:
        ctx.save_for_backward(packed, bias)
        ctx.choice, ctx.epsilon = choice, epsilon
        rows = packed.reshape(-1, packed.shape[-1])
        find = _normalized if compiled(rows) else _plain
        normal = find(rows, bias, choice, epsilon)
        return normal.view(*packed.shape[:-1], normal.shape[1]).to(packed.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_normal: Tensor) -> tuple[Tensor | None, ...]:
        packed, bias = ctx.saved_tensors
        rows, d_rows = packed.reshape(-1, packed.shape[-1]), d_normal.reshape(-1, d_normal.shape[-1])
        find = _normalized_backward if compiled(rows) else _plain_backward
        d_packed, d_bias = find(rows, bias, d_rows, ctx.choice, ctx.epsilon)
        return d_packed.view(packed.shape).to(packed.dtype), d_bias, None, None


def _plain(rows: Tensor, bias: Tensor, choice: Choice, epsilon: float) -> Tensor:
    return _of(rows, bias, choice).normal(epsilon)[0]


def _plain_backward(
    rows: Tensor, bias: Tensor, d_normal: Tensor, choice: Choice, epsilon: float
) -> tuple[Tensor, Tensor]:
    gated = _of(rows, bias, choice)
    d_packed = gated.backward_(normal_backward(widened(d_normal.clone()), *gated.normal(epsilon)))
    return d_packed, d_packed.sum(dim=0)


def _normalized(rows: Tensor, bias: Tensor, choice: Choice, epsilon: float) -> Tensor:
    normal = rows.new_empty(len(rows), rows.shape[1] // 2)
    given = _halves(rows), _halves(widened(bias)[None])[0], choice.compiled(), np.full(1, epsilon, type_of_sums(rows))
    into = array(normal)
    in_parts(lambda part: kernels().normalize(*given, part, into), len(rows), rows.device)
    return normal


def _normalized_backward(
    rows: Tensor, bias: Tensor, d_normal: Tensor, choice: Choice, epsilon: float
) -> tuple[Tensor, Tensor]:
    d_packed = torch.empty_like(rows, memory_format=torch.contiguous_format)
    given = _halves(rows), _halves(widened(bias)[None])[0], choice.compiled(), np.full(1, epsilon, type_of_sums(rows))
    wanted, into = array(d_normal), _halves(d_packed)

    def work(part: tuple[int, int]) -> Tensor:
        d_bias = torch.zeros_like(widened(bias))
        kernels().normalize_backward(*given, part, wanted, into, array(d_bias).reshape(2, -1))
        return d_bias

    return d_packed, torch.stack(in_parts(work, len(rows), rows.device)).sum(dim=0).to(bias.dtype)


class _AddDropped(torch.autograd.Function):
    """Rows with a bias, dropped, added to others, (n_rows, width), in one pass each way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, onto: Tensor, rate: float, choice: Choice) -> Tensor:
        ctx.like, ctx.dtype, ctx.choice, ctx.factor = x[:0], bias.dtype, choice, 1 / (1 - rate)
        if not compiled(x):
            dropped: Tensor = (widened(x) + bias) * choice.kept(tuple(x.shape), 0, x.device) * ctx.factor
            return onto + dropped
        made = empty(onto, *onto.shape)
        given = array(x), array(widened(bias)), choice.compiled(), np.full(1, ctx.factor, type_of_sums(x))
        into = array(onto), array(made)
        in_parts(lambda part: kernels().add_dropped(*given, part, *into), len(x), x.device)
        return made

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_made: Tensor) -> tuple[Tensor | None, ...]:
        if not compiled(d_made):
            d_x = d_made * ctx.choice.kept(tuple(d_made.shape), 0, d_made.device) * ctx.factor
            return d_x.to(ctx.like.dtype), d_x.sum(dim=0), d_made, None, None
        d_x = empty(ctx.like, *d_made.shape)
        given = array(d_made), ctx.choice.compiled(), np.full(1, ctx.factor, type_of_sums(d_made))
        into = array(d_x)

        def work(part: tuple[int, int]) -> Tensor:
            total = widened(d_made[:0]).new_zeros(d_made.shape[1])
            kernels().add_dropped_backward(*given, part, into, array(total))
            return total

        d_bias = torch.stack(in_parts(work, len(d_made), d_made.device)).sum(dim=0)
        return d_x, d_bias.to(ctx.dtype), d_made, None, None


def _halves(rows: Tensor) -> Any:
    return array(rows).reshape(len(rows), 2, rows.shape[1] // 2)


def _of(rows: Tensor, bias: Tensor, choice: Choice) -> Gated:
    kept = choice.kept((len(rows), rows.shape[1] // 2), 0, rows.device)
    return Gated.of(widened(rows) + bias, kept)


def normal_backward(d_normal: Tensor, normal: Tensor, inverse: Tensor) -> Tensor:
    """Gradient of rows from that of the rows normalised, which is overwritten."""
    width = normal.shape[1]
    along = torch.linalg.vecdot(d_normal, normal).div_(-width)
    d_x = d_normal.sub_(d_normal.sum(dim=1, keepdim=True).div_(width)).addcmul_(normal, along[:, None])
    return d_x.mul_(inverse[:, None])


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
    kept
        What was not dropped, bool, shape (n_rows, width // 2).
    """

    packed: Tensor
    opened: Tensor
    x: Tensor
    kept: Tensor

    @classmethod
    def of(cls, packed: Tensor, kept: Tensor) -> Gated:
        """Gate the rows of `packed`."""
        gate, value = packed.chunk(2, dim=-1)
        opened = silu(gate)
        return cls(packed, opened, (opened * value).mul_(kept), kept)

    def moments(self, epsilon: float) -> tuple[Tensor, Tensor]:
        """Mean and inverse spread of every row of `x`, each of shape (n_rows,)."""
        mean = self.x.sum(dim=-1) / self.x.shape[-1]
        square = torch.linalg.vector_norm(self.x, dim=-1).square_() / self.x.shape[-1]
        return mean, square.addcmul_(mean, mean, value=-1).clamp_(min=0).add_(epsilon).rsqrt_()

    def normal(self, epsilon: float) -> tuple[Tensor, Tensor]:
        """Normalised rows, and the inverse spread of each."""
        mean, inverse = self.moments(epsilon)
        return (self.x - mean[:, None]).mul_(inverse[:, None]), inverse

    def backward_(self, d_x: Tensor) -> Tensor:
        """Turn the gradient of `x`, which is overwritten, into that of `packed`, in its place."""
        gate, value = self.packed.chunk(2, dim=-1)
        d_x.mul_(self.kept)
        d_opened = d_x * value
        torch.mul(d_x, self.opened, out=value)
        torch.ops.aten.silu_backward.grad_input(d_opened, gate, grad_input=gate)
        return self.packed
