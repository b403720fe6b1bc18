"""Dropout whose choice is a function of a key and of a number's place: what was dropped need not be remembered.

The random word of place ``n`` is a mix of ``factor * n + offset`` modulo 2**32, by the finaliser of Wellons
(hash-prospector, "lowbias32") without its last shift, which only changes the lower half of a word; factor, which is
odd, and offset come from the key. So the choice is the same on every
device, for every number of threads and whichever way an array is cut into blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from histoflow.flow.compiled import array, compiled, in_parts, kernels
from histoflow.flow.operands import Chosen
from histoflow.flow.precision import type_of_sums, widened


class Choice(NamedTuple):
    """A stream of random words, and the least word that keeps a number; all are kept where it is 0."""

    factor: int
    offset: int
    least: int

    @classmethod
    def of(cls, rate: float, *key: int) -> Choice:
        """Drop with probability `rate`; the same for the same key."""
        if not rate:
            return cls(1, 0, 0)
        factor, offset = (int(word) for word in np.random.SeedSequence(key).generate_state(2))
        return cls(factor | 1, offset, round(rate * 2**32))

    def compiled(self) -> Chosen | None:
        """As the compiled loops take it: None where all are kept."""
        return Chosen(*self) if self.least else None

    def kept(self, shape: tuple[int, ...], first: int, device: torch.device) -> Tensor:
        """Which numbers of an array are kept, whose first one has place `first`; bool."""
        if not self.least:
            return torch.ones(shape, dtype=torch.bool, device=device)
        return self.words(shape, first, device) >= _signed(self.least)

    def words(self, shape: tuple[int, ...], first: int, device: torch.device) -> Tensor:
        """Random words less 2**31, int32."""
        x = torch.arange(int(np.prod(shape)), dtype=torch.int32, device=device).add_(_wrapped(first))
        x = x.mul_(_wrapped(self.factor)).add_(_wrapped(self.offset))
        x = x.bitwise_xor_(_shifted(x, 16)).mul_(0x7FEB352D)
        x = x.bitwise_xor_(_shifted(x, 15)).mul_(_wrapped(0x846CA68B))
        return x.bitwise_xor_(-(2**31)).view(shape)


_LEAST = 1 << 18
"""Numbers that are worth a thread."""


class Dropout(nn.Module):
    """Dropout as in torch, by a `Choice`."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.generator: torch.Generator | None = None

    @property
    def rate(self) -> float:
        """Probability of dropping a number now: none but in training."""
        return self.probability if self.training else 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Drop and rescale while training; otherwise return `x`."""
        if not self.rate:
            return x
        dropped: Tensor = _Drop.apply(x, self.rate, self.new_key())  # type: ignore[no-untyped-call]
        return dropped

    def new_key(self) -> int:
        """Draw a key; 0 where nothing is dropped."""
        return int(torch.randint(2**62, (), generator=self.generator)) if self.rate else 0


def draw_keys_from(network: nn.Module, generator: torch.Generator) -> None:
    """Let dropout in a network draw from `generator`, not from torch's own, which is one for all threads."""
    for module in network.modules():
        if isinstance(module, Dropout):
            module.generator = generator


class _Drop(torch.autograd.Function):
    """Drop and rescale."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float, key: int) -> Tensor:
        ctx.choice, ctx.rate = Choice.of(rate, key), rate
        return scaled(x, ctx.choice, 1 / (1 - rate))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_kept: Tensor) -> tuple[Tensor | None, ...]:
        return scaled(d_kept, ctx.choice, 1 / (1 - ctx.rate)), None, None


def scaled(x: Tensor, choice: Choice, factor: float) -> Tensor:
    """What is kept of `x` times `factor`, the rest zero."""
    if not compiled(x):
        return x * choice.kept(tuple(x.shape), 0, x.device) * factor
    made = torch.empty_like(x, memory_format=torch.contiguous_format)
    flat, into = array(x).reshape(-1), array(made).reshape(-1)
    chosen, by = choice.compiled(), np.full(1, factor, type_of_sums(x))

    def work(part: tuple[int, int]) -> None:
        kernels().scale(flat[slice(*part)], chosen, by, part[0], into[slice(*part)])

    in_parts(work, len(flat), x.device, _LEAST)
    return made


@dataclass(frozen=True)
class FramesDropout:
    """Dropout of each of four frames' results, before the mean over frames, where those results are equal.

    Each number is multiplied with the share of frames that keep it, over ``1 - rate``.
    """

    choice: Choice
    rate: float

    @cached_property
    def below(self) -> NDArray[np.uint32]:
        """Thresholds, (4,): as many frames keep a number as its random word reaches."""
        keep, rate = 1 - self.rate, self.rate
        shares = [rate**4, 4 * keep * rate**3, 6 * keep**2 * rate**2, 4 * keep**3 * rate]
        below: NDArray[np.uint32] = np.minimum(np.cumsum(shares) * 2**32, 2**32 - 1).astype(np.uint32)
        return below

    def scale(self, x: Tensor, bias: Tensor, first: int, made: Tensor, total: Tensor) -> None:
        """Write rows of `x`, (n, width), with a bias, scaled, into `made`, and add them to `total`.

        `first` is the place of the first number; `bias` and `total` have shape (width,).
        """
        if compiled(x):
            factor = np.full(1, 1 / (4 * (1 - self.rate)), type_of_sums(x))
            chosen, rest = Chosen(*self.choice), (array(made), array(total))
            kernels().scale_by_frames(array(x), array(bias), chosen, self.below, factor, first, *rest)
            return
        words = self.choice.words(tuple(x.shape), first, x.device)
        count = torch.stack([words >= _signed(int(one)) for one in self.below]).sum(dim=0)
        scaled = (widened(x) + bias) * (count.to(bias.dtype) / (4 * (1 - self.rate)))
        made.copy_(scaled)
        total.add_(scaled.sum(dim=0))


def _wrapped(word: int) -> int:
    """An unsigned word as int32 has it."""
    return (word + 2**31) % 2**32 - 2**31


def _signed(word: int) -> int:
    return word - 2**31


def _shifted(x: Tensor, by: int) -> Tensor:
    """Bits moved down, zeros behind them, which int32 does not do by itself."""
    return (x >> by).bitwise_and_(2 ** (32 - by) - 1)
