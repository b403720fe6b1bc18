"""What a processor does with edges between two products of matrices, as one compiled loop for each way.

What stands between a gather and a sum stays in registers and the nearest cache: no array of edges times heads times
width is written for each step of a formula.

A loop is made of functions for one row, which are loops along its width that become vector instructions: they touch few
arrays each, start at zero and have no mixed types, or the compiler makes no vectors of them. A gated row has two
halves, [a, b]: arrays that hold such rows have an axis of two before the last one. Each function is made part of every
loop that calls it. A loop that called it instead would take a copy of its own or one of another loop, depending on what
was compiled before and what came from a file, and copies may round in other ways. All are in this file, because numba
compiles anew what it has kept in files when this file changes.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numba.extending import intrinsic

from histoflow.flow.jit import by_type, compile_at_first_call, inlined
from histoflow.flow.operands import Array, Chosen, Edges, Gradient, ReadOut, Spots


def _mix(context: Any, first: Any, step: Any, factor: Any, offset: Any) -> Any:
    """Types of `word`, and its instructions."""

    def made(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        first, step, factor, offset = given
        x = builder.add(first, builder.trunc(step, first.type))
        x = builder.add(builder.mul(x, factor), offset)
        for shift, by in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
            x = builder.xor(x, builder.lshr(x, x.type(shift)))
            x = builder.mul(x, x.type(by))
        return x

    return numba.uint32(first, step, factor, offset), made


# Of two numbers of 32 bits numba makes one of 64, whose products take a processor several times as long.
_mixed: Any = intrinsic(_mix)


@inlined
def word(first: Any, step: Any, chosen: Chosen) -> Any:
    """The random word of the place `step` after the first one, uint32, as in `histoflow.flow.dropout`."""
    return _mixed(np.uint32(first), np.int64(step), np.uint32(chosen.factor), np.uint32(chosen.offset))


@inlined
def is_kept(chosen: Chosen | None, first: Any, step: Any) -> Any:
    """Whether dropout keeps the number `step` after the first; without a choice, known when compiled, all are kept."""
    if chosen is None:
        return True
    return word(first, step, chosen) >= np.uint32(chosen.least)


@inlined
def keep(chosen: Chosen | None, by: Any, place: Any, step: int, factor: Array) -> None:
    """What dropout multiplies numbers with, `by` or zero, the first at a place and others so many places apart."""
    for k in range(len(factor)):
        factor[k] = by if is_kept(chosen, place, k * step) else factor.dtype.type(0)


def _exp(x: float) -> float:
    return math.exp(x)


@inlined
def _exp_single(x: Any) -> Any:
    """Exponential within 2e-7 of itself, by Cody and Waite's reduction and a polynomial (Cephes' `expf`)."""
    x = min(max(x, np.float32(-87)), np.float32(88))
    n = np.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23))
    return (p * r * r + r + np.float32(1)) * power.view(np.float32)


@by_type(_exp)
def _exp_of_type(x: Any) -> Any:
    return (lambda x: _exp_single(x)) if x == numba.float32 else (lambda x: math.exp(x))


@inlined
def _sigmoid(x: Any, one: Any) -> Any:
    return one / (one + _exp(-x))


@inlined
def _moments(total: Any, square: Any, width: int, real: Any, epsilon: Any) -> Any:
    """Mean and inverse spread of a row; numbers are turned into `real`, as a product with an integer is a double."""
    mean = total / real(width)
    return mean, real(1) / math.sqrt(max(square / real(width) - mean * mean, real(0)) + epsilon)


@inlined
def gate(packed: Array, inside: Chosen | None, counter: Any, epsilon: Any, x: Array) -> Any:
    """``x = keep * SiLU(a) * b`` of a row [a, b]; its mean and inverse spread."""
    real = x.dtype.type
    total, square = real(0), real(0)
    for d in range(len(x)):
        opening = wide(packed[0, d])
        gated = opening * _sigmoid(opening, real(1)) * wide(packed[1, d])
        kept = is_kept(inside, counter, d)
        gated = gated if kept else real(0)
        total += gated
        square += gated * gated
        x[d] = gated
    return _moments(total, square, len(x), real, epsilon)


@inlined
def gate_along(
    first: Array, second: Array, third: Array, weight: Array, inside: Chosen | None, counter: Any, epsilon: Any
) -> Any:
    """Mean and inverse spread of the gated sum of three rows, and its product with `weight`; nothing is written."""
    real = weight.dtype.type
    total, square, along = real(0), real(0), real(0)
    for d in range(len(weight)):
        opening = wide(first[0, d]) + wide(second[0, d]) + wide(third[0, d])
        value = wide(first[1, d]) + wide(second[1, d]) + wide(third[1, d])
        gated = opening * _sigmoid(opening, real(1)) * value
        kept = is_kept(inside, counter, d)
        gated = gated if kept else real(0)
        total += gated
        square += gated * gated
        along += gated * weight[d]
    mean, inverse = _moments(total, square, len(weight), real, epsilon)
    return mean, inverse, along


@inlined
def gate_with_slopes(
    packed: Array, weight: Array, inside: Chosen | None, counter: Any, epsilon: Any, slopes: Array
) -> Any:
    """As `gate_along`, with the derivatives of the row by a and by b; the second, times b, is the row."""
    real = weight.dtype.type
    total, square, along = real(0), real(0), real(0)
    for d in range(len(weight)):
        # Where a number is dropped, a sigmoid of zero makes it zero, and both derivatives with it.
        kept = is_kept(inside, counter, d)
        opening, value = wide(packed[0, d]), wide(packed[1, d])
        sigmoid = _sigmoid(opening, real(1)) if kept else real(0)
        opened = opening * sigmoid
        slopes[0, d] = value * sigmoid * (real(1) + opening - opened)
        slopes[1, d] = opened
        gated = opened * value
        total += gated
        square += gated * gated
        along += gated * weight[d]
    mean, inverse = _moments(total, square, len(weight), real, epsilon)
    return mean, inverse, along


def wide(x: Any) -> Any:
    """A number of a row, from its bits if it is a bfloat16."""
    return x


@by_type(wide)
def _wide_by_type(x: Any) -> Any:
    bits = x == numba.uint16
    return (lambda x: np.uint32(np.uint32(x) << np.uint32(16)).view(np.float32)) if bits else (lambda x: x)


def narrow(x: Any, like: Any) -> Any:
    """A number as the row of `like` holds it: the bits of the nearest bfloat16, or itself."""
    return x


@by_type(narrow)
def _narrow_by_type(x: Any, like: Any) -> Any:
    def number(x: Any, like: Any) -> Any:
        return x

    def to_bits(x: Any, like: Any) -> Any:
        bits = np.float32(x).view(np.uint32)
        even = np.uint32((bits >> np.uint32(16)) & np.uint32(1))
        return np.uint16(np.uint32(bits + np.uint32(0x7FFF) + even) >> np.uint32(16))

    return to_bits if like == numba.uint16 else number


@inlined
def add_three(first: Array, second: Array, third: Array, total: Array) -> None:
    """Sum of three rows, each in two halves, into `total`."""
    for half in range(2):
        for d in range(total.shape[1]):
            total[half, d] = wide(first[half, d]) + wide(second[half, d]) + wide(third[half, d])


@inlined
def unpack(d_packed: Array, own: Array, receiver: Array, sender: Array) -> None:
    """Gradient of a row before its gate, set in its own place and added to those of its two spots."""
    for half in range(2):
        for d in range(d_packed.shape[1]):
            given = d_packed[half, d]
            own[half, d] = narrow(given, own[half, d])
            receiver[half, d] += given
            sender[half, d] += given


@inlined
def weight_backward(packed: Array, slopes: Array, slope: Any, mean: Any, total: Array) -> None:
    """Add to the gradient of the last layer what a row contributes: `slope` times the row less its mean."""
    for d in range(packed.shape[1]):
        total[d] += slope * (slopes[1, d] * packed[1, d] - mean)


@inlined
def row_backward(packed: Array, slopes: Array, centred: Array, slope: Any, bend: Any, mean: Any) -> None:
    """Turn derivatives of a row into the gradient before its gate, in place."""
    for d in range(packed.shape[1]):
        d_x = slope * centred[d] + bend * (slopes[1, d] * packed[1, d] - mean)
        slopes[0, d] *= d_x
        slopes[1, d] *= d_x


@inlined
def product(x: Array, y: Array, made: Array) -> None:
    """Product of two rows, number by number, into `made`."""
    for d in range(len(x)):
        made[d] = x[d] * wide(y[d])


@inlined
def add_normal(x: Array, centre: Any, inverse: Any, total: Array) -> None:
    """Add the row, less its centre, times `inverse` to `total`."""
    for d in range(len(x)):
        total[d] += (x[d] - centre) * inverse


@inlined
def normal_backward(x: Array, d_normal: Array, total: Any, centre: Any, bend: Any, inverse: Any, slopes: Array) -> None:
    """Turn derivatives of a row into the gradient before its gate, in place, from that of the row normalised."""
    for d in range(len(x)):
        d_x = (d_normal[d] - total - (x[d] - centre) * bend) * inverse
        slopes[0, d] *= d_x
        slopes[1, d] *= d_x


@inlined
def pack_frame(place: Array, distance: Any, weight: Array, frame: int, packed: Array) -> None:
    """The first layer of an edge in a frame: one of four flips of signs."""
    real = packed.dtype.type
    first, second = place[0] * real(1 - 2 * (frame // 2)), place[1] * real(1 - 2 * (frame % 2))
    for half in range(2):
        for d in range(packed.shape[1]):
            sum_of_places = weight[0, half, d] * first + weight[1, half, d] * second
            packed[half, d] = sum_of_places + weight[2, half, d] * distance + weight[3, half, d]


@inlined
def frames_backward(d_packed: Array, place: Array, distance: Any, gradient: Array) -> None:
    """Add to the gradient (4, 2, width / 2) of the first layer what an edge contributes under its four frames."""
    for half in range(2):
        one, two, three, four = d_packed[0, half], d_packed[1, half], d_packed[2, half], d_packed[3, half]
        for d in range(len(one)):
            gradient[0, half, d] += place[0] * (one[d] + two[d] - three[d] - four[d])
        for d in range(len(one)):
            gradient[1, half, d] += place[1] * (one[d] - two[d] + three[d] - four[d])
        for d in range(len(one)):
            gradient[2, half, d] += distance * (one[d] + two[d] + three[d] + four[d])
        for d in range(len(one)):
            gradient[3, half, d] += one[d] + two[d] + three[d] + four[d]


@inlined
def softmax_of(logit: Array, factor: Array, mask: Array, softmax: Array) -> None:
    """Of logits after dropout, over real neighbours, all zero where there are none."""
    real = softmax.dtype.type
    highest, total = real(-math.inf), real(0)
    for k in range(len(logit)):
        softmax[k] = logit[k] * factor[k]
        highest = max(highest, softmax[k]) if mask[k] else highest
    for k in range(len(logit)):
        softmax[k] = _exp(softmax[k] - highest) if mask[k] else real(0)
        total += softmax[k]
    for k in range(len(logit)):
        softmax[k] = softmax[k] / total if mask[k] else real(0)


@inlined
def softmax_backward(softmax: Array, factor: Array, d_logit: Array) -> None:
    """From the gradient of weights before dropout to that of logits before it, in place."""
    total = dot(d_logit, softmax)
    for k in range(len(softmax)):
        d_logit[k] = softmax[k] * (d_logit[k] - total) * factor[k]


@inlined
def dot(x: Array, y: Array) -> Any:
    """Inner product of two rows."""
    total = x.dtype.type(0)
    for d in range(len(x)):
        total += x[d] * wide(y[d])
    return total


@inlined
def add_scaled(x: Array, factor: Any, total: Array) -> None:
    """Add `factor` times a row to `total`."""
    for d in range(len(x)):
        total[d] += factor * wide(x[d])


@inlined
def set_scaled(x: Array, factor: Any, made: Array) -> None:
    """`factor` times a row, into `made`; either may hold the bits of bfloat16."""
    for d in range(len(x)):
        made[d] = narrow(factor * wide(x[d]), made[d])


@compile_at_first_call
def attend(spots: Spots, last: ReadOut, attended: Array) -> None:
    """Weighted values and edges, into `attended`, (n, H * … + H * …)."""
    receiver, sender, part, value, edge, near, mask = spots
    weight, bias, constants, inside, logits, weights, first = last
    (n_near, n_heads), width, real = part.shape[1:3], len(weight), weight.dtype.type
    weight_sum, excess = weight.sum(), np.empty(n_near, real)
    softmax, factor = np.empty(n_near, real), np.empty(n_near, real)
    n_value, n_edge = value.shape[2], edge.shape[3]
    of_value, of_edge = np.empty(n_value, real), np.empty(n_edge, real)
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
            of_value[:], of_edge[:] = 0, 0
            for k in range(n_near):
                add_scaled(value[near[i, k], h], softmax[k] * factor[k], of_value)
                add_scaled(edge[i, k, h], softmax[k] * factor[k], of_edge)
            set_scaled(of_value, real(1), attended[i, h * n_value : (h + 1) * n_value])
            set_scaled(of_edge, real(1), attended[i, n_heads * n_value + h * n_edge :][:n_edge])


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
    of_value, of_edge, received = np.empty(n_value, real), np.empty(n_edge, real), np.empty((2, width), real)
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
            set_scaled(d_attended[i, h * n_value : (h + 1) * n_value], real(1), of_value)
            set_scaled(d_attended[i, n_heads * n_value + h * n_edge :][:n_edge], real(1), of_edge)
            for k in range(n_near):
                j, share = near[i, k], softmax[k] * of_weights[k]
                d_logit[k] = (dot(of_value, value[j, h]) + dot(of_edge, edge[i, k, h])) * of_weights[k]
                add_scaled(of_value, share, d_value[j, h])
                set_scaled(of_edge, share, d_edge[i, k, h])
            softmax_backward(softmax, of_logits, d_logit)
            received[:] = 0
            for k in range(n_near):
                slope = d_logit[k] * inverse[k]
                bend = -slope * inverse[k] * (excess[k] - bias[0]) / real(width)
                d_last[h, width] += d_logit[k]
                weight_backward(packed[k], slopes[k], slope, mean[k], d_last[h])
                row_backward(packed[k], slopes[k], centred, slope, bend, mean[k])
                unpack(slopes[k], d_part[i, k, h], received, d_sender[near[i, k], h])
            for half in range(2):
                set_scaled(received[half], real(1), d_receiver[i, h, half])


@compile_at_first_call
def embed(edges: Edges, first: int, mean: Array) -> None:
    """Normalised gated rows of edges, averaged over the four frames, into `mean`, (n_edges, width / 2)."""
    projection, distance, weight, inside, constants = edges
    width, real = mean.shape[1], weight.dtype.type
    packed, x, total = np.empty((2, width), real), np.empty(width, real), np.empty(width, real)
    for e in range(len(mean)):
        total[:] = 0
        for frame in range(4):
            pack_frame(projection[e], distance[e], weight, frame, packed)
            counter = np.uint32(4 * (first + e) + frame) * np.uint32(width)
            centre, inverse = gate(packed, inside, counter, constants[0], x)
            add_normal(x, centre, inverse, total)
        set_scaled(total, real(0.25), mean[e])


@compile_at_first_call
def embed_backward(edges: Edges, first: int, d_mean: Array, mean: Array, gradient: Array) -> None:
    """Gradient of `embed` to its weight, added to `gradient`; `mean` is found once more, too."""
    projection, distance, weight, inside, constants = edges
    width, real = mean.shape[1], weight.dtype.type
    packed, slopes, x = np.empty((2, width), real), np.empty((4, 2, width), real), np.empty(width, real)
    own, wanted = np.empty(width, real), np.empty(width, real)
    for e in range(len(mean)):
        set_scaled(d_mean[e], real(1), wanted)
        total = wanted.sum() / real(width)
        own[:] = 0
        for frame in range(4):
            pack_frame(projection[e], distance[e], weight, frame, packed)
            counter = np.uint32(4 * (first + e) + frame) * np.uint32(width)
            centre, inverse, along = gate_with_slopes(packed, wanted, inside, counter, constants[0], slopes[frame])
            bend = (along / real(width) - centre * total) * inverse * inverse
            product(slopes[frame, 1], packed[1], x)
            add_normal(x, centre, inverse, own)
            normal_backward(x, wanted, total, centre, bend, inverse * real(0.25), slopes[frame])
        set_scaled(own, real(0.25), mean[e])
        frames_backward(slopes, projection[e], distance[e], gradient)


@compile_at_first_call
def normalize(packed: Array, inside: Chosen | None, constants: Array, rows: tuple[int, int], normal: Array) -> None:
    """Gated rows of `packed`, (n_rows, 2, width / 2), normalised into `normal`, (n_rows, width / 2)."""
    width, real = normal.shape[1], constants.dtype.type
    x = np.empty(width, real)
    for row in range(rows[0], rows[1]):
        mean, inverse = gate(packed[row], inside, np.uint32(row) * np.uint32(width), constants[0], x)
        for d in range(width):
            normal[row, d] = narrow((x[d] - mean) * inverse, normal[row, d])


@compile_at_first_call
def normalize_backward(
    packed: Array, inside: Chosen | None, constants: Array, rows: tuple[int, int], d_normal: Array, d_packed: Array
) -> None:
    """Gradient of `normalize`, into `d_packed`, (n_rows, 2, width / 2)."""
    width, real = d_normal.shape[1], constants.dtype.type
    slopes, x, wanted = np.empty((2, width), real), np.empty(width, real), np.empty(width, real)
    for row in range(rows[0], rows[1]):
        set_scaled(d_normal[row], real(1), wanted)
        total, counter = wanted.sum() / real(width), np.uint32(row) * np.uint32(width)
        centre, inverse, along = gate_with_slopes(packed[row], wanted, inside, counter, constants[0], slopes)
        bend = (along / real(width) - centre * total) * inverse * inverse
        product(slopes[1], packed[row, 1], x)
        normal_backward(x, wanted, total, centre, bend, inverse, slopes)
        for half in range(2):
            set_scaled(slopes[half], real(1), d_packed[row, half])


@compile_at_first_call
def scale(x: Array, chosen: Chosen, factor: Array, first: int) -> None:
    """Multiply what is kept of a flat `x` with `factor`, (1,), and the rest with zero, in place."""
    by, none, least = factor[0], factor.dtype.type(0), np.uint32(chosen.least)
    for d in range(len(x)):
        share = by if word(first, d, chosen) >= least else none
        x[d] = narrow(wide(x[d]) * share, x[d])


@compile_at_first_call
def scale_by_frames(x: Array, chosen: Chosen, below: Array, factor: Array, first: int) -> None:
    """Multiply numbers of a flat `x` with `factor`, (1,), times how many of four frames keep each, in place.

    `below` are the thresholds of that number, (4,), uint32: it is how many of them a random word reaches.
    """
    by, none = factor[0], factor.dtype.type(0)
    one, two, three, four = below[0], below[1], below[2], below[3]
    for d in range(len(x)):
        drawn = word(first, d, chosen)
        share = (by if drawn >= one else none) + (by if drawn >= two else none)
        share = share + (by if drawn >= three else none) + (by if drawn >= four else none)
        x[d] = narrow(wide(x[d]) * share, x[d])
