"""Attention to neighbours, block by block: no array of edges times heads times width outlives its block.

A logit is ``fc2(LayerNorm(x))`` with ``x = dropout(SiLU(a) * b)`` and, because the first layer of the attention network
is linear, ``[a, b] = receiver_i + sender_j + W e_ij``: sums over spots and edges instead of a message for every edge
and head. With one output, ``fc2`` after the norm is three numbers a row, and no normalised row is ever written: with
``w`` the weight of ``fc2`` (scale of the norm taken in), ``S = sum(w)``, ``m`` and ``r`` mean and inverse spread of a
row of D numbers,

    logit = r (w·x - m S) + bias = L + bias

    d logit / d x_d = r (w_d - S / D) - r² L (x_d - m) / D

The way back computes x again, from the same key of its dropout, instead of keeping it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from histoflow.flow.compiled import array, compiled, empty, in_parts, kernels, zeros
from histoflow.flow.dropout import Choice
from histoflow.flow.gated import Gated
from histoflow.flow.operands import Gradient, ReadOut, Spots
from histoflow.flow.precision import add_product, dtype_of_products, widened

_BLOCK_NUMBERS = 1 << 21
"""Numbers of a block at most, edges times heads times width: calls are few, and memory is little."""
_BLOCK_NUMBERS_GPU = 1 << 26


@dataclass(frozen=True)
class Neighborhood:
    """Neighbours of each spot: `index`, int64, and which of them are real, `mask`, bool; both (n_spots, K)."""

    index: Tensor
    mask: Tensor


class Inputs(NamedTuple):
    """What enters attention of H heads, with networks of width W.

    Attributes
    ----------
    receiver, sender
        Share of a spot in the first layer of the attention network, as the one that attends and as the one attended
        to, shape (n_spots, H * W).
    value
        What is attended to, shape (n_spots, hidden_dim).
    edge
        Embedded geometry, shape (n_spots, K, pairwise_dim).
    to_edge
        Weight of an edge's part for one head, shape (W, pairwise_dim / H).
    weight, bias
        Of the last layer, shapes (W / 2,) and (1,).
    """

    receiver: Tensor
    sender: Tensor
    value: Tensor
    edge: Tensor
    to_edge: Tensor
    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Chance:
    """Rates of dropout inside the network, on logits and on weights, with the key that brings the choice back."""

    inside: float
    weights: float
    epsilon: float
    key: int

    @cached_property
    def choices(self) -> tuple[Choice, Choice, Choice]:
        """What is dropped inside the network, of logits and of weights."""
        rates = (self.inside, self.inside, self.weights)
        inside, logits, weights = (Choice.of(rate, self.key, part) for part, rate in enumerate(rates))
        return inside, logits, weights


def attend(inputs: Inputs, near: Neighborhood, chance: Chance, edge_part: Tensor | None = None) -> Tensor:
    """Values and edges of the neighbours, weighted.

    Parameters
    ----------
    inputs
        Of the spots; `sender` and `value` may be of more spots than attend.
    near
        Neighbours of the spots that attend.
    chance
        Of dropout.
    edge_part
        From `edges_in_first_layer`, if it is known, as it is for the second of several draws; no gradient goes there.

    Returns
    -------
    Shape (n_spots, hidden_dim + pairwise_dim), of the type that products of matrices take; sums are not taken in
    bfloat16, nor are the weights.
    """
    dtype = dtype_of_products(inputs.value)
    with torch.autocast(inputs.value.device.type, enabled=False):
        rows = [one.to(dtype).contiguous() for one in inputs[:4]]
        weights = [widened(one).contiguous() for one in inputs[4:]]
        attended: Tensor = _Attend.apply(*rows, *weights, near, chance, edge_part)  # type: ignore[no-untyped-call]
    return attended


def edges_in_first_layer(edge: Tensor, to_edge: Tensor, into: Tensor | None = None) -> Tensor:
    """Share of edges (n_spots, K, pairwise_dim) in the first layer of the attention network, (edges * H, W).

    In bfloat16 where autocast takes products in it: half the memory. No gradient goes back. It is written `into` the
    first rows of a tensor if one is given.
    """
    rows, weight = (one.detach().to(dtype_of_products(edge)) for one in (edge, to_edge))
    rows = rows.reshape(-1, to_edge.shape[1])
    into = empty(rows, len(rows), len(weight)) if into is None else into[: len(rows)]
    return torch.mm(rows, weight.t(), out=into)


def by_head(x: Tensor, shared: Tensor, sign: int) -> Tensor:
    """Add what a spot's heads share, (n_spots, W), with its sign, to `x`, (n_spots * H, W), in place: (n_spots, H * W).

    `x` must not be a view: the way back through a change of one copies its gradient twice.
    """
    added: Tensor = _ByHead.apply(x, shared, sign)  # type: ignore[no-untyped-call]
    return added.view(len(shared), -1)


class _ByHead(torch.autograd.Function):
    """`by_head`; in bfloat16 a product of matrices finds the sum over heads sooner than a sum does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shared: Tensor, sign: int) -> Tensor:
        ctx.sign, ctx.n_spots = sign, len(shared)
        ctx.mark_dirty(x)
        x.view(len(shared), -1, x.shape[1]).add_(shared[:, None], alpha=sign)
        return x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_x: Tensor) -> tuple[Tensor | None, ...]:
        width, rows = d_x.shape[1], d_x.reshape(ctx.n_spots, -1)
        n_heads = rows.shape[1] // width
        if d_x.dtype != torch.bfloat16:
            return d_x, rows.view(-1, n_heads, width).sum(dim=1) * ctx.sign, None
        each = torch.eye(width, dtype=d_x.dtype, device=d_x.device) * ctx.sign
        return d_x, rows @ each.repeat(n_heads, 1), None


