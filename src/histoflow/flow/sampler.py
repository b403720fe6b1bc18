"""Samplers: integrate a denoiser from the prior (t=0) to the data (t=1)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from histoflow._errors import OptionError

DenoiserFunction = Callable[[Tensor, Tensor], Tensor]
"""Maps x_t, shape (n_spots, n_genes), and t, shape (), to an estimate of x1, shape (n_spots, n_genes)."""


class EulerSampler:
    """Euler steps on ``dx/dt = (x1_hat - x) / (1 - t)`` (arXiv 2506.05361, algorithm 2).

    Parameters
    ----------
    n_steps
        Calls of the denoiser, at t = 0, 1/n_steps, 2/n_steps … One step returns its first estimate.

    Raises
    ------
    OptionError
        If `n_steps` is below 1.
    """

    def __init__(self, n_steps: int = 5) -> None:
        if n_steps < 1:
            raise OptionError(f"n_steps is {n_steps}; give at least 1 call of the denoiser")
        self.n_steps = n_steps

    @torch.no_grad()
    def sample(self, denoiser: DenoiserFunction, x0: Tensor) -> Tensor:
        """Carry prior expression `x0`, shape (n_spots, n_genes), to the data, same shape and scale."""
        times = torch.linspace(0, 1, self.n_steps + 1, dtype=x0.dtype, device=x0.device)
        x = x0
        for t, t_next in pairwise(times):
            # t < 1 here, and the last step has weight 1: no guard against 1 - t = 0.
            x = torch.lerp(x, denoiser(x, t), (t_next - t) / (1 - t))
        return x
