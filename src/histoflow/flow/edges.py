"""Embedded geometry of edges, averaged over frames, block by block: no array of edges times frames outlives its block.

What dropout chooses for an edge, inside the network and of its result, holds under all four frames, so that the mean
over frames knows no frame in training, either; the published network chooses for every frame anew. The last layer,
being linear, then follows the mean instead of preceding it: a quarter of the work.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import linear

from histoflow.flow.compiled import array, choice_of, compiled, epsilon_of, in_parts, kernels
from histoflow.flow.dropout import Keep, new_key
from histoflow.flow.gated import Gated, GatedMLP
from histoflow.flow.geometry import EdgeGeometry

_BLOCK_NUMBERS = 1 << 21
"""Numbers of a block at most, edges times frames times width: they stay in the cache of a processor."""
_BLOCK_NUMBERS_GPU = 1 << 26


class EdgeEmbedding(nn.Module):
    """Embed the geometry of each edge, averaged over the frames of its neighbourhood."""

    def __init__(self, pairwise_dim: int, dropout: float) -> None:
        super().__init__()
        self.mlp = GatedMLP(3, pairwise_dim, pairwise_dim, dropout)

    def forward(self, projection: Tensor, distance: Tensor) -> Tensor:
        """Map the two parts of an `EdgeGeometry` to (n_spots, K, pairwise_dim)."""
        mlp, rate = self.mlp, self.mlp.dropout.rate
        first = torch.cat([mlp.fc1.weight, mlp.fc1.bias[:, None]], dim=1)
        chance = _Chance(rate, mlp.epsilon, new_key() if rate else 0)
        geometry = EdgeGeometry(projection.flatten(0, 1), distance.flatten())
        embedded: Tensor = _Embed.apply(first, *mlp.read_out(), geometry, chance)  # type: ignore[no-untyped-call]
        return embedded.view(*distance.shape, -1)


class _Chance(NamedTuple):
    """Rate of dropout, epsilon of the norm, and the key that brings back what was dropped."""

    rate: float
    epsilon: float
    key: int


class _Weights(NamedTuple):
    """Of the first layer, bias last, (width, 4); of the last layer, (n_out, width / 2); its bias, (n_out,)."""

    first: Tensor
    last: Tensor
    bias: Tensor


class _Embed(torch.autograd.Function):
    """Embedded edges (n_edges, n_out) of a geometry, which gets no gradient."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, last: Tensor, bias: Tensor, geometry: EdgeGeometry, chance: _Chance) -> Tensor:
        weights = _Weights(first, last, bias)
        embedded = first.new_empty(len(geometry.distance), len(last))
        for block in _blocks(weights, geometry, chance):
            embedded[block.rows] = block.embedded()
        ctx.save_for_backward(*weights)
        ctx.geometry, ctx.chance = geometry, chance
        return embedded

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_embedded: Tensor) -> tuple[Tensor | None, ...]:
        weights = _Weights(*ctx.saved_tensors)
        gradient = _Weights(*(torch.zeros_like(one) for one in weights))
        for block in _blocks(weights, ctx.geometry, ctx.chance):
            block.backward(d_embedded[block.rows], gradient)
        return (*gradient, None, None)


