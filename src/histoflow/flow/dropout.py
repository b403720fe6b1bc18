"""Dropout from 16 random bits a number, which a key brings back: what was dropped need not be remembered."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers as wide as a float of so many bytes."""


class Dropout(nn.Module):
    """Dropout as in torch, a few times faster on a CPU; its probability is kept to within 2**-17."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    @property
    def rate(self) -> float:
        """Probability of dropping a number now: none but in training."""
        return self.probability if self.training else 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Drop and rescale while training; otherwise return `x`."""
        if not self.rate:
            return x
        dropped: Tensor = _Drop.apply(x, self.rate, new_key())  # type: ignore[no-untyped-call]
        return dropped


class _Drop(torch.autograd.Function):
    """Drop and rescale."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float, key: int) -> Tensor:
        kept = torch.div(x, 1 - rate).contiguous()
        ctx.keep, ctx.rate = Keep.of(kept, rate, (key,)), rate
        return ctx.keep.zero_(kept)  # type: ignore[no-any-return]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_kept: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.keep.zero_(torch.div(d_kept, 1 - ctx.rate).contiguous()), None, None


class Keep:
    """Which numbers of a tensor are kept, the others set to zero; all are where the rate is 0.

    Attributes
    ----------
    words
        Random words, shape (ceil(n_rows / 2), …), int32: the upper halves are of the first rows, the lower ones of the
        others. One row of zeros where nothing is dropped.
    least
        A number is kept if its half, moved to the upper end, is at least this.
    """

    def __init__(self, words: Tensor, least: int, size: int) -> None:
        self.words, self.least, self._size = words, least, size

    @classmethod
    def of(cls, x: Tensor, rate: float, key: tuple[int, ...]) -> Keep:
        """Choose for the numbers of `x`, each dropped with probability `rate`; the same for the same key and shape."""
        if not rate:
            return cls(torch.zeros(1, *x.shape[1:], dtype=torch.int32, device=x.device), -(2**31), x.numel())
        least = (min(round(rate * 2**16), 2**16 - 1) - 2**15) * 2**16
        shape = (-(-len(x) // 2), *x.shape[1:])
        return cls(_words(math.prod(shape), key, x.device).view(shape), least, x.numel())

    @cached_property
    def _masks(self) -> tuple[Tensor, ...]:
        if self.least == -(2**31):
            return ()
        flat = self.words.view(-1)
        return flat.clone().ge_(self.least), (flat << 16).ge_(self.least)

    def zero_(self, x: Tensor) -> Tensor:
        """Set what is dropped to zero, in place, in a contiguous tensor of the chosen shape or several in one."""
        # The bits of a float times the integer 0 or 1: several times faster on a CPU than torch.where.
        for copy in x.view(-1, self._size).view(_BITS[x.element_size()]) if self._masks else ():
            start = 0
            for mask in self._masks:
                part = copy[start : start + len(mask)]
                part.mul_(mask[: len(part)])
                start += len(mask)
        return x


def new_key() -> int:
    """Draw a key from torch's own generator, the source of all randomness in training."""
    return int(torch.randint(2**62, ()))


def _words(n_words: int, key: tuple[int, ...], device: torch.device) -> Tensor:
    """Random 32-bit words, shape (n_words,), int32."""
    if device.type == "cpu":
        raw = np.random.SFC64(key).random_raw(-(-n_words // 2))
        return torch.from_numpy(raw.view(np.int32)[:n_words])
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randint(-(2**31), 2**31, (n_words,), generator=generator, dtype=torch.int32, device=device)
