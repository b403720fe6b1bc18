"""STPath's network on its published weights: exact attention of every spot to all, in memory linear in the spots.

Written from the shapes and names of the state dict and the equations of Huang et al. (npj Digital Medicine, 2025). The
published attention adds to each logit a linear function of the neighbour's place in the four frames of a principal
component analysis, averaged over the frames, and of its distance. The frames differ in nothing but signs, so the places
cancel, and ``bias_ij = w · |x_i - x_j|`` is all that is left: no array of pairs, frames and dimensions is needed, and
the softmax runs over a block of query rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, scaled_dot_product_attention

from histoflow._errors import WeightsError
from histoflow.models.stpath_vocabulary import MASK, ORGANS, TECHS
from histoflow.pp.encoders.weights import fit_state

Floats = NDArray[np.float32]

N_FEATURES = 1536
"""Width of a GigaPath embedding."""

_EXTENT = 100.0
_MOST_LOGITS = 1 << 24
"""Logits held at once: 64 MiB, whatever the number of spots."""


@dataclass(frozen=True)
class Sizes:
    """Widths of the network, read off its weights.

    Attributes
    ----------
    n_features, hidden_dim, mlp_dim
        Widths of a spot's embedding, of its token, and inside the perceptrons.
    n_layers, n_heads
        Of the transformer.
    n_tokens, n_outputs
        Genes with padding and mask, and genes that are predicted.
    """

    n_features: int
    hidden_dim: int
    mlp_dim: int
    n_layers: int
    n_heads: int
    n_tokens: int
    n_outputs: int

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> Sizes:
        """Read the sizes off a state dict; KeyError or ValueError for that of another network."""
        hidden_dim, n_features = state["input_encoder.image_embed.weight"].shape
        blocks = {name.split(".")[2] for name in state if name.startswith("model.blks.")}
        return cls(
            n_features=n_features,
            hidden_dim=hidden_dim,
            mlp_dim=state["model.blks.0.mlp.fc1.weight"].shape[0],
            n_layers=len(blocks),
            n_heads=state["model.blks.0.attn.edge_bias.0.weight"].shape[0],
            n_tokens=state["input_encoder.gene_embed.weight"].shape[1],
            n_outputs=state["gene_exp_head.1.weight"].shape[0],
        )


class Context(NamedTuple):
    """Spots whose expression is known.

    Attributes
    ----------
    rows
        Their places among the spots, shape (n_known,).
    tokens
        log1p of raw counts, shape (n_known, n_tokens), float32 in sparse rows.
    """

    rows: NDArray[np.int64]
    tokens: sparse.csr_matrix


class Network(nn.Module):
    """Spots to log1p expression.

    Parameters
    ----------
    sizes
        Widths.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.input_encoder = _InputEncoder(sizes)
        self.model = _Transformer(sizes)
        self.gene_exp_head = nn.Sequential(nn.LayerNorm(sizes.hidden_dim), nn.Linear(sizes.hidden_dim, sizes.n_outputs))

    @property
    def _head(self) -> nn.Linear:
        return cast(nn.Linear, self.gene_exp_head[1])

    @property
    def n_outputs(self) -> int:
        """Count the genes that are predicted."""
        return len(self._head.bias)

    def keep_outputs(self, tokens: NDArray[np.int64]) -> Network:
        """Predict these genes alone, in this order; the others are forgotten."""
        head, rows = self._head, torch.from_numpy(tokens)
        head.weight = nn.Parameter(head.weight[rows], requires_grad=False)
        head.bias = nn.Parameter(head.bias[rows], requires_grad=False)
        return self

    def encode(self, features: Floats, xy: Floats, organ: int, tech: int, context: Context | None = None) -> Tensor:
        """Let every spot look at all others.

        Parameters
        ----------
        features
            Embeddings, shape (n_spots, n_features).
        xy
            Places from `rescaled`, shape (n_spots, 2), x, y.
        organ, tech
            Tokens.
        context
            Spots whose expression is known; None for none.

        Returns
        -------
        Shape (n_spots, hidden_dim), for `expression`.
        """
        device = self.input_encoder.image_embed.weight.device
        places, images = _tensor(xy).to(device), _tensor(features).to(device)
        tokens = self.input_encoder(images, organ, tech, context)
        encoded: Tensor = self.gene_exp_head[0](self.model(tokens, places))
        return encoded

    def expression(self, encoded: Tensor, genes: slice = slice(None)) -> Floats:
        """log1p of raw counts of some of the predicted genes, shape (n_spots, n_genes), from what `encode` returned."""
        predicted: Floats = linear(encoded, self._head.weight[genes], self._head.bias[genes]).cpu().numpy()
        return predicted


