"""What a processor does with edges between two products of matrices, as one compiled loop for each way.

What stands between a gather and a sum stays in registers and the nearest cache: no array of edges times heads times
width is written for each step of a formula.
"""

from __future__ import annotations

import numpy as np

from histoflow.flow.jit import compile_at_first_call
from histoflow.flow.numbers import advanced, borrowed, in_wide_vectors
from histoflow.flow.operands import Array, Chosen, Edges, Gradient, ReadOut, Spots
from histoflow.flow.rows import (
    add_dropped_row,
    add_normal,
    add_scaled,
    by_row,
    clear,
    dot,
    drop_backward,
    first_layer,
    frame_backward,
    frames_backward,
    gate,
    gate_along,
    gate_backward,
    gated_backward,
    keep,
    narrow,
    row_backward,
    scale_row,
    set_normal,
    set_scaled,
    softmax_backward,
    softmax_of,
    start_of,
    wide,
    word,
)

MADE_OF = "4e97f63ed021fbff"
"""Digest of the other files that are compiled into these loops: numba looks for changes here alone."""


@compile_at_first_call
def attend(
    spots: Spots, part: Array, last: ReadOut, rows: tuple[int, int], attended: Array, noted: Array | None
) -> None:
    """Weighted values and edges of spots `rows`, into `attended`, (n, H * … + H * …).

    `part` are shares of their edges in the first layer, (rows, K, H, 2, W / 2). If `noted` is given, (n, H, 3, K), what
    the way back needs is written there: mean and inverse spread of gated rows, and logits.
    """
    receiver, sender, value, edge, near, mask = borrowed(spots)
    weight, bias, constants, inside, logits, weights = borrowed(last)
    (n_near, n_heads), width, real = part.shape[1:3], len(weight), weight.dtype.type
    part, attended = borrowed(part), borrowed(attended)
    weight_sum, logit = weight.sum(), np.empty(n_near, real)
    softmax, factor = np.empty(n_near, real), np.empty(n_near, real)
    n_value, n_edge = value.shape[2], edge.shape[3]
    of_value, of_edge = np.empty(n_value, real), np.empty(n_edge, real)
    kept, own_0, own_1 = by_row(inside, width), np.empty(width, real), np.empty(width, real)
    for i in range(rows[0], rows[1]):
        for h in range(n_heads):
            place = i * n_near * n_heads + h
            set_scaled(receiver[i, h, 0], real(1), own_0)
            set_scaled(receiver[i, h, 1], real(1), own_1)
            keep(logits, constants[1], place, n_heads, factor)
            for k in range(n_near):
                mean, inverse, logit[k] = real(0), real(0), 0
                if factor[k] != 0:  # else the logit is zero, whatever the row is
                    start = start_of(kept, place + k * n_heads, width)
                    shared, other = sender[near[i, k], h], part[i - rows[0], k, h]
                    openings, values = (own_0, shared[0], other[0]), (own_1, shared[1], other[1])
                    mean, inverse, along = gate_along(openings, values, weight, kept, start, constants[0])
                    logit[k] = (along - mean * weight_sum) * inverse + bias[0]
                if noted is not None:
                    noted[i, h, 0, k], noted[i, h, 1, k], noted[i, h, 2, k] = mean, inverse, logit[k]
            softmax_of(logit, factor, mask[i], softmax)
            keep(weights, constants[2], place, n_heads, factor)
            clear(of_value)
            clear(of_edge)
            for k in range(n_near):
                add_scaled(value[near[i, k], h], softmax[k] * factor[k], of_value)
                add_scaled(edge[i, k, h], softmax[k] * factor[k], of_edge)
            set_scaled(of_value, real(1), attended[i, h * n_value : (h + 1) * n_value])
            set_scaled(of_edge, real(1), attended[i, n_heads * n_value + h * n_edge :][:n_edge])