def _blocks(weights: _Weights, geometry: EdgeGeometry, chance: _Chance) -> Iterator[_Block]:
    numbers = _BLOCK_NUMBERS if geometry.distance.device.type == "cpu" else _BLOCK_NUMBERS_GPU
    size = max(1, numbers // (4 * len(weights.first)))
    kind = _CompiledBlock if compiled(weights.first) else _PlainBlock
    for start in range(0, len(geometry.distance), size):
        yield kind(weights, geometry, chance, slice(start, min(start + size, len(geometry.distance))))


class _Block(ABC):
    """Edges `rows`, embedded from normalised rows averaged over frames, (n_edges, width / 2)."""

    def __init__(self, weights: _Weights, geometry: EdgeGeometry, chance: _Chance, rows: slice) -> None:
        self.weights, self.chance, self.rows = weights, chance, rows
        self.geometry = EdgeGeometry(*(part[rows] for part in geometry))

    @abstractmethod
    def mean(self) -> Tensor:
        """Normalised rows, averaged over frames."""

    @abstractmethod
    def mean_backward(self, d_mean: Tensor, d_first: Tensor) -> Tensor:
        """Add to the gradient of the first layer; normalised rows, averaged, once more."""

    def embedded(self) -> Tensor:
        """Mean over frames, (n_edges, n_out)."""
        return self._dropped(linear(self.mean(), self.weights.last, self.weights.bias))

    def backward(self, d_embedded: Tensor, gradient: _Weights) -> None:
        """Add what these edges contribute to the gradient of every weight."""
        d_result = self._dropped(d_embedded.clone())
        mean = self.mean_backward(d_result @ self.weights.last, gradient.first)
        gradient.last.addmm_(d_result.t(), mean)
        gradient.bias.add_(d_result.sum(dim=0))

    def _dropped(self, result: Tensor) -> Tensor:
        rate = self.chance.rate
        return Keep.of(result, rate, self._key(1)).zero_(result.div_(1 - rate)) if rate else result

    def _key(self, part: int) -> tuple[int, int, int]:
        return self.chance.key, self.rows.start, part


class _CompiledBlock(_Block):
    """As `_PlainBlock`, in one compiled loop; threads take edges."""

    def mean(self) -> Tensor:
        mean = self._new_mean()
        given, into = self._given(mean), array(mean)
        in_parts(lambda edges: kernels().embed(*given, edges, into), len(mean))
        return mean

    def mean_backward(self, d_mean: Tensor, d_first: Tensor) -> Tensor:
        mean = self._new_mean()
        given, into, wanted = self._given(mean), array(mean), array(d_mean)
        found: list[NDArray[Any]] = []

        def work(edges: tuple[int, int]) -> None:
            found.append(np.zeros_like(given[0].first))
            kernels().embed_backward(*given, edges, wanted, into, found[-1])

        in_parts(work, len(mean))
        d_first.add_(torch.from_numpy(np.sum(found, axis=0).T))
        return mean

    def _new_mean(self) -> Tensor:
        return self.weights.first.new_empty(len(self.geometry.distance), self.weights.last.shape[1])

    def _given(self, mean: Tensor) -> tuple[Any, ...]:
        chosen = choice_of(Keep.of(mean, self.chance.rate, self._key(0)))
        edges = kernels().Edges(*(array(one) for one in (*self.geometry, self.weights.first.t())))
        return edges, chosen, epsilon_of(mean, self.chance.epsilon)


class _PlainBlock(_Block):
    """One frame after the other, in torch."""

    def mean(self) -> Tensor:
        return self._normal()[2].view(4, -1, self.weights.last.shape[1]).mean(dim=0)

    def mean_backward(self, d_mean: Tensor, d_first: Tensor) -> Tensor:
        inputs, gated, normal, inverse = self._normal()
        d_normal, width = (d_mean / 4).repeat(4, 1), normal.shape[1]
        along = torch.linalg.vecdot(d_normal, normal).div_(-width)
        d_x = d_normal.sub_(d_normal.sum(dim=1, keepdim=True).div_(width)).addcmul_(normal, along[:, None])
        d_first.addmm_(gated.backward_(d_x.mul_(inverse[:, None])).t(), inputs)
        return normal.view(4, -1, width).mean(dim=0)

    def _normal(self) -> tuple[Tensor, Gated, Tensor, Tensor]:
        """Inputs, gated and normalised rows of the frames, and the inverse spread of each."""
        frames = self.geometry.frames().transpose(0, 1).flatten(0, 1)
        inputs = torch.nn.functional.pad(frames, (0, 1), value=1.0)
        gated = Gated.of(inputs @ self.weights.first.t(), self.chance.rate, self._key(0), n_copies=4)
        mean, inverse = gated.moments(self.chance.epsilon)
        return inputs, gated, (gated.x - mean[:, None]).mul_(inverse[:, None]), inverse
