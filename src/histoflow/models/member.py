"""One trained network of the flow, with all that turns places into its input and its noise into expression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from histoflow.flow import Denoiser, EulerSampler, LinearPath, Prior, SpotContext, edge_geometry, matrices
from histoflow.models.axes import axes_of_products, leading_axes
from histoflow.models.noise import prior_noise, shelved
from histoflow.models.spots import Floats, Spots
from histoflow.pp.graph import neighbors

_MOST_AT_ONCE, _BLOCK = 20_000, 1 << 13
"""Spots whose embeddings are decomposed as they are, and spots of a block where there are more."""
_SPOTS_TOGETHER = 1 << 16
"""Spots of all draws that are carried at a time, together at most: bounds memory."""


@dataclass(frozen=True)
class Network:
    """Sizes of the denoiser, and where the flow starts; the defaults are the published ones.

    Parameters
    ----------
    n_neighbors
        Nearest spots that a spot attends to.
    n_layers
        Rounds of attention.
    hidden_dim, pairwise_dim
        Width of a spot's token and of an edge's embedding.
    n_heads
        Attention heads.
    dropout, attention_dropout
        Probability of dropping a number, and a neighbour's weight.
    n_components
        Principal components of the embeddings that enter, see `Projection`.
    prior
        Where the flow starts: ``"zinb"``, ``"gaussian"`` or ``"zero"``.
    """

    n_neighbors: int = 8
    n_layers: int = 4
    hidden_dim: int = 128
    pairwise_dim: int = 128
    n_heads: int = 4
    dropout: float = 0.2
    attention_dropout: float = 0.2
    n_components: int = 100
    prior: str = "zinb"

    def denoiser(self, n_features: int, n_genes: int) -> Denoiser:
        """Make the network, its weights drawn from torch's generator."""
        sizes = asdict(self)
        del sizes["n_neighbors"], sizes["n_components"], sizes["prior"]
        return Denoiser(n_features, n_genes, **sizes)


class Crop(NamedTuple):
    """Neighbouring spots of one section, as tensors: features, xy in pitches, tissue, log1p expression."""

    features: Tensor
    xy: NDArray[np.float64]
    tissue: NDArray[np.int64]
    log1p: Tensor


@dataclass(frozen=True)
class Projection:
    """Principal components of the embeddings, together scaled to a mean variance of one over the training spots.

    One scale for all of them: strong components stay strong. Scaled one by one, weak ones bring noise into the network;
    halfway between is better for similarity, see `anchor`.

    Attributes
    ----------
    mean, scale
        Of each feature, shape (n_features,).
    components
        Shape (n_features, n_components), divided by their common spread.
    """

    mean: Floats
    scale: Floats
    components: Floats

    @classmethod
    def fit(cls, x: Floats, n_components: int, *, whitening: float = 0.0) -> Projection:
        """Find at most `n_components` of features (n_spots, n_features), by singular value decomposition.

        Each is divided by the power `whitening` of its spread: 0 keeps their proportions, 1 makes them equal.
        """
        axes = _axes if len(x) <= _MOST_AT_ONCE else _axes_by_blocks
        mean, scale, values, rows = axes(x, n_components)
        spreads = values / np.sqrt(len(x)) if values[0] > 0 else np.ones_like(values)
        power = spreads**-whitening
        power /= np.sqrt(np.square(spreads * power).mean())
        return cls(mean.astype(np.float32), scale.astype(np.float32), (rows.T * power).astype(np.float32))

    def __call__(self, x: Floats) -> Tensor:
        """Map embeddings (n_spots, n_features) to (n_spots, n_components)."""
        if len(x) <= _MOST_AT_ONCE:
            return torch.from_numpy((x - self.mean) / self.scale @ self.components)
        blocks = (x[start : start + _BLOCK] for start in range(0, len(x), _BLOCK))
        return torch.from_numpy(np.concatenate([(own - self.mean) / self.scale @ self.components for own in blocks]))


Axes = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
"""Mean and spread of features (n_features,), and what `leading_axes` finds of them standardised."""


def _axes(x: Floats, n_components: int) -> Axes:
    x64 = x.astype(np.float64)
    spread = x64.std(axis=0)
    mean, scale = x64.mean(axis=0), np.where(spread > 0, spread, 1.0)
    return mean, scale, *leading_axes((x64 - mean) / scale, n_components)


def _axes_by_blocks(x: Floats, n_components: int) -> Axes:
    """The same of many spots, from the products of their features, so that they are never all in double precision."""
    mean = x.mean(axis=0, dtype=np.float64)
    blocks = [slice(start, start + _BLOCK) for start in range(0, len(x), _BLOCK)]
    products = np.zeros((x.shape[1], x.shape[1]))
    for rows in blocks:
        centred = x[rows] - mean
        products += centred.T @ centred
    spread = np.sqrt(np.diag(products) / len(x))
    scale = np.where(spread > 0, spread, 1.0)
    return mean, scale, *axes_of_products(products / np.outer(scale, scale), n_components)


