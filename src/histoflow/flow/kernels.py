"""What a processor does with edges between two products of matrices, as one compiled loop for each way.

What stands between a gather and a sum stays in registers and the nearest cache: no array of edges times heads times
width is written for each step of a formula.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from histoflow.flow.rows import (
    Array,
    Chosen,
    add_normal,
    add_scaled,
    add_three,
    compile_at_first_call,
    dot,
    frames_backward,
    gate,
    gate_along,
    gate_with_slopes,
    keep,
    normal_backward,
    pack_frame,
    product,
    row_backward,
    set_scaled,
    softmax_backward,
    softmax_of,
    unpack,
    weight_backward,
    word,
)


class Spots(NamedTuple):
    """What enters attention for a block of n spots with K neighbours each, of M spots in all, in H heads of width W.

    Attributes
    ----------
    receiver, sender
        Shares of spots in the first layer, shapes (n, H, 2, W / 2) and (M, H, 2, W / 2).
    part
        Shares of edges in it, shape (n, K, H, 2, W / 2).
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
    """Last layer of the attention network, and dropout inside and behind it.

    Attributes
    ----------
    weight, bias
        Shapes (W / 2,) and (1,).
    constants
        Epsilon of the norm, and what logits and weights that are kept are multiplied with, shape (3,).
    inside, logits, weights
        What is kept of gated rows, of logits and of weights of neighbours.
    first
        Number of the first edge of the block among all.
    """

    weight: Array
    bias: Array
    constants: Array
    inside: Chosen | None
    logits: Chosen | None
    weights: Chosen | None
    first: int


class Edges(NamedTuple):
    """Geometry of edges and the first layer that embeds it.

    Attributes
    ----------
    projection, distance
        As in `EdgeGeometry`, shapes (n_edges, 2) and (n_edges,).
    weight
        Of the two places, of the distance, and the bias, shape (4, 2, width / 2).
    inside
        What is kept of gated rows.
    constants
        Epsilon of the norm, shape (1,).
    """

    projection: Array
    distance: Array
    weight: Array
    inside: Chosen | None
    constants: Array


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
def attend(spots: Spots, last: ReadOut, attended: Array) -> None:
    """Weighted values and edges, into `attended`, (n, H * … + H * …)."""
    receiver, sender, part, value, edge, near, mask = spots
    weight, bias, constants, inside, logits, weights, first = last
    (n_near, n_heads), width, real = part.shape[1:3], len(weight), weight.dtype.type
    weight_sum, excess = weight.sum(), np.empty(n_near, real)
    softmax, factor = np.empty(n_near, real), np.empty(n_near, real)
    n_value, n_edge = value.shape[2], edge.shape[3]
    for i in range(len(near)):
        for h in range(n_heads):
            place = np.uint32((first + i * n_near) * n_heads + h)
            for k in range(n_near):
                shares, row = sender[near[i, k], h], np.uint32(place + np.uint32(k * n_heads)) * np.uint32(width)
                mean, inverse, along = gate_along(
                    receiver[i, h], shares, part[i, k, h], weight, inside, row, constants[0]
                )
                excess[k] = (along - mean * weight_sum) * inverse + bias[0]
            keep(logits, constants[1], place, n_heads, factor)
            softmax_of(excess, factor, mask[i], softmax)
            keep(weights, constants[2], place, n_heads, factor)
            of_value = attended[i, h * n_value : (h + 1) * n_value]
            of_edge = attended[i, n_heads * n_value + h * n_edge : n_heads * n_value + (h + 1) * n_edge]
            of_value[:], of_edge[:] = 0, 0
            for k in range(n_near):
                add_scaled(value[near[i, k], h], softmax[k] * factor[k], of_value)
                add_scaled(edge[i, k, h], softmax[k] * factor[k], of_edge)


@compile_at_first_call
def attend_backward(spots: Spots, last: ReadOut, d_attended: Array, gradient: Gradient) -> None:
    """Gradient of `attend`, by the formula in `histoflow.flow.attention`."""
    receiver, sender, part, value, edge, near, mask = spots
    weight, bias, constants, inside, logits, weights, first = last
    d_receiver, d_sender, d_part, d_value, d_edge, d_last = gradient
    (n_near, n_heads), width, real = part.shape[1:3], len(weight), weight.dtype.type
    n_value, n_edge = value.shape[2], edge.shape[3]
    packed, slopes = np.empty((n_near, 2, width), real), np.empty((n_near, 2, width), real)
    mean, inverse, excess = np.empty(n_near, real), np.empty(n_near, real), np.empty(n_near, real)
    softmax, d_logit = np.empty(n_near, real), np.empty(n_near, real)
    of_logits, of_weights = np.empty(n_near, real), np.empty(n_near, real)
    weight_sum = weight.sum()
    centred = weight - weight_sum / real(width)
    for i in range(len(near)):
        for h in range(n_heads):
            place = np.uint32((first + i * n_near) * n_heads + h)
            for k in range(n_near):
                add_three(receiver[i, h], sender[near[i, k], h], part[i, k, h], packed[k])
                row = np.uint32(place + np.uint32(k * n_heads)) * np.uint32(width)
                mean[k], inverse[k], along = gate_with_slopes(packed[k], weight, inside, row, constants[0], slopes[k])
                excess[k] = (along - mean[k] * weight_sum) * inverse[k] + bias[0]
            keep(logits, constants[1], place, n_heads, of_logits)
            keep(weights, constants[2], place, n_heads, of_weights)
            softmax_of(excess, of_logits, mask[i], softmax)
            of_value = d_attended[i, h * n_value : (h + 1) * n_value]
            of_edge = d_attended[i, n_heads * n_value + h * n_edge : n_heads * n_value + (h + 1) * n_edge]
            for k in range(n_near):
                j, share = near[i, k], softmax[k] * of_weights[k]
                d_logit[k] = (dot(of_value, value[j, h]) + dot(of_edge, edge[i, k, h])) * of_weights[k]
                add_scaled(of_value, share, d_value[j, h])
                set_scaled(of_edge, share, d_edge[i, k, h])
            softmax_backward(softmax, of_logits, d_logit)
            d_receiver[i, h] = 0
            for k in range(n_near):
                slope = d_logit[k] * inverse[k]
                bend = -slope * inverse[k] * (excess[k] - bias[0]) / real(width)
                d_last[h, width] += d_logit[k]
                weight_backward(packed[k], slopes[k], slope, mean[k], d_last[h])
                row_backward(packed[k], slopes[k], centred, slope, bend, mean[k])
                unpack(slopes[k], d_part[i, k, h], d_receiver[i, h], d_sender[near[i, k], h])