class _InputEncoder(nn.Module):
    """Image, known or masked genes, technology and organ, added up."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.image_embed = nn.Linear(sizes.n_features, sizes.hidden_dim)
        self.gene_embed = nn.Linear(sizes.n_tokens, sizes.hidden_dim, bias=False)
        self.tech_embed = nn.Embedding(len(TECHS), sizes.hidden_dim)
        self.organ_embed = nn.Embedding(len(ORGANS), sizes.hidden_dim)

    def forward(self, features: Tensor, organ: int, tech: int, context: Context | None) -> Tensor:
        spots: Tensor = self.image_embed(features) + self.tech_embed.weight[tech] + self.organ_embed.weight[organ]
        genes = self.gene_embed.weight[:, MASK].repeat(len(spots), 1)
        if context is not None:
            known = context.tokens @ self.gene_embed.weight.T.cpu().numpy()
            genes[torch.from_numpy(context.rows).to(genes.device)] = torch.from_numpy(known).to(genes)
        return spots + genes


class _Transformer(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.blks = nn.ModuleList([_Block(sizes) for _ in range(sizes.n_layers)])

    def forward(self, tokens: Tensor, xy: Tensor) -> Tensor:
        for block in self.blks:
            tokens = block(tokens, xy)
        return tokens


class _Block(nn.Module):
    """Attention, then a perceptron whose norm sits on its hidden layer; both are added to what comes in."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.attn = _Attention(sizes)
        self.mlp = _Perceptron(sizes)

    def forward(self, tokens: Tensor, xy: Tensor) -> Tensor:
        looked: Tensor = tokens + self.attn(tokens, xy)
        thought: Tensor = looked + self.mlp(looked)
        return thought


class _Perceptron(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.fc1 = nn.Linear(sizes.hidden_dim, sizes.mlp_dim)
        self.norm = nn.LayerNorm(sizes.mlp_dim)
        self.fc2 = nn.Linear(sizes.mlp_dim, sizes.hidden_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.norm(gelu(self.fc1(tokens))))
        return out


class _Attention(nn.Module):
    """Attention of every spot to all, its logits lowered or raised by distance, a block of query rows at a time."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.hidden_dim
        self.n_heads = sizes.n_heads
        self.layernorm_qkv = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 3 * width))
        self.edge_bias = nn.Sequential(nn.Linear(3, sizes.n_heads, bias=False))
        self.W_output = nn.Sequential(nn.Linear(width, width))

    def forward(self, tokens: Tensor, xy: Tensor) -> Tensor:
        qkv = self.layernorm_qkv(tokens).unflatten(1, (3, self.n_heads, -1))
        queries, keys, values = qkv.permute(1, 2, 0, 3)  # each (n_heads, n_spots, width of a head)
        per_distance = cast(nn.Linear, self.edge_bias[0]).weight[:, 2, None, None]
        attended = torch.empty_like(tokens)
        for rows in _blocks(len(tokens), self.n_heads):
            # Not by a matrix product, which is a hundred times less exact for near places.
            distance = torch.cdist(xy[rows], xy, compute_mode="donot_use_mm_for_euclid_dist")
            seen = scaled_dot_product_attention(
                queries[None, :, rows], keys[None], values[None], attn_mask=(per_distance * distance)[None]
            )
            attended[rows] = seen[0].transpose(0, 1).flatten(1)
        out: Tensor = self.W_output(attended)
        return out


def _blocks(n_spots: int, n_heads: int) -> Iterator[slice]:
    """Query rows, so few at a time that their logits to all spots fit into a fixed space."""
    step = max(1, _MOST_LOGITS // (n_heads * n_spots))
    return (slice(start, start + step) for start in range(0, n_spots, step))


def _tensor(array: Floats) -> Tensor:
    """An array, mapped from a read-only file or not, as a tensor that does not own it."""
    return torch.from_numpy(np.require(array, requirements="W"))


def rescaled(xy: NDArray[np.float64]) -> Floats:
    """Places (n_spots, 2) from 0 to 100 along x and along y, each by its own range, as the weights were trained on.

    The unit of what comes in does not matter. A section of one row or column has no range there and stays at 0.
    """
    shifted = xy - xy.min(axis=0)
    extent = shifted.max(axis=0)
    places: Floats = (shifted / np.where(extent > 0, extent, 1.0) * _EXTENT).astype(np.float32)
    return places


def network_of(state: Mapping[str, Tensor], what: str) -> Network:
    """Make the network of a state dict, every name in its place, float32, not to be trained.

    Parameters
    ----------
    state
        Tensors by the published names.
    what
        Where they come from, for error texts.

    Raises
    ------
    WeightsError
        If they are of another network, or do not take GigaPath's embeddings.
    """
    try:
        sizes = Sizes.of(state)
    except (KeyError, ValueError) as err:
        raise WeightsError(f"{what} are not those of STPath ({err} is not as it should be); give stfm.pth") from err
    if sizes.n_features != N_FEATURES:
        raise WeightsError(f"{what} take {sizes.n_features} numbers of a spot, but GigaPath makes {N_FEATURES}")
    with torch.device("meta"):
        network = Network(sizes)
    fit_state(network, {name: value.to(torch.float32) for name, value in state.items()}, what, assign=True)
    return network.requires_grad_(False).eval()