class _Attend(torch.autograd.Function):
    """`attend`, with its way back written out."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        inputs, given = Inputs(*arguments[:-3]), arguments[-3:]
        attended = empty(inputs.value, len(inputs.edge), inputs.value.shape[1] + inputs.edge.shape[2])
        edges = _edges_of(inputs)(inputs, *given)
        noted = edges.new_notes() if any(ctx.needs_input_grad) else None
        in_parts(lambda part: edges.attend(part, attended, noted), len(attended), attended.device)
        ctx.save_for_backward(*inputs)
        ctx.given, ctx.noted = given, noted
        return attended

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_attended: Tensor) -> tuple[Tensor | None, ...]:
        inputs = Inputs(*ctx.saved_tensors)
        edges = _edges_of(inputs)(inputs, *ctx.given)
        receiver, edge = (empty(one, *one.shape) for one in (inputs.receiver, inputs.edge))

        def work(part: tuple[int, int]) -> tuple[int, Inputs]:
            near = _reach(ctx.given[0].index[slice(*part)], len(inputs.sender))
            summed = inputs._replace(sender=inputs.sender[slice(*near)], value=inputs.value[slice(*near)])
            zero = (zeros(one, *one.shape, dtype=inputs.bias.dtype) for one in (*summed[1:3], *summed[4:]))
            sender, value, *weights = zero
            gradient = Inputs(receiver, sender, value, edge, *weights)
            edges.backward(part, (d_attended, ctx.noted), gradient, near[0])
            return near[0], gradient

        parts = in_parts(work, len(edge), edge.device)
        sender, value = (_joined([(start, one[k]) for start, one in parts], inputs[k]) for k in (1, 2))
        weights = (reduce(torch.add, [one[k] for _, one in parts]) for k in (4, 5, 6))
        return receiver, sender, value, edge, *weights, None, None, None


def _reach(index: Tensor, n_spots: int) -> tuple[int, int]:
    """First spot of those in `index` and the last one's successor; of all but on a processor, to wait for nothing."""
    if index.device.type != "cpu" or not index.numel():
        return 0, n_spots
    return int(index.min()), int(index.max()) + 1


