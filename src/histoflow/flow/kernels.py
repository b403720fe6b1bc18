"""The passes over rows and edges as one compiled loop each; needs numba, and has an equal in torch where it is used.

What stands between a gather and a sum stays in registers and the nearest cache: no array of edges times heads times
width is written for each step of the formula. Results differ from torch's by rounding.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from histoflow.flow.rows import (
    Array,
    Choice,
    add,
    add_normal,
    add_scaled,
    add_three,
    centred_dot,
    compile_at_first_call,
    dot,
    factor_of,
    gate,
    gate_along,
    gate_with_slopes,
    normal_backward,
    row_backward,
    times,
    unpack,
)

__all__ = ["Choice", "attend", "attend_backward", "embed", "embed_backward", "normalize", "normalize_backward"]


class Spots(NamedTuple):
    """What enters attention for a block of n spots with K neighbours each, of M spots in all, in H heads of width W.

    Attributes
    ----------
    receiver, sender
        Shares of spots in the first layer, shapes (n, H, W) and (M, H, W).
    part
        Shares of edges in it, shape (n, K, H, W).
    value, edge
        What is averaged, shapes (M, H, …) and (n, K, H, …).
    near, mask
        Neighbours, and which are real, shape (n, K).
    """

    receiver: Array
    sender: Array
    part: Array
    value: Array
    edge: Array
    near: Array
    mask: Array


class ReadOut(NamedTuple):
    """Last layer of the attention network and dropout behind it.

    Attributes
    ----------
    weight, bias
        Shapes (W / 2,) and (1,).
    constants
        Epsilon of the norm, and what logits and weights that are kept are multiplied with, shape (3,).
    logits, weights
        Which logits and weights of neighbours are kept, as rows of (n * K, H).
    """

    weight: Array
    bias: Array
    constants: Array
    logits: Choice
    weights: Choice


class Edges(NamedTuple):
    """Geometry of edges and the first layer that embeds it.

    Attributes
    ----------
    projection, distance
        As in `EdgeGeometry`, shapes (n_edges, 2) and (n_edges,).
    first
        Weights of the two places, of the distance, and the bias, shape (4, width).
    """

    projection: Array
    distance: Array
    first: Array


class Gradient(NamedTuple):
    """Where the way back through attention writes: sums for `sender`, `value` and `last`, the others set.

    Attributes
    ----------
    receiver, sender, part, value, edge
        As in `Spots`.
    last
        Weights of the last layer, then its bias, for every head, shape (H, W / 2 + 1).
    """

    receiver: Array
    sender: Array
    part: Array
    value: Array
    edge: Array
    last: Array


@compile_at_first_call
def attend(spots: Spots, choice: Choice, last: ReadOut, heads: tuple[int, int], attended: Array) -> None:
    """Weighted values and edges for some heads, into `attended`, (n, H * … + H * …)."""
    n_spots, n_near = spots.near.shape
    dtype = last.weight.dtype
    excess, softmax, weight_sum = np.empty(n_near, dtype), np.empty(n_near, dtype), last.weight.sum()
    for i in range(n_spots):
        for h in range(heads[0], heads[1]):
            for k in range(n_near):
                row = (i * n_near + k) * spots.receiver.shape[1] + h
                mean, inverse, along = gate_along(
                    spots.receiver[i, h],
                    spots.sender[spots.near[i, k], h],
                    spots.part[i, k, h],
                    choice,
                    row,
                    last.constants[0],
                    last.weight,
                )
                excess[k] = (along - mean * weight_sum) * inverse
            _softmax(excess, last, spots.mask, i, h, softmax)
            _average(spots, last, softmax, i, h, attended)


@compile_at_first_call
def attend_backward(
    spots: Spots, choice: Choice, last: ReadOut, heads: tuple[int, int], d_attended: Array, gradient: Gradient
) -> None:
    """Gradient of `attend`, by the formula in `histoflow.flow.attention`."""
    n_spots, n_near = spots.near.shape
    dtype, width = last.weight.dtype, len(last.weight)
    packed, d_x = np.empty(2 * width, dtype), np.empty(width, dtype)
    x, by_gate, by_value = (
        np.empty((n_near, width), dtype),
        np.empty((n_near, width), dtype),
        np.empty((n_near, width), dtype),
    )
    mean, inverse = np.empty(n_near, dtype), np.empty(n_near, dtype)
    excess, softmax, d_logit = np.empty(n_near, dtype), np.empty(n_near, dtype), np.empty(n_near, dtype)
    weight_mean = last.weight.mean()
    for i in range(n_spots):
        for h in range(heads[0], heads[1]):
            for k in range(n_near):
                add_three(spots.receiver[i, h], spots.sender[spots.near[i, k], h], spots.part[i, k, h], packed)
                row = (i * n_near + k) * spots.receiver.shape[1] + h
                mean[k], inverse[k] = gate_with_slopes(
                    packed, choice, row, last.constants[0], x[k], by_gate[k], by_value[k]
                )
                excess[k] = centred_dot(x[k], last.weight, mean[k], inverse[k])
            _softmax(excess, last, spots.mask, i, h, softmax)
            _average_backward(spots, last, softmax, i, h, d_attended, d_logit, gradient)
            _softmax_backward(softmax, last, i, h, d_logit)
            gradient.receiver[i, h], centre = 0, dtype.type(0)
            for k in range(n_near):
                slope = d_logit[k] * inverse[k]
                bend = -slope * inverse[k] * excess[k] / dtype.type(width)
                gradient.last[h, width] += d_logit[k]
                row_backward(x[k], last.weight, weight_mean, mean[k], slope, bend, d_x)
                add_scaled(x[k], slope, gradient.last[h, :width])
                centre += slope * mean[k]
                unpack(
                    d_x,
                    by_gate[k],
                    by_value[k],
                    gradient.part[i, k, h],
                    gradient.receiver[i, h],
                    gradient.sender[spots.near[i, k], h],
                )
            for d in range(width):
                gradient.last[h, d] -= centre


@compile_at_first_call
def embed(edges: Edges, choice: Choice, epsilon: Array, rows: tuple[int, int], mean: Array) -> None:
    """Normalised gated rows of edges, averaged over the four frames, into `mean`, (n_edges, width / 2).

    The frames are flips of signs: two vectors and their sum with a third make all four products.
    """
    width, dtype = mean.shape[1], edges.first.dtype
    packed, x, shares = (
        np.empty(2 * width, dtype),
        np.empty(width, dtype),
        np.empty((3, 2 * width), dtype),
    )
    for e in range(rows[0], rows[1]):
        _shares(edges.projection[e], edges.distance[e], edges.first, shares)
        mean[e] = 0
        for frame in range(4):
            _flip(shares, frame, packed)
            centre, inverse = gate(packed, choice, e, epsilon[0], x)
            add_normal(x, centre, inverse, mean[e])


@compile_at_first_call
def embed_backward(
    edges: Edges,
    choice: Choice,
    epsilon: Array,
    rows: tuple[int, int],
    d_mean: Array,
    mean: Array,
    gradient: Array,
) -> None:
    """Gradient of `embed` to `first`, added to `gradient`; `mean` is found once more, too."""
    width, dtype = mean.shape[1], edges.first.dtype
    packed, x, shares = (
        np.empty(2 * width, dtype),
        np.empty(width, dtype),
        np.empty((3, 2 * width), dtype),
    )
    by_gate, by_value, d_x = np.empty(width, dtype), np.empty(width, dtype), np.empty(width, dtype)
    sums, d_packed = np.empty((3, 2 * width), dtype), np.empty(2 * width, dtype)
    quarter = dtype.type(0.25)
    for e in range(rows[0], rows[1]):
        _shares(edges.projection[e], edges.distance[e], edges.first, shares)
        mean[e], sums[:] = 0, 0
        for frame in range(4):
            _flip(shares, frame, packed)
            centre, inverse = gate_with_slopes(packed, choice, e, epsilon[0], x, by_gate, by_value)
            add_normal(x, centre, inverse, mean[e])
            normal_backward(x, centre, inverse, d_mean[e], quarter, d_x)
            times(d_x, by_gate, d_packed[:width])
            times(d_x, by_value, d_packed[width:])
            _add_flipped(d_packed, frame, sums)
        add_scaled(sums[1], edges.projection[e, 0], gradient[0])
        add_scaled(sums[2], edges.projection[e, 1], gradient[1])
        add_scaled(sums[0], edges.distance[e], gradient[2])
        add(sums[0], gradient[3])


@compile_at_first_call
def normalize(packed: Array, choice: Choice, epsilon: Array, rows: tuple[int, int], normal: Array) -> None:
    """Gated rows of `packed`, (n_rows, width), normalised into `normal`, (n_rows, width / 2)."""
    for row in range(rows[0], rows[1]):
        mean, inverse = gate(packed[row], choice, row, epsilon[0], normal[row])
        for d in range(normal.shape[1]):
            normal[row, d] = (normal[row, d] - mean) * inverse


@compile_at_first_call
def normalize_backward(
    packed: Array, choice: Choice, epsilon: Array, rows: tuple[int, int], d_normal: Array, d_packed: Array
) -> None:
    """Gradient of `normalize`, into `d_packed`, (n_rows, width)."""
    width = d_normal.shape[1]
    x, d_x = np.empty(width, packed.dtype), np.empty(width, packed.dtype)
    by_gate, by_value = np.empty(width, packed.dtype), np.empty(width, packed.dtype)
    one = packed.dtype.type(1)
    for row in range(rows[0], rows[1]):
        mean, inverse = gate_with_slopes(packed[row], choice, row, epsilon[0], x, by_gate, by_value)
        normal_backward(x, mean, inverse, d_normal[row], one, d_x)
        times(d_x, by_gate, d_packed[row, :width])
        times(d_x, by_value, d_packed[row, width:])


@compile_at_first_call
def _softmax(excess: Array, last: ReadOut, mask: Array, i: int, h: int, softmax: Array) -> None:
    """Over real neighbours, all zero where there are none."""
    highest, total = softmax.dtype.type(-math.inf), softmax.dtype.type(0)
    for k in range(len(excess)):
        softmax[k] = (excess[k] + last.bias[0]) * factor_of(last.logits, i * len(softmax) + k, h, last.constants[1])
        if mask[i, k]:
            highest = max(highest, softmax[k])
    for k in range(len(excess)):
        softmax[k] = math.exp(softmax[k] - highest) if mask[i, k] else softmax.dtype.type(0)
        total += softmax[k]
    for k in range(len(excess)):
        softmax[k] = softmax[k] / total if mask[i, k] else softmax.dtype.type(0)


@compile_at_first_call
def _softmax_backward(softmax: Array, last: ReadOut, i: int, h: int, d_logit: Array) -> None:
    """From the gradient of weights after dropout to that of logits before it, in place."""
    total = softmax.dtype.type(0)
    for k in range(len(softmax)):
        d_logit[k] *= factor_of(last.weights, i * len(softmax) + k, h, last.constants[2])
        total += d_logit[k] * softmax[k]
    for k in range(len(softmax)):
        d_logit[k] = (
            softmax[k] * (d_logit[k] - total) * factor_of(last.logits, i * len(softmax) + k, h, last.constants[1])
        )


@compile_at_first_call
def _average(spots: Spots, last: ReadOut, softmax: Array, i: int, h: int, attended: Array) -> None:
    n_value, n_edge = spots.value.shape[2], spots.edge.shape[3]
    start = spots.value.shape[1] * n_value + h * n_edge
    of_value, of_edge = attended[i, h * n_value : (h + 1) * n_value], attended[i, start : start + n_edge]
    of_value[:], of_edge[:] = 0, 0
    for k in range(len(softmax)):
        weight = softmax[k] * factor_of(last.weights, i * len(softmax) + k, h, last.constants[2])
        add_scaled(spots.value[spots.near[i, k], h], weight, of_value)
        add_scaled(spots.edge[i, k, h], weight, of_edge)


@compile_at_first_call
def _average_backward(
    spots: Spots,
    last: ReadOut,
    softmax: Array,
    i: int,
    h: int,
    d_attended: Array,
    d_weight: Array,
    gradient: Gradient,
) -> None:
    n_value, n_edge = spots.value.shape[2], spots.edge.shape[3]
    start = spots.value.shape[1] * n_value + h * n_edge
    d_value, d_edge = d_attended[i, h * n_value : (h + 1) * n_value], d_attended[i, start : start + n_edge]
    for k in range(len(softmax)):
        j, weight = spots.near[i, k], softmax[k] * factor_of(last.weights, i * len(softmax) + k, h, last.constants[2])
        d_weight[k] = dot(d_value, spots.value[j, h]) + dot(d_edge, spots.edge[i, k, h])
        add_scaled(d_value, weight, gradient.value[j, h])
        for d in range(n_edge):
            gradient.edge[i, k, h, d] = weight * d_edge[d]


@compile_at_first_call
def _shares(place: Array, distance: Any, first: Array, shares: Array) -> None:
    """What no flip changes of the first layer, then what changes its sign with the first and the second place."""
    for d in range(shares.shape[1]):
        shares[0, d] = first[2, d] * distance + first[3, d]
        shares[1, d] = first[0, d] * place[0]
        shares[2, d] = first[1, d] * place[1]


@compile_at_first_call
def _flip(shares: Array, frame: int, packed: Array) -> None:
    sign, other = shares.dtype.type(1 - 2 * (frame // 2)), shares.dtype.type(1 - 2 * (frame % 2))
    for d in range(len(packed)):
        packed[d] = shares[0, d] + sign * shares[1, d] + other * shares[2, d]


@compile_at_first_call
def _add_flipped(d_packed: Array, frame: int, sums: Array) -> None:
    sign, other = sums.dtype.type(1 - 2 * (frame // 2)), sums.dtype.type(1 - 2 * (frame % 2))
    for d in range(len(d_packed)):
        sums[0, d] += d_packed[d]
        sums[1, d] += sign * d_packed[d]
        sums[2, d] += other * d_packed[d]