@compile_at_first_call
def attend_backward(
    spots: Spots, part: Array, last: ReadOut, rows: tuple[int, int], d_attended: Array, noted: Array, gradient: Gradient
) -> None:
    """Gradient of `attend`, by the formula in `histoflow.flow.attention`; that of `part` takes its place."""
    receiver, sender, value, edge, near, mask = borrowed(spots)
    weight, bias, constants, inside, logits, weights = borrowed(last)
    d_receiver, d_sender, d_value, d_edge, d_last, first = borrowed(gradient)
    (n_near, n_heads), width, real = part.shape[1:3], len(weight), weight.dtype.type
    part, noted, d_attended = borrowed(part), borrowed(noted), borrowed(d_attended)
    n_value, n_edge = value.shape[2], edge.shape[3]
    softmax, d_logit = np.empty(n_near, real), np.empty(n_near, real)
    of_logits, of_weights = np.empty(n_near, real), np.empty(n_near, real)
    of_value, of_edge, received = np.empty(n_value, real), np.empty(n_edge, real), np.empty((2, width), real)
    centred, kept, own = weight - weight.sum() / real(width), by_row(inside, width), np.empty((2, width), real)
    for i in range(rows[0], rows[1]):
        for h in range(n_heads):
            place = i * n_near * n_heads + h
            mean, inverse, logit = noted[i, h, 0], noted[i, h, 1], noted[i, h, 2]
            keep(logits, constants[1], place, n_heads, of_logits)
            keep(weights, constants[2], place, n_heads, of_weights)
            softmax_of(logit, of_logits, mask[i], softmax)
            set_scaled(d_attended[i, h * n_value : (h + 1) * n_value], real(1), of_value)
            set_scaled(d_attended[i, n_heads * n_value + h * n_edge :][:n_edge], real(1), of_edge)
            for k in range(n_near):
                j, share = near[i, k], softmax[k] * of_weights[k]
                d_logit[k] = (dot(of_value, value[j, h]) + dot(of_edge, edge[i, k, h])) * of_weights[k]
                add_scaled(of_value, share, d_value[j - first, h])
                set_scaled(of_edge, share, d_edge[i, k, h])
            softmax_backward(softmax, of_logits, d_logit)
            received[:] = 0
            for half in range(2):
                set_scaled(receiver[i, h, half], real(1), own[half])
            for k in range(n_near):
                if of_logits[k] == 0:
                    part[i - rows[0], k, h] = 0
                    continue
                slope = d_logit[k] * inverse[k]
                given = slope, -slope * inverse[k] * (logit[k] - bias[0]) / real(width), mean[k]
                d_last[h, width] += d_logit[k]
                row_backward(
                    own,
                    sender[near[i, k], h],
                    part[i - rows[0], k, h],
                    centred,
                    kept,
                    start_of(kept, place + k * n_heads, width),
                    given,
                    received,
                    d_sender[near[i, k] - first, h],
                    d_last[h],
                )
            for half in range(2):
                set_scaled(received[half], real(1), d_receiver[i, h, half])


@compile_at_first_call
def embed(edges: Edges, rows: tuple[int, int], mean: Array) -> None:
    """Normalised gated rows of edges, averaged over the four frames, into `mean`, (rows, width / 2)."""
    projection, distance, weight, inside, constants = borrowed(edges)
    mean, width, real = borrowed(mean), mean.shape[1], weight.dtype.type
    kept, x, total = by_row(inside, width), np.empty(width, real), np.empty(width, real)
    for e in range(rows[0], rows[1]):
        clear(total)
        for frame in range(4):
            openings = first_layer(weight, 0, projection[e], distance[e], frame)
            values = first_layer(weight, 1, projection[e], distance[e], frame)
            start = start_of(kept, 4 * e + frame, width)
            centre, inverse = gate(openings, values, kept, start, constants[0], x)
            add_normal(x, centre, inverse, total)
        set_scaled(total, real(0.25), mean[e - rows[0]])


@compile_at_first_call
def embed_backward(edges: Edges, rows: tuple[int, int], d_mean: Array, mean: Array, gradient: Array) -> None:
    """Gradient of `embed` to its weight, added to `gradient`; `mean` is found once more, too."""
    projection, distance, weight, inside, constants = borrowed(edges)
    width, real = mean.shape[1], weight.dtype.type
    d_mean, mean, gradient = borrowed(d_mean), borrowed(mean), borrowed(gradient)
    x, slopes = np.empty((4, width), real), np.empty((4, 2, width), real)
    kept, own, wanted = by_row(inside, width), np.empty(width, real), np.empty(width, real)
    for e in range(rows[0], rows[1]):
        set_scaled(d_mean[e - rows[0]], real(1), wanted)
        total = wanted.sum() / real(width)
        clear(own)
        for frame in range(4):
            openings = first_layer(weight, 0, projection[e], distance[e], frame)
            values = first_layer(weight, 1, projection[e], distance[e], frame)
            start = start_of(kept, 4 * e + frame, width)
            given = wanted, total, kept, start, constants[0]
            frame_backward(openings, values, given, frame, x, slopes, own)
        set_scaled(own, real(0.25), mean[e - rows[0]])
        for half in range(2):
            frames_backward(x, slopes, half, projection[e], distance[e], gradient)