def _joined(parts: list[tuple[int, Tensor]], like: Tensor) -> Tensor:
    """Sum of rows, each part with the number of its first one, in the shape and type of `like`."""
    made = empty(like, *like.shape)
    for start, stop in pairwise(
        sorted({0, len(like), *(end for first, x in parts for end in (first, first + len(x)))})
    ):
        here = [x[start - first : stop - first] for first, x in parts if first <= start and stop <= first + len(x)]
        made[start:stop] = reduce(torch.add, here) if here else 0
    return made


def _edges_of(inputs: Inputs) -> Any:
    return _CompiledEdges if compiled(inputs.value) else _PlainEdges


class _CompiledEdges:
    """All spots and their edges, with one compiled loop between the products of matrices of each block."""

    def __init__(self, inputs: Inputs, near: Neighborhood, chance: Chance, edge_part: Tensor | None) -> None:
        self.inputs, self.edge_part = inputs, edge_part
        self.n_heads, self.n_near = inputs.sender.shape[1] // len(inputs.to_edge), near.index.shape[1]
        self.rows_a_spot = self.n_near * self.n_heads
        self.spots = Spots(
            self._halves(inputs.receiver),
            self._halves(inputs.sender),
            self._by_head(inputs.value),
            self._by_head(inputs.edge),
            array(near.index),
            array(near.mask),
        )
        constants = [chance.epsilon, 1 / (1 - chance.inside), 1 / (1 - chance.weights)]
        weight, chosen = array(inputs.weight), (choice.compiled() for choice in chance.choices)
        self.last = ReadOut(weight, array(inputs.bias), np.array(constants, weight.dtype), *chosen)

    def new_notes(self) -> Tensor:
        """Where `attend` notes what the way back needs, see `kernels.attend`."""
        return empty(self.inputs.weight, len(self.inputs.edge), self.n_heads, 3, self.n_near)

    def _by_head(self, x: Tensor) -> NDArray[Any]:
        return array(x).reshape(*x.shape[:-1], self.n_heads, x.shape[-1] // self.n_heads)

    def _halves(self, x: Tensor) -> NDArray[Any]:
        return array(x).reshape(*x.shape[:-1], self.n_heads, 2, len(self.inputs.to_edge) // 2)

    def attend(self, part: tuple[int, int], attended: Tensor, noted: Tensor | None) -> None:
        """Write weighted values, then edges of some spots into `attended`, (n_spots, hidden_dim + pairwise_dim)."""
        into = array(attended), None if noted is None else array(noted)
        for rows, part_of_edges in self._blocks(part):
            kernels().attend(self.spots, self._of_edges(part_of_edges), self.last, rows, *into)

    def _blocks(self, part: tuple[int, int]) -> Iterator[tuple[tuple[int, int], Tensor]]:
        """First and last spot of each block, and the shares of its edges in the first layer, (edges * H, W)."""
        width, known = len(self.inputs.to_edge), self.edge_part
        size = max(1, min(_BLOCK_NUMBERS // (self.rows_a_spot * width), part[1] - part[0]))
        # Blocks write into the same memory: the first touch of new memory takes as long as a product.
        held = empty(self.inputs.edge, size * self.rows_a_spot, width) if known is None else None
        for start in range(*part, size):
            stop = min(start + size, part[1])
            if known is None:
                yield (start, stop), edges_in_first_layer(self.inputs.edge[start:stop], self.inputs.to_edge, held)
            else:
                yield (start, stop), known[start * self.rows_a_spot : stop * self.rows_a_spot]

    def _of_edges(self, shares: Tensor) -> NDArray[Any]:
        n_spots, width = len(shares) // self.rows_a_spot, shares.shape[1]
        return array(shares).reshape(n_spots, self.n_near, self.n_heads, 2, width // 2)

    def backward(self, part: tuple[int, int], given: tuple[Tensor, Tensor], gradient: Inputs, first: int) -> None:
        """Add what the edges of some spots contribute to the gradient of every input.

        `given` are the gradient of `attended` and what was noted; `first` is the spot with which the gradient of
        `sender` and `value` begins.
        """
        last = self.inputs.weight.new_zeros(self.n_heads, len(self.inputs.weight) + 1)
        into = Gradient(
            self._halves(gradient.receiver),
            self._halves(gradient.sender),
            self._by_head(gradient.value),
            self._by_head(gradient.edge),
            array(last),
            first,
        )
        d_attended, noted = map(array, given)
        to_edge = self.inputs.to_edge.to(gradient.edge.dtype)
        edge, d_edge = (x.detach().view(-1, to_edge.shape[1]) for x in (self.inputs.edge, gradient.edge))
        for rows, d_part in self._blocks(part):
            kernels().attend_backward(self.spots, self._of_edges(d_part), self.last, rows, d_attended, noted, into)
            of_rows = slice(rows[0] * self.rows_a_spot, rows[1] * self.rows_a_spot)
            add_product(edge[of_rows].t(), d_part, gradient.to_edge.t())  # sooner than its transpose
            d_edge[of_rows].addmm_(d_part, to_edge)
        gradient.weight.add_(last[:, :-1].sum(dim=0))
        gradient.bias.add_(last[:, -1].sum())


class _PlainEdges:
    """All spots and their edges, block by block in torch; nothing is kept for the way back."""

    def __init__(self, inputs: Inputs, near: Neighborhood, chance: Chance, edge_part: Tensor | None) -> None:
        self.given = inputs, near, chance, edge_part

    def new_notes(self) -> None:
        """Nothing."""

    def _blocks(self, part: tuple[int, int]) -> Iterator[tuple[slice, _Block]]:
        inputs, near, *_ = self.given
        numbers = _BLOCK_NUMBERS if inputs.value.device.type == "cpu" else _BLOCK_NUMBERS_GPU
        size = max(1, numbers // (near.index.shape[1] * inputs.sender.shape[1]))
        for start in range(*part, size):
            rows = slice(start, min(start + size, part[1]))
            yield rows, _Block(*self.given, rows)

    def attend(self, part: tuple[int, int], attended: Tensor, noted: None) -> None:
        """As `_CompiledEdges.attend`."""
        for rows, block in self._blocks(part):
            block.attend(attended[rows])

    def backward(self, part: tuple[int, int], given: tuple[Tensor, None], gradient: Inputs, first: int) -> None:
        """As `_CompiledEdges.backward`."""
        for rows, block in self._blocks(part):
            block.backward(given[0][rows], gradient, first)


class _Block:
    """Spots `rows` and all their edges, from logits to weights."""

    def __init__(
        self, inputs: Inputs, near: Neighborhood, chance: Chance, edge_part: Tensor | None, rows: slice
    ) -> None:
        self.inputs, self.chance, self.rows = inputs, chance, rows
        self.senders, self.mask = near.index[rows].flatten(), near.mask[rows]
        self.n_heads = inputs.sender.shape[1] // len(inputs.to_edge)
        self.shape = (*self.mask.shape, self.n_heads)
        self.edge = widened(inputs.edge[rows]).reshape(*self.shape, -1)
        self.choices = chance.choices
        self.gated = Gated.of(self._packed(edge_part), self._kept(0, len(inputs.weight)))
        self.mean, self.inverse = self.gated.moments(chance.epsilon)
        self.excess = torch.mv(self.gated.x, inputs.weight).addcmul_(self.mean, inputs.weight.sum(), value=-1)
        self.excess *= self.inverse
        self.softmax, self.weight = self._weights()

    def _kept(self, part: int, width: int = 1) -> Tensor:
        """What the first, second or third choice keeps, for every edge and head, (edges * H, width)."""
        shape = self.mask.numel() * self.n_heads, width
        first = self.rows.start * self.mask.shape[1] * self.n_heads * width
        return self.choices[part].kept(shape, first, self.mask.device)

    def _packed(self, edge_part: Tensor | None) -> Tensor:
        """The first layer of the attention network, (edges * H, W)."""
        packed = widened(self.inputs.sender.index_select(0, self.senders))
        packed.view(*self.mask.shape, -1).add_(self.inputs.receiver[self.rows][:, None])
        rows = packed.view(-1, len(self.inputs.to_edge))
        if edge_part is None:
            return rows.addmm_(self.edge.flatten(0, 2), self.inputs.to_edge.t())
        start = self.rows.start * len(rows) // len(self.mask)
        return rows.add_(edge_part[start : start + len(rows)])

    def _weights(self) -> tuple[Tensor, Tensor]:
        """Softmax over real neighbours, all zero where there are none; and what is left of it by dropout."""
        logits = (self.excess + self.inputs.bias).view(self.shape)
        self.keep_logits = self._kept(1).view(self.shape).to(logits.dtype) / (1 - self.chance.inside)
        logits = logits * self.keep_logits
        lowest = torch.finfo(logits.dtype).min  # not -inf, which makes NaN of a spot without neighbours
        softmax = logits.masked_fill(~self.mask[..., None], lowest).softmax(dim=1) * self.mask[..., None]
        self.keep_weights = self._kept(2).view(self.shape).to(softmax.dtype) / (1 - self.chance.weights)
        return softmax, softmax * self.keep_weights

    def _values(self) -> Tensor:
        return widened(self.inputs.value.index_select(0, self.senders)).view(*self.shape, -1)

    def attend(self, attended: Tensor) -> None:
        """Write weighted values, then edges into `attended`, (spots, hidden_dim + pairwise_dim)."""
        parts = [self.weight[..., None] * part for part in (self._values(), self.edge)]
        attended.copy_(torch.cat([part.sum(dim=1).flatten(1) for part in parts], dim=1))

    def backward(self, d_attended: Tensor, gradient: Inputs, first: int) -> None:
        """As `_PlainEdges.backward`, of these edges."""
        n_hidden = self.inputs.value.shape[1]
        d_value, d_edge = (
            part.reshape(len(part), 1, self.n_heads, -1) for part in widened(d_attended).tensor_split([n_hidden], dim=1)
        )
        d_weight = (d_value * self._values()).sum(dim=-1) + (d_edge * self.edge).sum(dim=-1)
        weight = self.weight[..., None]
        gradient.value.index_add_(0, self.senders - first, (weight * d_value).view(-1, n_hidden))
        gradient.edge[self.rows] = (weight * d_edge).flatten(2)
        self._backward_of_logits(self._d_logits(d_weight), gradient, first)

    def _d_logits(self, d_weight: Tensor) -> Tensor:
        d_softmax = d_weight * self.keep_weights
        d_logits = self.softmax * (d_softmax - (self.softmax * d_softmax).sum(dim=1, keepdim=True))
        return (d_logits * self.keep_logits).flatten()

    def _backward_of_logits(self, d_logits: Tensor, gradient: Inputs, first: int) -> None:
        """The formula of the module, with ``slope = r g`` and ``bend = -r² L g / D``."""
        x, weight = self.gated.x, self.inputs.weight
        slope = d_logits * self.inverse
        bend = slope * self.inverse * self.excess / -len(weight)
        gradient.bias.add_(d_logits.sum())
        gradient.weight.add_(torch.mv(x.t(), slope) - torch.dot(slope, self.mean))
        d_x = x * bend[:, None]
        d_x.addcmul_(slope[:, None], (weight - weight.mean())[None]).sub_((bend * self.mean)[:, None])
        d_packed, edge = self.gated.backward_(d_x), self.edge.flatten(0, 2)
        gradient.to_edge.addmm_(d_packed.t(), edge)
        gradient.edge[self.rows] += (d_packed @ self.inputs.to_edge).view(*self.mask.shape, -1)
        d_packed = d_packed.view(*self.mask.shape, -1)
        gradient.receiver[self.rows] = d_packed.sum(dim=1)
        gradient.sender.index_add_(0, self.senders - first, d_packed.flatten(0, 1))