@compile_at_first_call
def embed(edges: Edges, first: int, mean: Array) -> None:
    """Normalised gated rows of edges, averaged over the four frames, into `mean`, (n_edges, width / 2)."""
    projection, distance, weight, inside, constants = edges
    width, real = mean.shape[1], mean.dtype.type
    packed, x = np.empty((2, width), real), np.empty(width, real)
    for e in range(len(mean)):
        mean[e] = 0
        for frame in range(4):
            pack_frame(projection[e], distance[e], weight, frame, packed)
            counter = np.uint32(4 * (first + e) + frame) * np.uint32(width)
            centre, inverse = gate(packed, inside, counter, constants[0], x)
            add_normal(x, centre, inverse * real(0.25), mean[e])


@compile_at_first_call
def embed_backward(edges: Edges, first: int, d_mean: Array, mean: Array, gradient: Array) -> None:
    """Gradient of `embed` to its weight, added to `gradient`; `mean` is found once more, too."""
    projection, distance, weight, inside, constants = edges
    width, real = mean.shape[1], mean.dtype.type
    packed, slopes, x = np.empty((2, width), real), np.empty((4, 2, width), real), np.empty(width, real)
    for e in range(len(mean)):
        total = d_mean[e].sum() / real(width)
        mean[e] = 0
        for frame in range(4):
            pack_frame(projection[e], distance[e], weight, frame, packed)
            counter = np.uint32(4 * (first + e) + frame) * np.uint32(width)
            centre, inverse, along = gate_with_slopes(packed, d_mean[e], inside, counter, constants[0], slopes[frame])
            bend = (along / real(width) - centre * total) * inverse * inverse
            product(slopes[frame, 1], packed[1], x)
            add_normal(x, centre, inverse * real(0.25), mean[e])
            normal_backward(x, d_mean[e], total, centre, bend, inverse * real(0.25), slopes[frame])
        frames_backward(slopes, projection[e], distance[e], gradient)


@compile_at_first_call
def normalize(packed: Array, inside: Chosen | None, constants: Array, rows: tuple[int, int], normal: Array) -> None:
    """Gated rows of `packed`, (n_rows, 2, width / 2), normalised into `normal`, (n_rows, width / 2)."""
    width = normal.shape[1]
    for row in range(rows[0], rows[1]):
        counter = np.uint32(row) * np.uint32(width)
        mean, inverse = gate(packed[row], inside, counter, constants[0], normal[row])
        for d in range(width):
            normal[row, d] = (normal[row, d] - mean) * inverse


@compile_at_first_call
def normalize_backward(
    packed: Array, inside: Chosen | None, constants: Array, rows: tuple[int, int], d_normal: Array, d_packed: Array
) -> None:
    """Gradient of `normalize`, into `d_packed`, (n_rows, 2, width / 2)."""
    width, real = d_normal.shape[1], packed.dtype.type
    x = np.empty(width, real)
    for row in range(rows[0], rows[1]):
        total = d_normal[row].sum() / real(width)
        counter = np.uint32(row) * np.uint32(width)
        centre, inverse, along = gate_with_slopes(
            packed[row], d_normal[row], inside, counter, constants[0], d_packed[row]
        )
        bend = (along / real(width) - centre * total) * inverse * inverse
        product(d_packed[row, 1], packed[row, 1], x)
        normal_backward(x, d_normal[row], total, centre, bend, inverse, d_packed[row])


@compile_at_first_call
def scale(x: Array, chosen: Chosen, factor: Array, first: int) -> None:
    """Multiply what is kept of a flat `x` with `factor`, (1,), and the rest with zero, in place."""
    by, none, least = factor[0], x.dtype.type(0), np.uint32(chosen.least)
    for d in range(len(x)):
        x[d] *= by if word(np.uint32(first + d), chosen) >= least else none


@compile_at_first_call
def scale_by_frames(x: Array, chosen: Chosen, below: Array, factor: Array, first: int) -> None:
    """Multiply numbers of a flat `x` with `factor`, (1,), times how many of four frames keep each, in place.

    `below` are the thresholds of that number, (4,), uint32: it is how many of them a random word reaches.
    """
    by, none = factor[0], x.dtype.type(0)
    one, two, three, four = below[0], below[1], below[2], below[3]
    for d in range(len(x)):
        drawn = word(np.uint32(first + d), chosen)
        share = (by if drawn >= one else none) + (by if drawn >= two else none)
        x[d] *= share + (by if drawn >= three else none) + (by if drawn >= four else none)
