"""Dropout from 16 random bits a number, which a key brings back: what was dropped need not be remembered."""

from __future__ import annotations

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
    """Which numbers of a tensor are kept, the others set to zero; none are where the rate is 0."""

    def __init__(self, masks: tuple[Tensor, ...]) -> None:
        self._masks = masks

    @classmethod
    def of(cls, x: Tensor, rate: float, key: tuple[int, ...]) -> Keep:
        """Choose for the numbers of `x`, each dropped with probability `rate`; the same for the same key and shape."""
        if not rate:
            return cls(())
        least = round(rate * 2**16) - 2**15  # 16 random bits, read as a signed integer, are at least this if kept
        words = _words(-(-x.numel() // 2), key, x.device)
        if x.element_size() == 2:
            return cls((words.view(torch.int16).ge_(least),))
        low = words << 16  # the lower half of every word, moved to where a comparison sees it first
        return cls(tuple(half.ge_(least * 2**16) for half in (words, low)))

    def zero_(self, x: Tensor) -> Tensor:
        """Set what is dropped to zero, in place, in a contiguous tensor of the shape that was chosen for."""
        # The bits of a float times the integer 0 or 1: several times faster on a CPU than torch.where.
        flat, start = x.view(-1).view(_BITS[x.element_size()]), 0
        for mask in self._masks:
            part = flat[start : start + len(mask)]
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