@compile_at_first_call
def normalize(
    packed: Array, bias: Array, inside: Chosen | None, constants: Array, rows: tuple[int, int], normal: Array
) -> None:
    """Gated rows of `packed`, (n_rows, 2, width), and `bias`, (2, width), normalised into `normal`, (n_rows, width)."""
    packed, bias, normal = borrowed(packed), borrowed(bias), borrowed(normal)
    width, real = normal.shape[1], constants.dtype.type
    kept, x = by_row(inside, width), np.empty(width, real)
    for row in range(rows[0], rows[1]):
        openings, values = (packed[row, 0], bias[0]), (packed[row, 1], bias[1])
        mean, inverse = gate(openings, values, kept, start_of(kept, row, width), constants[0], x)
        set_normal(x, mean, inverse, normal[row])


@compile_at_first_call
def normalize_backward(
    packed: Array,
    bias: Array,
    inside: Chosen | None,
    constants: Array,
    rows: tuple[int, int],
    d_normal: Array,
    d_packed: Array,
    d_bias: Array,
) -> None:
    """Gradient of `normalize`, into `d_packed` and added to `d_bias`, (2, width)."""
    packed, bias, d_normal, d_packed, d_bias = borrowed((packed, bias, d_normal, d_packed, d_bias))
    width, real = d_normal.shape[1], constants.dtype.type
    slopes, x, wanted = np.empty((2, width), real), np.empty(width, real), np.empty(width, real)
    kept = by_row(inside, width)
    for row in range(rows[0], rows[1]):
        set_scaled(d_normal[row], real(1), wanted)
        openings, values = (packed[row, 0], bias[0]), (packed[row, 1], bias[1])
        given = wanted, wanted.sum() / real(width), kept, start_of(kept, row, width), constants[0]
        gate_backward(openings, values, given, real(1), x, slopes, None)
        gated_backward(x, slopes, d_packed[row], d_bias)


@compile_at_first_call
def add_dropped(
    x: Array, bias: Array, chosen: Chosen | None, factor: Array, rows: tuple[int, int], onto: Array, made: Array
) -> None:
    """Rows of `onto` plus what is kept of `x` with `bias`, (width,), times `factor`, (1,), into `made`."""
    x, bias, onto, made, width = borrowed(x), borrowed(bias), borrowed(onto), borrowed(made), x.shape[1]
    kept = by_row(chosen, width)
    for row in range(rows[0], rows[1]):
        add_dropped_row(x[row], bias, kept, start_of(kept, row, width), factor[0], onto[row], made[row])


@compile_at_first_call
def add_dropped_backward(
    d_made: Array, chosen: Chosen | None, factor: Array, rows: tuple[int, int], d_x: Array, d_bias: Array
) -> None:
    """Gradient of `add_dropped`, into `d_x` and added to `d_bias`."""
    d_made, d_x, d_bias, width = borrowed(d_made), borrowed(d_x), borrowed(d_bias), d_x.shape[1]
    kept = by_row(chosen, width)
    for row in range(rows[0], rows[1]):
        drop_backward(d_made[row], kept, start_of(kept, row, width), factor[0], d_x[row], d_bias)


@compile_at_first_call
def scale(x: Array, chosen: Chosen, factor: Array, first: int, made: Array) -> None:
    """What is kept of a flat `x` times `factor`, (1,), and zero for the rest, into `made`."""
    in_wide_vectors()
    by, none, least = factor[0], factor.dtype.type(0), np.uint32(chosen.least)
    for d in range(len(x)):
        share = by if word(first + d, chosen) >= least else none
        made[d] = narrow(wide(x[d]) * share, made[d])


@compile_at_first_call
def scale_by_frames(
    x: Array, bias: Array, chosen: Chosen, below: Array, factor: Array, first: int, made: Array, total: Array
) -> None:
    """Rows of `x`, (n, width), with `bias`, times `factor`, (1,), times how many of four frames keep each number.

    They are written into `made`, and their sum is added to `total`, (width,). `below` are the thresholds of how many
    keep it, (4,), uint32: it is how many of them a random word reaches.
    """
    x, bias, made, total, width = borrowed(x), borrowed(bias), borrowed(made), borrowed(total), x.shape[1]
    given = factor[0], np.uint32(below[0]), np.uint32(below[1]), np.uint32(below[2]), np.uint32(below[3])
    kept = by_row(chosen, width)
    for row in range(len(x)):
        start = advanced(np.int64(first + row * width), np.uint32(chosen.factor), np.uint32(chosen.offset))
        scale_row(x[row], bias, start, kept[1], given, made[row], total)