@dataclass(frozen=True)
class Member:
    """A denoiser and what it needs around it.

    Attributes
    ----------
    denoiser
        The network.
    projection
        Of the embeddings.
    mean
        Mean log1p expression of the training spots, shape (n_genes,). The network estimates the departure from it: it
        sees expression only as differences between spots, so nothing but its output is shifted, and dropout on genes
        far from zero drowns nothing.
    n_neighbors
        Nearest spots that a spot attends to.
    pitch_um
        Unit of distance of the network: the spot distance in training.
    prior, sampler
        Where the flow starts, and how it gets to the data.
    precision
        Of matrix products in drawing, see `Training`.
    """

    denoiser: Denoiser
    projection: Projection
    mean: Tensor
    n_neighbors: int
    pitch_um: float
    prior: Prior
    sampler: EulerSampler
    precision: str = "fp32"

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return self.mean.device

    def crop(self, spots: Spots, log1p: Floats | None = None) -> Crop:
        """A whole section as tensors."""
        expression = np.empty((len(spots), 0), np.float32) if log1p is None else log1p
        return Crop(
            self.projection(spots.embedding), spots.xy_um / self.pitch_um, spots.tissue, torch.from_numpy(expression)
        )

    def loss(self, crops: Sequence[Crop], generator: torch.Generator) -> Tensor:
        """Mean squared error of the denoised expression; every crop has one time of its own."""
        log1p = torch.cat([crop.log1p for crop in crops])
        t = torch.cat([torch.rand(1, 1, generator=generator).expand(len(crop.log1p), 1) for crop in crops])
        x0 = self.prior.sample((len(log1p), log1p.shape[1]), generator)
        x_t = LinearPath().sample(x0, log1p, t).x_t
        estimate = self.estimate(x_t.to(self.device), t.to(self.device), self.context(crops))
        return torch.nn.functional.mse_loss(estimate, log1p.to(self.device))

    def estimate(self, x_t: Tensor, t: Tensor, context: SpotContext) -> Tensor:
        """Denoised log1p expression, (n_spots, n_genes), or of several draws, (n_draws, n_spots, n_genes)."""
        estimate: Tensor = self.denoiser(x_t, t, context) + self.mean
        return estimate

    def context(self, crops: Sequence[Crop]) -> SpotContext:
        """Context of crops stacked below each other; no neighbour is of another crop or tissue."""
        crop_of = np.repeat(np.arange(len(crops)), [len(crop.xy) for crop in crops])
        tissue = np.concatenate([crop.tissue for crop in crops])
        groups = crop_of * (tissue.max() + 1) + tissue
        # Centred in float64, so that a section far from the origin loses no digits.
        xy = np.concatenate([crop.xy - crop.xy.mean(axis=0) for crop in crops])
        graph = neighbors(xy, self.n_neighbors, groups=groups)
        index, mask = torch.from_numpy(graph.index), torch.from_numpy(graph.mask)
        geometry = edge_geometry(torch.from_numpy(xy), index, mask)
        projection, distance, index, mask = (part.to(self.device) for part in (*geometry, index, mask))
        features = torch.cat([crop.features for crop in crops]).to(self.device)
        return self.denoiser.context(features, type(geometry)(projection, distance), index, mask)

    @torch.inference_mode()
    def carry(self, starts: Sequence[Tensor], spots: Spots) -> Floats:
        """Carry noise (n_spots, n_genes) to expression: (len(starts), n_spots, n_genes), log1p, not below zero."""
        self.denoiser.eval()
        together = max(1, _SPOTS_TOGETHER // max(1, len(spots)))
        draws = []
        with matrices(self.precision, self.device):
            context = self.context([self.crop(spots)])
            for first in range(0, len(starts), together):
                start = torch.stack(list(starts[first : first + together])).to(self.device)
                draws.append(self.sampler.sample(lambda x, t: self.estimate(x, t, context), start))
        return torch.cat(draws).clamp_(min=0).cpu().numpy()


def start_noise(prior: Prior, spots: Spots, shape: tuple[int, int], seed: int) -> list[Tensor]:
    """Draw what the flow starts from: `shape` is (n_draws, n_genes).

    Noise belongs to spots by their ids, so that their order does not matter.
    """
    n_draws, n_genes = shape
    place = np.empty((n_draws, len(spots), n_genes), np.float32)
    return list(torch.from_numpy(shelved(place, prior_noise(prior, spots.ids, shape, seed))))
