"""The published network of STFlow written the obvious way, for `denoiser.py` to time beside ours.

Written from its description (Huang et al., arXiv 2506.05361), with nothing shared between layers or calls: every layer
finds the neighbours anew from all distances, takes the axes of each neighbourhood from `torch.linalg.eigh`, and puts
the whole message, (n_spots, n_neighbors, n_heads, 146), through the attention network. Names of its parameters are
those of `histoflow.flow.Denoiser`, so that weights can be taken over.
"""

import math

import torch
from torch import Tensor, nn

SIGNS = ((1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0))


class GatedMLP(nn.Module):
    """Two linear layers with a gate and a norm between them."""

    def __init__(self, n_in: int, width: int, n_out: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(n_in, width)
        self.norm = nn.LayerNorm(width // 2)
        self.fc2 = nn.Linear(width // 2, n_out)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, n_in) to (…, n_out)."""
        gate, value = self.fc1(x).chunk(2, dim=-1)
        return self.dropout(self.fc2(self.norm(self.dropout(nn.functional.silu(gate) * value))))


class EdgeEmbedding(nn.Module):
    """Geometry of edges, averaged over frames."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.mlp = GatedMLP(3, width, width, dropout)

    def forward(self, offset: Tensor) -> Tensor:
        """Offsets of neighbours (n_spots, K, 2), averaged over four frames: (n_spots, K, width)."""
        centred = offset - offset.mean(dim=1, keepdim=True)
        with torch.no_grad():
            _, axes = torch.linalg.eigh(centred.transpose(1, 2) @ centred)
        frames = torch.stack([axes * axes.new_tensor(signs) for signs in SIGNS], dim=1)
        projected = torch.einsum("ikx,ifxy->ikfy", centred, frames)
        distance = offset.norm(dim=-1)[..., None, None].expand(*projected.shape[:-1], 1)
        return self.mlp(torch.cat([projected, distance], dim=-1)).mean(dim=2)


class Layer(nn.Module):
    """Attention to neighbours, then a new estimate of expression."""

    def __init__(self, n_genes: int, hidden: int, width: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, 3 * hidden))
        self.attention = GatedMLP((2 * hidden + width) // n_heads + n_genes, width, 1, dropout)
        self.attention_dropout = nn.Dropout(dropout)
        self.out = GatedMLP(hidden + width, hidden, hidden, dropout)
        self.feed_forward = GatedMLP(hidden, 4 * hidden, hidden, dropout)
        self.genes = nn.Sequential(
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.LayerNorm(hidden),
            nn.Dropout(dropout),
            nn.Linear(hidden, n_genes),
            nn.Dropout(dropout),
        )

    def forward(self, token: Tensor, y: Tensor, edge: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """New tokens (n_spots, hidden) and expression (n_spots, n_genes)."""
        n_spots, n_near, n_heads = *index.shape, self.n_heads
        query, key, value = self.qkv(token).reshape(n_spots, 3, n_heads, -1).unbind(dim=1)
        edge = edge.reshape(n_spots, n_near, n_heads, -1)
        difference = (y[index] - y[:, None])[:, :, None].expand(-1, -1, n_heads, -1)
        message = torch.cat([query[:, None].expand(-1, n_near, -1, -1), key[index], edge, difference], dim=-1)
        weight = self.attention_dropout(self.attention(message).softmax(dim=1))
        from_value, from_edge = (weight * value[index]).sum(dim=1), (weight * edge).sum(dim=1)
        token = token + self.out(torch.cat([from_value.flatten(1), from_edge.flatten(1)], dim=-1))
        token = token + self.feed_forward(token)
        return token, self.genes(token)


class ReferenceDenoiser(nn.Module):
    """The whole network; `forward` takes what a section is made of."""

    def __init__(
        self,
        n_features: int,
        n_genes: int,
        *,
        hidden: int = 128,
        width: int = 128,
        n_layers: int = 4,
        n_heads: int = 4,
        dropout: float = 0.2,
        n_neighbors: int = 8,
    ) -> None:
        super().__init__()
        self.n_neighbors = n_neighbors
        self.image = nn.Linear(n_features, hidden)
        self.time = nn.Sequential(nn.Linear(256, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.edges = nn.ModuleList(EdgeEmbedding(width, dropout) for _ in range(n_layers))
        self.layers = nn.ModuleList(Layer(n_genes, hidden, width, n_heads, dropout) for _ in range(n_layers))

    def forward(self, x_t: Tensor, t: Tensor, features: Tensor, xy: Tensor) -> Tensor:
        """Expression (n_spots, n_genes) at time `t`, (), features (n_spots, n_features), places (n_spots, 2)."""
        angle = t * torch.exp(-math.log(10_000) * torch.arange(128, dtype=t.dtype) / 128)
        token = self.image(features) + self.time(torch.cat([angle.cos(), angle.sin()]))
        y, estimates = x_t, []
        for embed, layer in zip(self.edges, self.layers, strict=True):
            distance = (xy[:, None] - xy[None]).norm(dim=-1)
            distance.fill_diagonal_(1e9)
            index = distance.topk(self.n_neighbors, dim=1, largest=False).indices
            token, y = layer(token, y, embed(xy[index] - xy[:, None]), index)
            estimates.append(y)
        return torch.stack(estimates).mean(dim=0)
