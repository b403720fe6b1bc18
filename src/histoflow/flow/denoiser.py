"""The denoiser: local attention over neighbouring spots that turns noisy expression into an estimate of the data.

The network of STFlow (Huang et al., arXiv 2506.05361) as published, for any number of genes. What depends on neither
time nor expression is computed once, into a `SpotContext`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from histoflow._errors import OptionError, ShapeError
from histoflow.flow.attention import Chance, Inputs, Neighborhood, attend, by_head, edges_in_first_layer
from histoflow.flow.compiled import empty, in_parts
from histoflow.flow.dropout import Dropout
from histoflow.flow.edges import EdgeEmbedding
from histoflow.flow.gated import GatedMLP
from histoflow.flow.geometry import EdgeGeometry
from histoflow.flow.path import check_time

Updated = tuple[Tensor, Tensor]
"""Tokens and estimates of log1p expression."""

_MLP_RATIO = 4
_N_FREQUENCIES = 128
_ROWS = 2048
"""Spots that attend together where no gradient is wanted."""
_SHARED_ROWS = 1 << 13
"""Spots whose shares are found together there: a whole section of Visium."""
_HELD_NUMBERS = 1 << 26
"""Numbers of embedded edges that a context holds at most where no gradient is wanted."""


@dataclass(frozen=True)
class SpotContext:
    """All that a denoiser needs to know of a section besides expression and time.

    Attributes
    ----------
    image
        Projected embeddings, shape (n_spots, hidden_dim).
    index
        Neighbours of each spot, shape (n_spots, K), int64.
    mask
        Which neighbours are real, shape (n_spots, K), bool.
    geometry
        Of the edges.
    edges
        Embedded geometry for each layer, shapes (n_spots, K, pairwise_dim); None where it is too large to be held and
        is computed anew for every call, block by block.
    shares
        Of the edges in the first layer of each attention network, shapes (n_spots, K * n_heads, pairwise_dim); None
        where a gradient is wanted or they are too large.
    """

    image: Tensor
    index: Tensor
    mask: Tensor
    geometry: EdgeGeometry
    edges: tuple[Tensor, ...] | None
    shares: tuple[Tensor, ...] | None


class Denoiser(nn.Module):
    """Estimate the expression of a section from a noisy version of it, its image and its geometry.

    Parameters
    ----------
    n_features
        Length of a spot's embedding.
    n_genes
        Genes of the panel.
    hidden_dim
        Width of a spot's token; a multiple of `n_heads`.
    pairwise_dim
        Width of an edge's embedding and of the attention network; even, and a multiple of `n_heads`.
    n_layers
        Rounds of attention, each with its own estimate of the expression.
    n_heads
        Attention heads.
    dropout
        Probability of dropping a number inside and after every gated network and every estimate.
    attention_dropout
        Probability of dropping a neighbour's weight.

    Raises
    ------
    OptionError
        If a size is below 1 or not divisible as said, or a probability not in [0, 1).
    """

    def __init__(
        self,
        n_features: int,
        n_genes: int,
        *,
        hidden_dim: int = 128,
        pairwise_dim: int = 128,
        n_layers: int = 4,
        n_heads: int = 4,
        dropout: float = 0.2,
        attention_dropout: float = 0.2,
    ) -> None:
        super().__init__()
        _check_sizes(n_features=n_features, n_genes=n_genes, n_layers=n_layers, n_heads=n_heads)
        _check_widths(n_heads, hidden_dim=hidden_dim, pairwise_dim=pairwise_dim)
        _check_probabilities(dropout=dropout, attention_dropout=attention_dropout)
        self.n_genes, self.pairwise_dim = n_genes, pairwise_dim
        self.image = nn.Linear(n_features, hidden_dim)
        self.time = nn.Sequential(
            nn.Linear(2 * _N_FREQUENCIES, hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, hidden_dim)
        )
        self.edges = nn.ModuleList(EdgeEmbedding(pairwise_dim, dropout) for _ in range(n_layers))
        self.layers = nn.ModuleList(
            DenoiserLayer(n_genes, hidden_dim, pairwise_dim, n_heads, dropout, attention_dropout)
            for _ in range(n_layers)
        )

    def context(self, embedding: Tensor, geometry: EdgeGeometry, index: Tensor, mask: Tensor) -> SpotContext:
        """Compute what depends on neither time nor expression.

        Parameters
        ----------
        embedding
            Image embeddings, shape (n_spots, n_features), of the network's dtype.
        geometry
            From `edge_geometry`, for the same `index` and `mask`.
        index
            Neighbours of each spot, shape (n_spots, K), int64. Sections are stacked by shifting their indices.
        mask
            Which neighbours are real, shape (n_spots, K), bool.

        Raises
        ------
        ShapeError
            If the embeddings have another length than the network's, or the graph is not of these spots.
        """
        if embedding.ndim != 2 or embedding.shape[1] != self.image.in_features:
            raise ShapeError(
                f"embedding has shape {tuple(embedding.shape)}; this network takes (n_spots, {self.image.in_features})"
            )
        if len(index) != len(embedding) or not index.shape == mask.shape == geometry.distance.shape:
            raise ShapeError(
                f"index has shape {tuple(index.shape)}, mask {tuple(mask.shape)} and geometry "
                f"{tuple(geometry.distance.shape)}; all must be ({len(embedding)}, K), made for these spots"
            )
        geometry = EdgeGeometry(*(part.to(embedding.dtype) for part in geometry))
        n_numbers = index.numel() * len(self.edges) * self.pairwise_dim
        held = torch.is_grad_enabled() or n_numbers <= _HELD_NUMBERS
        edges = tuple(embed(*geometry) for embed in self.edges) if held else None
        image = self.image(embedding).to(embedding.dtype)
        return SpotContext(image, index, mask, geometry, edges, self._edge_shares(edges))

    def _edge_shares(self, edges: tuple[Tensor, ...] | None) -> tuple[Tensor, ...] | None:
        """Shares of edges in the first layers, if they may be held: a call then takes no product of edges."""
        if edges is None or torch.is_grad_enabled():
            return None
        shares: list[Tensor] = []
        for edge, layer in zip(edges, self.layers, strict=True):
            to_edge = cast(DenoiserLayer, layer).first_layer()[2]
            if sum(map(Tensor.numel, edges)) * edge.shape[2] // to_edge.shape[1] > _HELD_NUMBERS:
                return None
            share = edges_in_first_layer(edge, to_edge)
            shares.append(share.view(len(edge), -1, share.shape[1]))
        return tuple(shares)

    def forward(self, x_t: Tensor, t: Tensor, context: SpotContext) -> Tensor:
        """Estimate the data behind a noisy sample.

        Parameters
        ----------
        x_t
            Noisy log1p expression, shape (n_spots, n_genes); or of several draws, (n_draws, n_spots, n_genes), which
            share what depends on edges alone.
        t
            Time in [0, 1], shape () for one section or (n_spots, 1) for several stacked.
        context
            From `context`, of the same spots.

        Returns
        -------
        Estimated log1p expression, of the shape of `x_t`: the mean of the layers' estimates.

        Raises
        ------
        ShapeError
            If `x_t` is not of these spots and genes, or `t` fits neither form.
        """
        wanted = (len(context.image), self.n_genes)
        if x_t.ndim not in {2, 3} or x_t.shape[-2:] != wanted:
            raise ShapeError(f"x_t has shape {tuple(x_t.shape)}; this network and these spots take {wanted}")
        check_time(t, wanted[0])
        token = context.image + self.time(_sinusoids(t.to(x_t.dtype)))
        expressions = list(x_t.reshape(-1, *wanted))
        tokens, total = [token] * len(expressions), torch.zeros((), dtype=x_t.dtype, device=x_t.device)
        for number, layer in enumerate(self.layers):
            tokens, expressions = layer(tokens, expressions, partial(self._edge, context, number), context)
            total = total + torch.stack(expressions)
        return (total / len(self.layers)).reshape(x_t.shape)

    def _edge(self, context: SpotContext, layer: int, rows: slice) -> tuple[Tensor, Tensor | None]:
        """Embedded geometry of the edges of some spots, (n_rows, K, pairwise_dim), and their shares, if held."""
        if context.edges is not None:
            shares = context.shares[layer][rows].flatten(0, 1) if context.shares else None
            return _rows_of(context.edges[layer], rows), shares
        projection, distance = context.geometry
        embedded: Tensor = self.edges[layer](projection[rows], distance[rows])
        return embedded, None


class _Shares(NamedTuple):
    """What spots bring to the attention of a layer.

    Attributes
    ----------
    query
        Of the spots that attend, shape (n_rows, n_heads, hidden_dim / n_heads).
    shared
        Their expression in the first layer of the attention network, shape (n_rows, pairwise_dim).
    sender, value
        Of all spots, see `Inputs`.
    """

    query: Tensor
    shared: Tensor
    sender: Tensor
    value: Tensor

    def of(self, rows: slice) -> _Shares:
        """Those with which some spots attend."""
        return self._replace(query=_rows_of(self.query, rows), shared=_rows_of(self.shared, rows))


class DenoiserLayer(nn.Module):
    """One round: attend to neighbours, by token, geometry and expression difference, then estimate expression anew."""

    def __init__(
        self, n_genes: int, hidden_dim: int, pairwise_dim: int, n_heads: int, dropout: float, attention_dropout: float
    ) -> None:
        super().__init__()
        self.n_heads = n_heads
        # Columns of the attention network's input: query, key, edge (each of one head), expression difference.
        self.parts = [hidden_dim // n_heads, hidden_dim // n_heads, pairwise_dim // n_heads, n_genes]
        self.qkv = nn.Sequential(nn.LayerNorm(hidden_dim), nn.Linear(hidden_dim, 3 * hidden_dim))
        self.attention = GatedMLP(sum(self.parts), pairwise_dim, 1, dropout)
        self.attention_dropout = Dropout(attention_dropout)
        self.out = GatedMLP(hidden_dim + pairwise_dim, hidden_dim, hidden_dim, dropout)
        self.feed_forward = GatedMLP(hidden_dim, _MLP_RATIO * hidden_dim, hidden_dim, dropout)
        self.genes = nn.Sequential(
            nn.Linear(hidden_dim, hidden_dim),
            nn.GELU(),
            nn.LayerNorm(hidden_dim),
            Dropout(dropout),
            nn.Linear(hidden_dim, n_genes),
            Dropout(dropout),
        )

    def forward(
        self,
        tokens: list[Tensor],
        expressions: list[Tensor],
        edge_of: Callable[[slice], tuple[Tensor, Tensor | None]],
        context: SpotContext,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """New tokens (n_spots, hidden_dim) and estimates of log1p expression (n_spots, n_genes), for each draw.

        Without a gradient, spots are taken block by block: arrays of edges exist for one block only.
        """
        share = self._shares if torch.is_grad_enabled() else self._shares_by_blocks
        shares = [share(*draw) for draw in zip(tokens, expressions, strict=True)]

        def update(rows: slice) -> list[Updated]:
            (edge, part), near = edge_of(rows), Neighborhood(context.index[rows], context.mask[rows])
            if part is None and len(tokens) > 1 and not torch.is_grad_enabled():
                part = edges_in_first_layer(edge, self.first_layer()[2])
            draws = zip(tokens, shares, strict=True)
            return [self._update(_rows_of(token, rows), own.of(rows), edge, near, part) for token, own in draws]

        if torch.is_grad_enabled():
            found = update(slice(None))
        else:
            draws = zip(tokens, expressions, strict=True)
            found = [(empty(token, *token.shape), empty(expression, *expression.shape)) for token, expression in draws]
            self._by_blocks(update, found)
        return [token for token, _ in found], [expression for _, expression in found]

    def _by_blocks(self, update: Callable[[slice], list[Updated]], found: list[Updated]) -> None:
        """Write what `update` makes of the spots of each block into `found`; threads share the blocks."""

        def work(part: tuple[int, int]) -> None:
            for start in range(*part, _ROWS):
                rows = slice(start, min(start + _ROWS, part[1]))
                for whole, block in zip(found, update(rows), strict=True):
                    whole[0][rows], whole[1][rows] = block

        n_spots = len(found[0][0])
        if self.training:  # keys of dropout are drawn in one order
            work((0, n_spots))
        else:
            in_parts(work, n_spots, found[0][0].device)

    def first_layer(self) -> tuple[Tensor, ...]:
        """Weights of the first layer of the attention network, for query, key, edge and expression difference.

        It is linear, so its product with [query_i, key_j, edge_ij, y_j - y_i] is a sum over spots and edges: the
        concatenation for every edge and head is never made.
        """
        return torch.split(self.attention.fc1.weight, self.parts, dim=1)

    def _shares(self, token: Tensor, expression: Tensor) -> _Shares:
        # A product with rows that lie apart would be taken as one for every spot, each with its copy of the weight.
        apart = self.qkv(token).reshape(len(token), 3, self.n_heads, -1).unbind(dim=1)
        query, key, value = (part.contiguous() for part in apart)
        _, to_key, _, to_difference = self.first_layer()
        shared = linear(expression, to_difference)
        sender = by_head(linear(key.flatten(0, 1), to_key), shared, 1)
        return _Shares(query, shared, sender, value.flatten(1))

    def _shares_by_blocks(self, token: Tensor, expression: Tensor) -> _Shares:
        """As `_shares`, without arrays of all spots but those that are kept."""
        if len(token) <= _SHARED_ROWS:
            return self._shares(token, expression)
        kept: list[Tensor] = []
        for start in range(0, len(token), _SHARED_ROWS):
            rows = slice(start, start + _SHARED_ROWS)
            own = self._shares(token[rows], expression[rows])
            kept = kept or [empty(part, len(token), *part.shape[1:]) for part in own]
            for whole, part in zip(kept, own, strict=True):
                whole[rows] = part
        return _Shares(*kept)

    def _update(
        self, token: Tensor, shares: _Shares, edge: Tensor, near: Neighborhood, edge_part: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """New tokens and estimates of the spots of a block."""
        to_query, _, to_edge, _ = self.first_layer()
        own = shares.shared - self.attention.fc1.bias.to(shares.shared.dtype)
        receiver = by_head(linear(shares.query.flatten(0, 1), to_query), own, -1)
        weight, bias = self.attention.read_out()
        inputs = Inputs(receiver, shares.sender, shares.value, edge, to_edge, weight[0], bias)
        token = self.out(attend(inputs, near, self._chance(), edge_part), token)
        token = self.feed_forward(token, token)
        return token, self.genes(token).to(token.dtype)

    def _chance(self) -> Chance:
        inside, weights = self.attention.dropout.rate, self.attention_dropout.rate
        key = self.attention.dropout.new_key() or self.attention_dropout.new_key()
        return Chance(inside, weights, self.attention.epsilon, key)


def _rows_of(x: Tensor, rows: slice) -> Tensor:
    """Some rows, or the tensor itself: the way back through a slice of all would write zeros and then a copy."""
    return x if rows == slice(None) else x[rows]


def _sinusoids(t: Tensor) -> Tensor:
    """Cosines, then sines of `t`, shape () or (n_spots, 1), at falling frequencies: (1 or n_spots, 256)."""
    exponent = torch.arange(_N_FREQUENCIES, dtype=t.dtype, device=t.device) / _N_FREQUENCIES
    angle = t.reshape(-1, 1) * torch.exp(-math.log(10_000) * exponent)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise OptionError(f"{name} is {size}; give at least 1")


def _check_widths(n_heads: int, **widths: int) -> None:
    for name, width in widths.items():
        if width < 2 or width % 2 or width % n_heads:
            raise OptionError(f"{name} is {width}; give an even multiple of n_heads, which is {n_heads}")


def _check_probabilities(**probabilities: float) -> None:
    for name, probability in probabilities.items():
        if not 0 <= probability < 1:
            raise OptionError(f"{name} is {probability}; give a probability of at least 0 and below 1")
