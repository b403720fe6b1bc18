"""Embedded geometry of edges, averaged over frames, block by block: no array of edges times frames outlives its block.

The last layer, being linear, follows the mean over frames instead of preceding it: a quarter of the work. Dropout of
its result, which the published network chooses for every frame before the mean, multiplies the mean with the share
of frames that keep it; both are equal where the frames' results are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from histoflow.flow.compiled import array, compiled, empty, in_parts, kernels
from histoflow.flow.dropout import Choice, FramesDropout
from histoflow.flow.gated import Gated, GatedMLP, normal_backward
from histoflow.flow.geometry import EdgeGeometry
from histoflow.flow.operands import Edges
from histoflow.flow.precision import add_product, dtype_of_products, widened

_BLOCK_NUMBERS = 1 << 21
"""Numbers of a block at most, edges times frames times width: calls are few, and memory is little."""
_BLOCK_NUMBERS_GPU = 1 << 26


class EdgeEmbedding(nn.Module):
    """Embed the geometry of each edge, averaged over the frames of its neighbourhood."""

    def __init__(self, pairwise_dim: int, dropout: float) -> None:
        super().__init__()
        self.mlp = GatedMLP(3, pairwise_dim, pairwise_dim, dropout)

    def forward(self, projection: Tensor, distance: Tensor) -> Tensor:
        """Map the two parts of an `EdgeGeometry` to (n_spots, K, pairwise_dim)."""
        mlp, rate = self.mlp, self.mlp.dropout.rate
        first = torch.cat([mlp.fc1.weight.t(), mlp.fc1.bias[None]])
        key = mlp.dropout.new_key()
        how = _How(rate, mlp.epsilon, Choice.of(rate, key, 0), Choice.of(rate, key, 1), dtype_of_products(distance))
        geometry = EdgeGeometry(projection.flatten(0, 1), distance.flatten())
        with torch.autocast(distance.device.type, enabled=False):
            weights = (first, *mlp.read_out())
            embedded: Tensor = _Embed.apply(*weights, geometry, how)  # type: ignore[no-untyped-call]
        return embedded.view(*distance.shape, -1)


class _How(NamedTuple):
    """Rate of dropout, epsilon of the norm, what is dropped inside and of the result, and the type of products."""

    rate: float
    epsilon: float
    inside: Choice
    result: Choice
    products: torch.dtype


class _Weights(NamedTuple):
    """Of the first layer, bias last, (4, width); of the last layer, (n_out, width / 2); its bias, (n_out,)."""

    first: Tensor
    last: Tensor
    bias: Tensor


class _Embed(torch.autograd.Function):
    """Embedded edges (n_edges, n_out) of a geometry, which gets no gradient."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, last: Tensor, bias: Tensor, geometry: EdgeGeometry, how: _How) -> Tensor:
        weights = _Weights(first, last, bias)
        embedded = empty(first, len(geometry.distance), len(last), dtype=how.products)

        def work(part: tuple[int, int]) -> None:
            for block in _blocks(weights, geometry, how, part):
                block.embed(embedded[block.rows])

        in_parts(work, len(embedded), first.device)
        ctx.save_for_backward(*weights)
        ctx.geometry, ctx.how = geometry, how
        return embedded

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_embedded: Tensor) -> tuple[Tensor | None, ...]:
        weights = _Weights(*ctx.saved_tensors)

        def work(part: tuple[int, int]) -> _Weights:
            gradient = _Weights(*(torch.zeros_like(one) for one in weights))
            for block in _blocks(weights, ctx.geometry, ctx.how, part):
                block.backward(d_embedded[block.rows], gradient)
            return gradient

        found = in_parts(work, len(d_embedded), d_embedded.device)
        return (*(sum(parts) for parts in zip(*found, strict=True)), None, None)


