"""One head of the weakly supervised regressor: expression of a super-pixel, learned from means over a spot's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import mse_loss, softplus

from histoflow.models.axes import leading_axes
from histoflow.models.linear import LinearHead
from histoflow.models.spots import Floats

_DROPOUT = 0.2
_SHARPNESS = 10.0
"""Of the bend that keeps expression above zero: it adds at most .07 (log1p)."""
_MOST = 15.0
"""Largest expression of a super-pixel, log1p: three million counts; beyond it nothing would stay finite."""


class Bags(NamedTuple):
    """Spots of one section as bags of super-pixels, as a head sees them.

    `linear` is the linear part, (n_spots, n_superpixels, n_genes); `scores` what the network sees, (n_spots,
    n_superpixels, n_components); `log1p` the measured expression, (n_spots, n_genes).
    """

    linear: Tensor
    scores: Tensor
    log1p: Tensor

    def rows(self, chosen: NDArray[np.intp]) -> Bags:
        """Some of the spots."""
        return Bags(*(part[torch.from_numpy(chosen)] for part in self))


@dataclass(frozen=True)
class Sizes:
    """Sizes of a head: numbers that come in and out, width of the hidden layer, components of the features."""

    n_features: int
    n_genes: int
    hidden_dim: int
    n_components: int


class SuperpixelHead(nn.Module):
    """A linear map of a super-pixel's features to log1p expression, and a small network that adds to it.

    The network begins at zero; expression is kept above zero by a soft bend.

    Parameters
    ----------
    sizes
        Of what comes in and out.
    """

    mean: Tensor
    coef: Tensor
    intercept: Tensor
    components: Tensor

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(sizes.n_features))
        self.register_buffer("coef", torch.zeros(sizes.n_features, sizes.n_genes))
        self.register_buffer("intercept", torch.zeros(sizes.n_genes))
        self.register_buffer("components", torch.zeros(sizes.n_features, sizes.n_components))
        last = nn.Linear(sizes.hidden_dim, sizes.n_genes)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.residual = nn.Sequential(
            nn.Linear(sizes.n_components, sizes.hidden_dim), nn.GELU(), nn.Dropout(_DROPOUT), last
        )

    def start(self, linear: LinearHead, components: Floats) -> None:
        """Take the linear map, and the components (n_features, n_components) of features about its mean."""
        linear_part = {"mean": linear.mean, "coef": linear.of_features, "intercept": linear.intercept}
        parts = linear_part | {"components": components}
        for name, value in parts.items():
            getattr(self, name).copy_(torch.from_numpy(np.asarray(value, dtype=np.float32)))

    @torch.no_grad()
    def bags(self, features: Floats, log1p: Floats) -> Bags:
        """Prepare spots (n_spots, n_superpixels, n_features) with what was measured there (n_spots, n_genes)."""
        seen = torch.from_numpy(features).to(self.mean.device) - self.mean
        return Bags(seen @ self.coef + self.intercept, seen @ self.components, torch.from_numpy(log1p).to(seen.device))

    def log1p(self, linear: Tensor, scores: Tensor) -> Tensor:
        """Expression of super-pixels, as of a spot that is all alike, (..., n_genes), log1p."""
        return softplus(linear + self.residual(scores), beta=_SHARPNESS).clamp(max=_MOST)

    def spots(self, bags: Bags) -> Tensor:
        """Expression of spots, log1p of the mean over their super-pixels, (n_spots, n_genes)."""
        return torch.log1p(torch.expm1(self.log1p(bags.linear, bags.scores)).mean(dim=1))

    def loss(self, bags: Bags) -> Tensor:
        """Mean squared error of the spots, log1p."""
        return mse_loss(self.spots(bags), bags.log1p)

    @torch.inference_mode()
    def error(self, sections: Sequence[Bags]) -> float:
        """Mean squared error over all spots of some sections."""
        squared = [(self.spots(bags) - bags.log1p).square().flatten() for bags in sections]
        return float(torch.cat(squared).mean(dtype=torch.float64))

    @torch.inference_mode()
    def counts(self, features: Floats) -> NDArray[np.float32]:
        """Expression of super-pixels (..., n_features) as counts of a spot that is all alike, (..., n_genes)."""
        seen = torch.from_numpy(np.ascontiguousarray(features)).to(self.mean.device) - self.mean
        expression = self.log1p(seen @ self.coef + self.intercept, seen @ self.components)
        counts: NDArray[np.float32] = torch.expm1(expression).cpu().numpy()
        return counts

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything learned, by name."""
        return {key: value.cpu().numpy() for key, value in self.state_dict().items()}


def principal_components(x: NDArray[np.floating[Any]], n_components: int) -> Floats:
    """Principal components (n_features, n_components) of features (n_spots, n_features), as they are scaled.

    Together they are scaled to a mean variance of one over the spots; there are fewer where the features have fewer,
    and the rest is zero.
    """
    centred = x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)
    values, axes = leading_axes(centred, n_components)
    components = np.zeros((x.shape[1], n_components), dtype=np.float32)
    components[:, : len(axes)] = axes.T / (np.sqrt(np.square(values).mean() / len(x)) or 1.0)
    return components
