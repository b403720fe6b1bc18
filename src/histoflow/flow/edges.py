"""Embedded geometry of edges, averaged over frames, block by block: no array of edges times frames outlives its block.

Without dropout on its result the last layer, being linear, follows the mean over frames instead of preceding it: a
quarter of the work.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from histoflow.flow.dropout import Keep, new_key
from histoflow.flow.gated import Gated, GatedMLP
from histoflow.flow.geometry import EdgeGeometry

_BLOCK_NUMBERS = 1 << 19
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
    for start in range(0, len(geometry.distance), size):
        yield _Block(weights, geometry, chance, slice(start, min(start + size, len(geometry.distance))))


class _Block:
    """Edges `rows` under four frames, one frame after the other."""

    def __init__(self, weights: _Weights, geometry: EdgeGeometry, chance: _Chance, rows: slice) -> None:
        self.weights, self.chance, self.rows = weights, chance, rows
        frames = EdgeGeometry(*(part[rows] for part in geometry)).frames().transpose(0, 1).flatten(0, 1)
        self.n_edges = len(frames) // 4
        self.inputs = torch.nn.functional.pad(frames, (0, 1), value=1.0)
        self.gated = Gated.of(self.inputs @ weights.first.t(), chance.rate, (chance.key, rows.start, 0))
        mean, self.inverse = self.gated.moments(chance.epsilon)
        self.normal = (self.gated.x - mean[:, None]).mul_(self.inverse[:, None])

    def _keep(self, like: Tensor) -> Keep:
        return Keep.of(like, self.chance.rate, (self.chance.key, self.rows.start, 1))

    def _by_frame(self, x: Tensor) -> Tensor:
        return x.view(4, self.n_edges, -1)

    def embedded(self) -> Tensor:
        """Mean over frames, (n_edges, n_out)."""
        _, last, bias = self.weights
        if not self.chance.rate:
            return linear(self._by_frame(self.normal).mean(dim=0), last, bias)
        result = linear(self.normal, last, bias)
        return self._by_frame(self._keep(result).zero_(result)).sum(dim=0).div_(4 * (1 - self.chance.rate))

    def backward(self, d_embedded: Tensor, gradient: _Weights) -> None:
        """Add what these edges contribute to the gradient of every weight."""
        d_result = (d_embedded / (4 * (1 - self.chance.rate))).repeat(4, 1)
        self._keep(d_result).zero_(d_result)
        gradient.last.addmm_(d_result.t(), self.normal)
        gradient.bias.add_(d_result.sum(dim=0))
        d_normal, normal = d_result @ self.weights.last, self.normal
        width = normal.shape[1]
        along = torch.linalg.vecdot(d_normal, normal).div_(-width)
        d_x = d_normal.sub_(d_normal.sum(dim=1, keepdim=True).div_(width)).addcmul_(normal, along[:, None])
        gradient.first.addmm_(self.gated.backward_(d_x.mul_(self.inverse[:, None])).t(), self.inputs)
