"""What a compiled loop of `kernels` does with one row: loops along its width, which become vector instructions.

They start at zero, have no mixed types, and write with `put` where they touch more than a few rows. A gated row has two
halves, [a, b]: arrays that hold such rows have an axis of two before the last one. Each function is made part of every
loop that calls it. A loop that called it instead would take a copy of its own or one of another loop, depending on what
was compiled before and what came from a file, and copies may round in other ways.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from histoflow.flow.jit import by_type, inlined
from histoflow.flow.numbers import advanced, borrowed, get, in_wide_vectors, mixed, put
from histoflow.flow.operands import Array, Chosen


@inlined
def word(place: Any, chosen: Chosen) -> Any:
    """The random word of a place, uint32, as in `histoflow.flow.dropout`."""
    return mixed(advanced(np.int64(place), np.uint32(chosen.factor), np.uint32(chosen.offset)), np.uint32(0))


@inlined
def is_kept(chosen: Chosen | None, place: Any) -> Any:
    """Whether dropout keeps the number of a place; without a choice, known when compiled, all are kept."""
    if chosen is None:
        return True
    return word(place, chosen) >= np.uint32(chosen.least)


@inlined
def _steps(chosen: Chosen, width: int) -> Any:
    """Products for the places of a row, which are taken once."""
    steps = np.empty(width, np.uint32)
    for d in range(width):
        steps[d] = advanced(np.int64(d), np.uint32(chosen.factor), np.uint32(0))
    return chosen, steps


def by_row(chosen: Chosen | None, width: int) -> Any:
    """A choice as `is_kept_in_row` takes it."""
    return None if chosen is None else _steps(chosen, width)


@by_type(by_row)
def _by_row_of_type(chosen: Any, width: Any) -> Any:
    none = isinstance(chosen, numba.types.NoneType)
    return (lambda chosen, width: None) if none else (lambda chosen, width: _steps(chosen, width))


@inlined
def start_of(inside: Any, row: Any, width: int) -> Any:
    """Where `is_kept_in_row` starts, in the row of that number."""
    if inside is None:
        return np.uint32(0)
    return advanced(np.int64(row) * width, np.uint32(inside[0].factor), np.uint32(inside[0].offset))


@inlined
def is_kept_in_row(inside: Any, start: Any, d: Any) -> Any:
    """Whether dropout keeps a number of a row."""
    if inside is None:
        return True
    return mixed(start, get(inside[1], d, 0)) >= np.uint32(inside[0].least)


@inlined
def keep(chosen: Chosen | None, by: Any, place: Any, step: int, factor: Array) -> None:
    """What dropout multiplies numbers with, `by` or zero, the first at a place and others so many places apart."""
    for k in range(len(factor)):
        factor[k] = by if is_kept(chosen, place + k * step) else factor.dtype.type(0)


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
def _sigmoid_single(x: Any) -> Any:
    """Sigmoid within 2e-7 of itself, as `_exp_single`, of the opposite number."""
    x = min(max(x, np.float32(-80)), np.float32(80))
    # In a sum with 1.5 * 2**23 the last bits are the nearest whole number.
    n = np.int32(np.float32(x * np.float32(-1.4426950408889634) + np.float32(12582912)).view(np.int32) - 0x4B400000)
    s = x + np.float32(n) * np.float32(0.693359375) - np.float32(n) * np.float32(2.12194440e-4)
    p = np.float32(1.3981999507e-3) - s * np.float32(1.9875691500e-4)
    p = np.float32(8.3334519073e-3) - s * p
    p = np.float32(4.1665795894e-2) - s * p
    p = np.float32(1.6666665459e-1) - s * p
    p = np.float32(5.0000001201e-1) - s * p
    power = np.int32((n + np.int32(127)) << np.int32(23)).view(np.float32)
    return np.float32(1) / (np.float32(1) + power * (p * s * s - s + np.float32(1)))


def _sigmoid(x: Any, one: Any) -> Any:
    return one / (one + math.exp(-x))


@by_type(_sigmoid)
def _sigmoid_of_type(x: Any, one: Any) -> Any:
    return (lambda x, one: _sigmoid_single(x)) if x == numba.float32 else (lambda x, one: one / (one + math.exp(-x)))


@inlined
def _moments(total: Any, square: Any, width: int, real: Any, epsilon: Any) -> Any:
    """Mean and inverse spread of a row; numbers are turned into `real`, as a product with an integer is a double."""
    mean = total / real(width)
    return mean, real(1) / math.sqrt(max(square / real(width) - mean * mean, real(0)) + epsilon)


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


def number(source: Any, d: int) -> Any:
    """A number of half a gated row: of a row and a bias, of the sum of three rows, or of `first_layer`."""
    return source[d]


@by_type(number)
def _number_by_source(source: Any, d: Any) -> Any:
    def with_bias(source: Any, d: Any) -> Any:
        row, bias = source
        return wide(get(row, d, 0)) + get(bias, d, 0)

    def of_three(source: Any, d: Any) -> Any:
        one, two, three = source
        return wide(get(one, d, 0)) + wide(get(two, d, 0)) + wide(get(three, d, 0))

    def of_layer(source: Any, d: Any) -> Any:
        across, along, far, bias, first, second, distance = source
        return get(across, d, 0) * first + get(along, d, 0) * second + get(far, d, 0) * distance + get(bias, d, 0)

    return {2: with_bias, 3: of_three}.get(len(source), of_layer)


@inlined
def first_layer(weight: Array, half: int, place: Array, distance: Any, frame: int) -> Any:
    """What `number` takes of the first layer of an edge in a frame, one of four flips of signs, for half a row."""
    real = weight.dtype.type
    first, second = place[0] * real(1 - 2 * (frame // 2)), place[1] * real(1 - 2 * (frame % 2))
    return weight[0, half], weight[1, half], weight[2, half], weight[3, half], first, second, distance


@inlined
def gate(openings: Any, values: Any, inside: Any, start: Any, epsilon: Any, x: Array) -> Any:
    """``x = keep * SiLU(a) * b`` of a row [a, b], which `number` finds; its mean and inverse spread."""
    in_wide_vectors()
    real = x.dtype.type
    total, square = real(0), real(0)
    for d in range(len(x)):
        opening = number(openings, d)
        gated = opening * _sigmoid(opening, real(1)) * number(values, d)
        kept = is_kept_in_row(inside, start, d)
        gated = gated if kept else real(0)
        total += gated
        square += gated * gated
        put(x, d, 1, gated)
    return _moments(total, square, len(x), real, epsilon)


@inlined
def gate_along(openings: Any, values: Any, weight: Array, inside: Any, start: Any, epsilon: Any) -> Any:
    """Mean and inverse spread of a gated row, and its product with `weight`; nothing is written."""
    in_wide_vectors()
    real = weight.dtype.type
    total, square, along = real(0), real(0), real(0)
    for d in range(len(weight)):
        opening = number(openings, d)
        gated = opening * _sigmoid(opening, real(1)) * number(values, d)
        kept = is_kept_in_row(inside, start, d)
        gated = gated if kept else real(0)
        total += gated
        square += gated * gated
        along += gated * get(weight, d, 0)
    mean, inverse = _moments(total, square, len(weight), real, epsilon)
    return mean, inverse, along


@inlined
def gate_with_slopes(
    openings: Any,
    values: Any,
    weight: Array,
    inside: Any,
    start: Any,
    epsilon: Any,
    x: Array,
    slopes: Array,
) -> Any:
    """As `gate_along`, with the row and its derivatives by a and by b."""
    in_wide_vectors()
    real, of_opening, of_value = x.dtype.type, slopes[0], slopes[1]
    total, square, along = real(0), real(0), real(0)
    for d in range(len(x)):
        # Where a number is dropped, a sigmoid of zero makes it zero, and both derivatives with it.
        kept = is_kept_in_row(inside, start, d)
        opening, value = number(openings, d), number(values, d)
        sigmoid = _sigmoid(opening, real(1)) if kept else real(0)
        opened = opening * sigmoid
        gated = opened * value
        total += gated
        square += gated * gated
        along += gated * get(weight, d, 0)
        put(x, d, 1, gated)
        put(of_opening, d, 2, value * sigmoid * (real(1) + opening - opened))
        put(of_value, d, 3, opened)
    mean, inverse = _moments(total, square, len(x), real, epsilon)
    return mean, inverse, along


@inlined
def row_backward(
    first: Array,
    second: Array,
    third: Array,
    centred: Array,
    inside: Any,
    start: Any,
    given: Any,
    receiver: Array,
    sender: Array,
    weight: Array,
) -> None:
    """Gradient before its gate of a sum of three rows, the third of which it replaces, and what it adds to sums.

    `given` are slope, bend and mean of the row, see `histoflow.flow.attention`. To the first two sums it is added, to
    the last one the slope times the row less its mean.
    """
    in_wide_vectors()
    slope, bend, mean = given
    first, receiver = borrowed(first), borrowed(receiver)
    one, none = centred.dtype.type(1), centred.dtype.type(0)
    first_0, first_1, second_0, second_1, third_0, third_1 = (
        first[0],
        first[1],
        second[0],
        second[1],
        third[0],
        third[1],
    )
    receiver_0, receiver_1, sender_0, sender_1 = receiver[0], receiver[1], sender[0], sender[1]
    for d in range(len(centred)):
        opening = wide(get(first_0, d, 0)) + wide(get(second_0, d, 0)) + wide(get(third_0, d, 1))
        value = wide(get(first_1, d, 0)) + wide(get(second_1, d, 0)) + wide(get(third_1, d, 2))
        kept = is_kept_in_row(inside, start, d)
        sigmoid = _sigmoid(opening, one) if kept else none
        opened = opening * sigmoid
        excess = opened * value - mean
        d_x = slope * get(centred, d, 0) + bend * excess
        d_opening, d_value = d_x * value * sigmoid * (one + opening - opened), d_x * opened
        put(weight, d, 3, get(weight, d, 3) + slope * excess)
        put(receiver_0, d, 4, get(receiver_0, d, 4) + d_opening)
        put(receiver_1, d, 5, get(receiver_1, d, 5) + d_value)
        put(sender_0, d, 6, get(sender_0, d, 6) + d_opening)
        put(sender_1, d, 7, get(sender_1, d, 7) + d_value)
        put(third_0, d, 1, narrow(d_opening, get(third_0, d, 1)))
        put(third_1, d, 2, narrow(d_value, get(third_1, d, 2)))


@inlined
def gated_backward(d_x: Array, slopes: Array, d_packed: Array, d_bias: Array) -> None:
    """Gradient of a row [a, b], into `d_packed`, from that of the row gated; it is added to `d_bias`, too."""
    in_wide_vectors()
    s_0, s_1, packed_0, packed_1, bias_0, bias_1 = slopes[0], slopes[1], d_packed[0], d_packed[1], d_bias[0], d_bias[1]
    for d in range(len(d_x)):
        d_opening, d_value = get(d_x, d, 8) * get(s_0, d, 8), get(d_x, d, 8) * get(s_1, d, 8)
        put(bias_0, d, 9, get(bias_0, d, 9) + d_opening)
        put(bias_1, d, 10, get(bias_1, d, 10) + d_value)
        put(packed_0, d, 11, narrow(d_opening, get(packed_0, d, 11)))
        put(packed_1, d, 12, narrow(d_value, get(packed_1, d, 12)))


@inlined
def add_normal(x: Array, centre: Any, inverse: Any, total: Array) -> None:
    """Add the row, less its centre, times `inverse` to `total`."""
    in_wide_vectors()
    for d in range(len(x)):
        total[d] += (x[d] - centre) * inverse


@inlined
def normal_backward(x: Array, d_normal: Array, total: Any, centre: Any, bend: Any, inverse: Any) -> None:
    """Turn a row into its gradient, in place, from that of the row normalised."""
    in_wide_vectors()
    for d in range(len(x)):
        x[d] = (d_normal[d] - total - (x[d] - centre) * bend) * inverse


@inlined
def gate_backward(
    openings: Any, values: Any, given: Any, by: Any, x: Array, slopes: Array, normal: Array | None
) -> None:
    """`by` times the gradient of a gated row, into `x`, and its derivatives by a and b; the row normalised is added.

    `given` are the gradient of the row normalised, its mean, and what `gate` takes.
    """
    wanted, total, inside, start, epsilon = given
    real = x.dtype.type
    centre, inverse, along = gate_with_slopes(openings, values, wanted, inside, start, epsilon, x, slopes)
    bend = (along / real(len(x)) - centre * total) * inverse * inverse
    if normal is not None:
        add_normal(x, centre, inverse, normal)
    normal_backward(x, wanted, total, centre, bend, inverse * by)


@inlined
def frame_backward(openings: Any, values: Any, given: Any, frame: int, x: Array, slopes: Array, normal: Array) -> None:
    """As `gate_backward`, for one of four frames over which rows are averaged, into `x`, (4, width), and its slopes."""
    x, slopes = borrowed(x), borrowed(slopes)
    gate_backward(openings, values, given, normal.dtype.type(0.25), x[frame], slopes[frame], normal)


@inlined
def frames_backward(d_x: Array, slopes: Array, half: int, place: Array, distance: Any, gradient: Array) -> None:
    """Add to the gradient (4, 2, width) of the first layer what an edge contributes under its four frames."""
    in_wide_vectors()
    d_x, slopes, first, second = borrowed(d_x), borrowed(slopes), place[0], place[1]
    x_1, x_2, x_3, x_4 = d_x[0], d_x[1], d_x[2], d_x[3]
    s_1, s_2, s_3, s_4 = slopes[0, half], slopes[1, half], slopes[2, half], slopes[3, half]
    across, along, far, bias = gradient[0, half], gradient[1, half], gradient[2, half], gradient[3, half]
    for d in range(len(x_1)):
        one, two = get(x_1, d, 8) * get(s_1, d, 8), get(x_2, d, 8) * get(s_2, d, 8)
        three, four = get(x_3, d, 8) * get(s_3, d, 8), get(x_4, d, 8) * get(s_4, d, 8)
        put(across, d, 9, get(across, d, 9) + first * ((one + two) - (three + four)))
        put(along, d, 10, get(along, d, 10) + second * ((one - two) + (three - four)))
        put(far, d, 11, get(far, d, 11) + distance * ((one + two) + (three + four)))
        put(bias, d, 12, get(bias, d, 12) + ((one + two) + (three + four)))


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
    in_wide_vectors()
    total = x.dtype.type(0)
    for d in range(len(x)):
        total += x[d] * wide(y[d])
    return total


@inlined
def add_scaled(x: Array, factor: Any, total: Array) -> None:
    """Add `factor` times a row to `total`."""
    in_wide_vectors()
    for d in range(len(x)):
        total[d] += factor * wide(x[d])


@inlined
def set_scaled(x: Array, factor: Any, made: Array) -> None:
    """`factor` times a row, into `made`; either may hold the bits of bfloat16."""
    in_wide_vectors()
    for d in range(len(x)):
        made[d] = narrow(factor * wide(x[d]), made[d])


@inlined
def set_normal(x: Array, centre: Any, inverse: Any, made: Array) -> None:
    """The row, less its centre, times `inverse`, into `made`, which may hold the bits of bfloat16."""
    in_wide_vectors()
    for d in range(len(x)):
        put(made, d, 9, narrow((get(x, d, 8) - centre) * inverse, get(made, d, 9)))


@inlined
def scale_row(x: Array, bias: Array, start: Any, steps: Array, given: Any, made: Array, total: Array) -> None:
    """One row of `kernels.scale_by_frames`; `given` are the factor and the thresholds."""
    in_wide_vectors()
    by, one, two, three, four = given
    none = total.dtype.type(0)
    for d in range(len(x)):
        drawn = mixed(start, get(steps, d, 0))
        share = (by if drawn >= one else none) + (by if drawn >= two else none)
        share = share + (by if drawn >= three else none) + (by if drawn >= four else none)
        scaled = (wide(get(x, d, 0)) + get(bias, d, 0)) * share
        put(total, d, 2, get(total, d, 2) + scaled)
        put(made, d, 1, narrow(scaled, get(made, d, 1)))


@inlined
def add_dropped_row(x: Array, bias: Array, inside: Any, start: Any, by: Any, onto: Array, made: Array) -> None:
    """One row of `kernels.add_dropped`."""
    in_wide_vectors()
    none = bias.dtype.type(0)
    for d in range(len(x)):
        kept = is_kept_in_row(inside, start, d)
        share = by if kept else none
        added = wide(get(onto, d, 0)) + (wide(get(x, d, 0)) + get(bias, d, 0)) * share
        put(made, d, 1, narrow(added, get(made, d, 1)))


@inlined
def drop_backward(d_made: Array, inside: Any, start: Any, by: Any, d_x: Array, total: Array) -> None:
    """One row of `kernels.add_dropped_backward`."""
    in_wide_vectors()
    none = total.dtype.type(0)
    for d in range(len(d_x)):
        kept = is_kept_in_row(inside, start, d)
        share = by if kept else none
        given = wide(get(d_made, d, 0)) * share
        put(total, d, 2, get(total, d, 2) + given)
        put(d_x, d, 1, narrow(given, get(d_x, d, 1)))


@inlined
def clear(x: Array) -> None:
    """Set a row to zero; a slice that numba sets would be counted as a user of the array, for some while."""
    for d in range(len(x)):
        x[d] = 0
