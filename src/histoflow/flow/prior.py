"""Priors: where the flow starts, drawn independently for every spot and gene."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from histoflow._errors import OptionError


class Prior(ABC):
    """Distribution of the expression that a flow starts from, on the log1p scale."""

    name: ClassVar[str]
    """What the prior is called in options and in saved models."""

    @abstractmethod
    def sample(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Draw expression for a section.

        Parameters
        ----------
        shape
            (n_spots, n_genes).
        generator
            The only source of randomness; the draw lies on its device.

        Returns
        -------
        log1p expression, shape (n_spots, n_genes), float32.
        """


@dataclass(frozen=True)
class ZINBPrior(Prior):
    """Zero-inflated negative binomial counts, then log1p.

    A gamma-Poisson mixture in the parametrisation of scvi-tools: mean ``exp(logits) * total_count``, inverse
    dispersion `total_count`, and a further zero with probability ``sigmoid(zi_logits)``. The defaults are the
    constants published for STFlow (arXiv 2506.05361), the same for every gene and section.

    Parameters
    ----------
    total_count
        Inverse dispersion, above 0.
    logits
        Logarithm of the mean count over `total_count`, before zero inflation.
    zi_logits
        Log-odds of a further zero.

    Raises
    ------
    OptionError
        If `total_count` is not above 0.
    """

    name: ClassVar[str] = "zinb"
    total_count: float = 1.0
    logits: float = 0.1
    zi_logits: float = 0.0

    def __post_init__(self) -> None:
        if not self.total_count > 0:
            raise OptionError(f"total_count is {self.total_count}; give an inverse dispersion above 0")

    def sample(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Draw log1p of zero-inflated counts; see `Prior.sample`."""
        concentration = torch.full(shape, self.total_count, device=generator.device)
        # torch.distributions.Gamma draws by the same call, but accepts no generator.
        rate = torch._standard_gamma(concentration, generator=generator) * math.exp(self.logits)
        counts = torch.poisson(rate, generator=generator)
        uniform = torch.rand(shape, generator=generator, device=generator.device)
        return torch.log1p(counts * (uniform >= 1 / (1 + math.exp(-self.zi_logits))))


@dataclass(frozen=True)
class GaussianPrior(Prior):
    """Standard normal numbers, taken as log1p expression as they are."""

    name: ClassVar[str] = "gaussian"

    def sample(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Draw standard normal numbers; see `Prior.sample`."""
        return torch.randn(shape, generator=generator, device=generator.device)


@dataclass(frozen=True)
class ZeroPrior(Prior):
    """No expression at all: the flow becomes a deterministic regression."""

    name: ClassVar[str] = "zero"

    def sample(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Return zeros; see `Prior.sample`."""
        return torch.zeros(shape, device=generator.device)


def prior_from_name(name: str) -> Prior:
    """Make the prior called `name`, with its default constants.

    Raises
    ------
    OptionError
        If there is no prior of that name.
    """
    offered: dict[str, type[Prior]] = {kind.name: kind for kind in (ZINBPrior, GaussianPrior, ZeroPrior)}
    if name not in offered:
        raise OptionError(f"prior is {name!r}; choose one of {', '.join(offered)}")
    return offered[name]()