def _blocks(weights: _Weights, geometry: EdgeGeometry, how: _How, part: tuple[int, int]) -> Iterator[_Block]:
    numbers = _BLOCK_NUMBERS if geometry.distance.device.type == "cpu" else _BLOCK_NUMBERS_GPU
    size = max(1, numbers // (4 * weights.first.shape[1]))
    kind = _CompiledBlock if compiled(weights.first) else _PlainBlock
    for start in range(*part, size):
        yield kind(weights, geometry, how, slice(start, min(start + size, part[1])))


class _Block(ABC):
    """Edges `rows`, embedded from normalised rows averaged over frames, (n_edges, width / 2)."""

    def __init__(self, weights: _Weights, geometry: EdgeGeometry, how: _How, rows: slice) -> None:
        self.weights, self.how, self.rows = weights, how, rows
        self.whole = geometry
        self.geometry = EdgeGeometry(*(part[rows] for part in geometry))

    @abstractmethod
    def mean(self) -> Tensor:
        """Normalised rows, averaged over frames, of the type of products."""

    @abstractmethod
    def mean_backward(self, d_mean: Tensor, d_first: Tensor) -> Tensor:
        """Add to the gradient of the first layer; normalised rows, averaged, once more."""

    def embed(self, embedded: Tensor) -> None:
        """Write the mean over frames into `embedded`, (n_edges, n_out)."""
        mean = self.mean()
        result = mean @ self.weights.last.to(mean.dtype).t()
        if self.how.rate:
            self._drop(result, self.weights.bias, embedded, torch.zeros_like(self.weights.bias))
        else:
            torch.add(result, self.weights.bias, out=embedded)

    def backward(self, d_embedded: Tensor, gradient: _Weights) -> None:
        """Add what these edges contribute to the gradient of every weight."""
        if self.how.rate:
            d_result = torch.empty_like(d_embedded, memory_format=torch.contiguous_format)
            self._drop(d_embedded, torch.zeros_like(gradient.bias), d_result, gradient.bias)
        else:
            d_result = d_embedded
            gradient.bias.add_(widened(d_result).sum(dim=0))
        mean = self.mean_backward(d_result @ self.weights.last.to(d_result.dtype), gradient.first)
        add_product(d_result.t(), mean, gradient.last)

    def _drop(self, x: Tensor, bias: Tensor, made: Tensor, total: Tensor) -> None:
        FramesDropout(self.how.result, self.how.rate).scale(x, bias, self.rows.start * x.shape[1], made, total)


class _CompiledBlock(_Block):
    """In one compiled loop."""

    def mean(self) -> Tensor:
        mean = self._new_mean()
        kernels().embed(self._edges(), (self.rows.start, self.rows.stop), array(mean))
        return mean

    def mean_backward(self, d_mean: Tensor, d_first: Tensor) -> Tensor:
        mean = self._new_mean()
        into = array(d_first).reshape(4, 2, -1)
        kernels().embed_backward(self._edges(), (self.rows.start, self.rows.stop), array(d_mean), array(mean), into)
        return mean

    def _new_mean(self) -> Tensor:
        shape = len(self.geometry.distance), self.weights.last.shape[1]
        return self.weights.first.new_empty(shape, dtype=self.how.products)

    def _edges(self) -> Edges:
        weight = array(self.weights.first).reshape(4, 2, -1)
        constants = np.full(1, self.how.epsilon, weight.dtype)
        projection, distance = (array(one) for one in self.whole)
        return Edges(projection, distance, weight, self.how.inside.compiled(), constants)


class _PlainBlock(_Block):
    """One frame after the other, in torch."""

    def mean(self) -> Tensor:
        return self._mean_of(self._normal()[2])

    def mean_backward(self, d_mean: Tensor, d_first: Tensor) -> Tensor:
        inputs, gated, normal, inverse = self._normal()
        d_x = normal_backward((widened(d_mean) / 4).repeat(4, 1), normal, inverse)
        d_first.addmm_(inputs.t(), gated.backward_(d_x))
        return self._mean_of(normal)

    def _mean_of(self, normal: Tensor) -> Tensor:
        return normal.view(4, -1, normal.shape[1]).mean(dim=0).to(self.how.products)

    def _normal(self) -> tuple[Tensor, Gated, Tensor, Tensor]:
        """Inputs, gated and normalised rows of the frames, and the inverse spread of each."""
        frames = self.geometry.frames().transpose(0, 1).flatten(0, 1)
        inputs = torch.nn.functional.pad(frames, (0, 1), value=1.0)
        width, n_edges = self.weights.last.shape[1], len(self.geometry.distance)
        kept = self.how.inside.kept((n_edges, 4, width), 4 * self.rows.start * width, inputs.device)
        gated = Gated.of(inputs @ self.weights.first, kept.transpose(0, 1).flatten(0, 1))
        return inputs, gated, *gated.normal(self.how.epsilon)
