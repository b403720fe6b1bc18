"""The passes over rows and edges as one compiled loop each; needs numba, and has an equal in torch where it is used.

What stands between a gather and a sum stays in registers and the nearest cache: no array of edges times heads times
width is written for each step of the formula. All loops run along the width of a row, which the compiler turns into
vector instructions. Results differ from torch's by rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import llvmlite.binding
import numba
import numpy as np
from numba.extending import overload
from numpy.typing import NDArray

llvmlite.binding.set_option("", "-runtime-memory-check-threshold=64")  # so that loops over many rows become vectors

Array = NDArray[Any]
AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])


def _compiled(function: AnyFunction) -> AnyFunction:
    """Compile at the first call, without the interpreter's lock; sums may be taken in any order, NaN stays NaN."""
    options = {"nogil": True, "error_model": "numpy"}
    order: set[str] = {"reassoc", "contract", "nsz", "arcp"}
    try:
        made: AnyFunction = numba.njit(cache=True, fastmath=order, **options)(function)
    except RuntimeError:  # numba finds no folder that it may write to
        made = numba.njit(fastmath=order, **options)(function)
    return made


class Choice(NamedTuple):
    """What dropout chose inside gated rows: see `histoflow.flow.dropout.Keep`.

    Attributes
    ----------
    words
        Random words, shape (ceil(n_rows / 2), width), int32: the upper halves are of the first rows, the lower ones of
        the others. One row of zeros where nothing is dropped.
    least
        A number is kept if its half, moved to the upper end, is at least this.
    """

    words: Array
    least: int


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
    index, mask
        Neighbours, and which are real, shape (n, K).
    """

    receiver: Array
    sender: Array
    part: Array
    value: Array
    edge: Array
    index: Array
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


@_compiled
def attend(spots: Spots, choice: Choice, last: ReadOut, heads: tuple[int, int], attended: Array) -> None:
    """Weighted values and edges for some heads, into `attended`, (n, H * … + H * …)."""
    n_spots, n_near = spots.index.shape
    dtype = last.weight.dtype
    excess, softmax, weight_sum = np.empty(n_near, dtype), np.empty(n_near, dtype), last.weight.sum()
    for i in range(n_spots):
        for h in range(heads[0], heads[1]):
            for k in range(n_near):
                row = (i * n_near + k) * spots.receiver.shape[1] + h
                mean, inverse, along = _read_out(
                    spots.receiver[i, h],
                    spots.sender[spots.index[i, k], h],
                    spots.part[i, k, h],
                    choice,
                    row,
                    last.constants[0],
                    last.weight,
                )
                excess[k] = (along - mean * weight_sum) * inverse
            _softmax(excess, last, spots.mask, i, h, softmax)
            _average(spots, last, softmax, i, h, attended)


@_compiled
def attend_backward(
    spots: Spots, choice: Choice, last: ReadOut, heads: tuple[int, int], d_attended: Array, gradient: Gradient
) -> None:
    """Gradient of `attend`, by the formula in `histoflow.flow.attention`."""
    n_spots, n_near = spots.index.shape
    dtype, width = last.weight.dtype, len(last.weight)
    packed, d_x = np.empty(2 * width, dtype), np.empty(width, dtype)
    x, by_gate, by_value = np.empty((n_near, width), dtype), np.empty((n_near, width), dtype), np.empty((n_near, width), dtype)
    mean, inverse = np.empty(n_near, dtype), np.empty(n_near, dtype)
    excess, softmax, d_logit = np.empty(n_near, dtype), np.empty(n_near, dtype), np.empty(n_near, dtype)
    weight_mean = last.weight.mean()
    for i in range(n_spots):
        for h in range(heads[0], heads[1]):
            for k in range(n_near):
                _add3(spots.receiver[i, h], spots.sender[spots.index[i, k], h], spots.part[i, k, h], packed)
                row = (i * n_near + k) * spots.receiver.shape[1] + h
                mean[k], inverse[k] = _gate_with_slopes(
                    packed, choice, row, last.constants[0], x[k], by_gate[k], by_value[k]
                )
                excess[k] = _excess(x[k], last.weight, mean[k], inverse[k])
            _softmax(excess, last, spots.mask, i, h, softmax)
            _average_backward(spots, last, softmax, i, h, d_attended, d_logit, gradient)
            _softmax_backward(softmax, last, i, h, d_logit)
            gradient.receiver[i, h], centre = 0, dtype.type(0)
            for k in range(n_near):
                slope = d_logit[k] * inverse[k]
                bend = -slope * inverse[k] * excess[k] / dtype.type(width)
                gradient.last[h, width] += d_logit[k]
                _row_backward(x[k], last.weight, weight_mean, mean[k], slope, bend, d_x)
                _add_scaled(x[k], slope, gradient.last[h, :width])
                centre += slope * mean[k]
                _unpack(
                    d_x,
                    by_gate[k],
                    by_value[k],
                    gradient.part[i, k, h],
                    gradient.receiver[i, h],
                    gradient.sender[spots.index[i, k], h],
                )
            for d in range(width):
                gradient.last[h, d] -= centre


@_compiled
def embed(
    projection: Array, distance: Array, first: Array, choice: Choice, epsilon: Array, rows: tuple[int, int], mean: Array
) -> None:
    """Normalised gated rows of edges, averaged over the four frames, into `mean`, (n_edges, width / 2).

    `first` holds the first layer by inputs: weights of the two places, of the distance, and the bias, (4, width). The
    frames are flips of signs: two vectors and their sum with a third make all four products.
    """
    width = mean.shape[1]
    packed, x, shares = np.empty(2 * width, first.dtype), np.empty(width, first.dtype), np.empty((3, 2 * width), first.dtype)
    for e in range(rows[0], rows[1]):
        _shares(projection[e], distance[e], first, shares)
        mean[e] = 0
        for frame in range(4):
            _flip(shares, frame, packed)
            centre, inverse = _gate(packed, choice, e, epsilon[0], x)
            _add_normal(x, centre, inverse, mean[e])


@_compiled
def embed_backward(
    projection: Array,
    distance: Array,
    first: Array,
    choice: Choice,
    epsilon: Array,
    rows: tuple[int, int],
    d_mean: Array,
    mean: Array,
    gradient: Array,
) -> None:
    """Gradient of `embed` to `first`, added to `gradient`; `mean` is found once more, too."""
    width = mean.shape[1]
    packed, x, shares = np.empty(2 * width, first.dtype), np.empty(width, first.dtype), np.empty((3, 2 * width), first.dtype)
    by_gate, by_value, d_x = np.empty(width, first.dtype), np.empty(width, first.dtype), np.empty(width, first.dtype)
    sums, d_packed = np.empty((3, 2 * width), first.dtype), np.empty(2 * width, first.dtype)
    quarter = first.dtype.type(0.25)
    for e in range(rows[0], rows[1]):
        _shares(projection[e], distance[e], first, shares)
        mean[e], sums[:] = 0, 0
        for frame in range(4):
            _flip(shares, frame, packed)
            centre, inverse = _gate_with_slopes(packed, choice, e, epsilon[0], x, by_gate, by_value)
            _add_normal(x, centre, inverse, mean[e])
            _normal_backward(x, centre, inverse, d_mean[e], quarter, d_x)
            _times(d_x, by_gate, d_packed[:width])
            _times(d_x, by_value, d_packed[width:])
            _add_flipped(d_packed, frame, sums)
        _add_scaled(sums[1], projection[e, 0], gradient[0])
        _add_scaled(sums[2], projection[e, 1], gradient[1])
        _add_scaled(sums[0], distance[e], gradient[2])
        _add(sums[0], gradient[3])


@_compiled
def normalize(packed: Array, choice: Choice, epsilon: Array, rows: tuple[int, int], normal: Array) -> None:
    """Gated rows of `packed`, (n_rows, width), normalised into `normal`, (n_rows, width / 2)."""
    for row in range(rows[0], rows[1]):
        mean, inverse = _gate(packed[row], choice, row, epsilon[0], normal[row])
        for d in range(normal.shape[1]):
            normal[row, d] = (normal[row, d] - mean) * inverse


@_compiled
def normalize_backward(
    packed: Array, choice: Choice, epsilon: Array, rows: tuple[int, int], d_normal: Array, d_packed: Array
) -> None:
    """Gradient of `normalize`, into `d_packed`, (n_rows, width)."""
    width = d_normal.shape[1]
    x, d_x = np.empty(width, packed.dtype), np.empty(width, packed.dtype)
    by_gate, by_value = np.empty(width, packed.dtype), np.empty(width, packed.dtype)
    one = packed.dtype.type(1)
    for row in range(rows[0], rows[1]):
        mean, inverse = _gate_with_slopes(packed[row], choice, row, epsilon[0], x, by_gate, by_value)
        _normal_backward(x, mean, inverse, d_normal[row], one, d_x)
        _times(d_x, by_gate, d_packed[row, :width])
        _times(d_x, by_value, d_packed[row, width:])


def _exp(x: float) -> float:
    return math.exp(x)


@_compiled
def _exp_single(x: Any) -> Any:
    """Exponential within 2e-7 of itself, by Cody and Waite's reduction and a polynomial (Cephes' `expf`): vectors do."""
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


@overload(_exp)
def _exp_of_type(x: Any) -> Any:
    def single(x: Any) -> Any:
        return _exp_single(x)

    def double(x: Any) -> Any:
        return math.exp(x)

    return single if x == numba.float32 else double


@_compiled
def _gate(packed: Array, choice: Choice, row: int, epsilon: Any, x: Array) -> Any:
    """``x = keep * SiLU(a) * b`` of a row [a, b]; its mean and inverse spread."""
    half, width = len(choice.words), len(x)
    bits, shift = choice.words[min(row - half * (row >= half), half - 1)], 16 * (row >= half)
    one, zero, total, square = x.dtype.type(1), x.dtype.type(0), x.dtype.type(0), x.dtype.type(0)
    for d in range(width):
        gate, value = packed[d], packed[d + width]
        gated = gate * value / (one + _exp(-gate))
        gated = gated if np.int32(bits[d] << np.int32(shift)) >= np.int32(choice.least) else zero
        total += gated
        square += gated * gated
        x[d] = gated
    mean = total / x.dtype.type(width)
    return mean, one / math.sqrt(max(square / x.dtype.type(width) - mean * mean, zero) + epsilon)


@_compiled
def _factor(choice: Choice, row: int, column: int, scale: Any) -> Any:
    half = len(choice.words)
    bits = choice.words[min(row - half * (row >= half), half - 1), column]
    kept = np.int32(bits << np.int32(16 * (row >= half))) >= np.int32(choice.least)
    return scale if kept else scale * 0


@_compiled
def _read_out(
    first: Array, second: Array, third: Array, choice: Choice, row: int, epsilon: Any, weight: Array
) -> Any:
    """Mean and inverse spread of a gated row, as `_gate`, and its product with `weight`; the row itself is not kept."""
    half, width = len(choice.words), len(weight)
    bits, shift = choice.words[min(row - half * (row >= half), half - 1)], np.int32(16 * (row >= half))
    one, zero, total = weight.dtype.type(1), weight.dtype.type(0), weight.dtype.type(0)
    square, along = weight.dtype.type(0), weight.dtype.type(0)
    least = np.int32(choice.least)
    for d in range(width):
        gate, value = first[d] + second[d] + third[d], first[d + width] + second[d + width] + third[d + width]
        gated = gate * value / (one + _exp(-gate))
        gated = gated if np.int32(bits[d] << shift) >= least else zero
        total += gated
        square += gated * gated
        along += gated * weight[d]
    mean = total / weight.dtype.type(width)
    return mean, one / math.sqrt(max(square / weight.dtype.type(width) - mean * mean, zero) + epsilon), along


@_compiled
def _gate_with_slopes(
    packed: Array, choice: Choice, row: int, epsilon: Any, x: Array, by_gate: Array, by_value: Array
) -> Any:
    """As `_gate`, with the derivatives of `x` by a and by b."""
    half, width = len(choice.words), len(x)
    bits, shift = choice.words[min(row - half * (row >= half), half - 1)], 16 * (row >= half)
    one, zero, total, square = x.dtype.type(1), x.dtype.type(0), x.dtype.type(0), x.dtype.type(0)
    for d in range(width):
        gate, value = packed[d], packed[d + width]
        sigmoid = one / (one + _exp(-gate))
        sigmoid = sigmoid if np.int32(bits[d] << np.int32(shift)) >= np.int32(choice.least) else zero
        # Where a number is dropped, a sigmoid of zero makes it zero, and both derivatives with it.
        opened = gate * sigmoid
        by_gate[d] = value * sigmoid * (one + gate - opened)
        by_value[d] = opened
        gated = opened * value
        total += gated
        square += gated * gated
        x[d] = gated
    mean = total / x.dtype.type(width)
    return mean, one / math.sqrt(max(square / x.dtype.type(width) - mean * mean, zero) + epsilon)


@_compiled
def _excess(x: Array, weight: Array, mean: Any, inverse: Any) -> Any:
    total = x.dtype.type(0)
    for d in range(len(x)):
        total += (x[d] - mean) * weight[d]
    return total * inverse


@_compiled
def _softmax(excess: Array, last: ReadOut, mask: Array, i: int, h: int, softmax: Array) -> None:
    """Over real neighbours, all zero where there are none."""
    highest, total = softmax.dtype.type(-math.inf), softmax.dtype.type(0)
    for k in range(len(excess)):
        softmax[k] = (excess[k] + last.bias[0]) * _factor(last.logits, i * len(softmax) + k, h, last.constants[1])
        if mask[i, k]:
            highest = max(highest, softmax[k])
    for k in range(len(excess)):
        softmax[k] = math.exp(softmax[k] - highest) if mask[i, k] else softmax.dtype.type(0)
        total += softmax[k]
    for k in range(len(excess)):
        softmax[k] = softmax[k] / total if mask[i, k] else softmax.dtype.type(0)


@_compiled
def _softmax_backward(softmax: Array, last: ReadOut, i: int, h: int, d_logit: Array) -> None:
    """From the gradient of weights after dropout to that of logits before it, in place."""
    total = softmax.dtype.type(0)
    for k in range(len(softmax)):
        d_logit[k] *= _factor(last.weights, i * len(softmax) + k, h, last.constants[2])
        total += d_logit[k] * softmax[k]
    for k in range(len(softmax)):
        d_logit[k] = softmax[k] * (d_logit[k] - total) * _factor(last.logits, i * len(softmax) + k, h, last.constants[1])


@_compiled
def _average(spots: Spots, last: ReadOut, softmax: Array, i: int, h: int, attended: Array) -> None:
    n_value, n_edge = spots.value.shape[2], spots.edge.shape[3]
    start = spots.value.shape[1] * n_value + h * n_edge
    of_value, of_edge = attended[i, h * n_value : (h + 1) * n_value], attended[i, start : start + n_edge]
    of_value[:], of_edge[:] = 0, 0
    for k in range(len(softmax)):
        weight = softmax[k] * _factor(last.weights, i * len(softmax) + k, h, last.constants[2])
        _add_scaled(spots.value[spots.index[i, k], h], weight, of_value)
        _add_scaled(spots.edge[i, k, h], weight, of_edge)


@_compiled
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
        j, weight = spots.index[i, k], softmax[k] * _factor(last.weights, i * len(softmax) + k, h, last.constants[2])
        d_weight[k] = _dot(d_value, spots.value[j, h]) + _dot(d_edge, spots.edge[i, k, h])
        _add_scaled(d_value, weight, gradient.value[j, h])
        for d in range(n_edge):
            gradient.edge[i, k, h, d] = weight * d_edge[d]


@_compiled
def _row_backward(x: Array, weight: Array, weight_mean: Any, mean: Any, slope: Any, bend: Any, d_x: Array) -> None:
    """Gradient of a row from that of its logit."""
    constant = -slope * weight_mean - bend * mean
    for d in range(len(x)):
        d_x[d] = slope * weight[d] + bend * x[d] + constant


@_compiled
def _unpack(
    d_x: Array, by_gate: Array, by_value: Array, d_packed: Array, total: Array, other: Array
) -> None:
    """Gradient of a row before its gate, set in `d_packed` and added to two totals."""
    width = len(d_x)
    for d in range(width):
        own = d_x[d] * by_gate[d]
        d_packed[d] = own
        total[d] += own
        other[d] += own
    for d in range(width):
        own = d_x[d] * by_value[d]
        d_packed[d + width] = own
        total[d + width] += own
        other[d + width] += own


@_compiled
def _add_normal(x: Array, mean: Any, inverse: Any, total: Array) -> None:
    """A quarter of the normalised row: one frame of four."""
    inverse *= x.dtype.type(0.25)
    for d in range(len(x)):
        total[d] += (x[d] - mean) * inverse


@_compiled
def _normal_backward(x: Array, mean: Any, inverse: Any, d_normal: Array, share: Any, d_x: Array) -> None:
    """Gradient of a row from `share` times that of the row normalised."""
    total, along, size = x.dtype.type(0), x.dtype.type(0), x.dtype.type(len(x))
    for d in range(len(x)):
        total += d_normal[d]
        along += d_normal[d] * (x[d] - mean)
    total, along, scale = total / size, along * inverse * inverse / size, share * inverse
    for d in range(len(x)):
        d_x[d] = (d_normal[d] - total - (x[d] - mean) * along) * scale


@_compiled
def _shares(place: Array, distance: Any, first: Array, shares: Array) -> None:
    """What no flip changes of the first layer, then what changes its sign with the first and the second place."""
    for d in range(shares.shape[1]):
        shares[0, d] = first[2, d] * distance + first[3, d]
        shares[1, d] = first[0, d] * place[0]
        shares[2, d] = first[1, d] * place[1]


@_compiled
def _flip(shares: Array, frame: int, packed: Array) -> None:
    sign, other = shares.dtype.type(1 - 2 * (frame // 2)), shares.dtype.type(1 - 2 * (frame % 2))
    for d in range(len(packed)):
        packed[d] = shares[0, d] + sign * shares[1, d] + other * shares[2, d]


@_compiled
def _add_flipped(d_packed: Array, frame: int, sums: Array) -> None:
    sign, other = sums.dtype.type(1 - 2 * (frame // 2)), sums.dtype.type(1 - 2 * (frame % 2))
    for d in range(len(d_packed)):
        sums[0, d] += d_packed[d]
        sums[1, d] += sign * d_packed[d]
        sums[2, d] += other * d_packed[d]


@_compiled
def _add3(first: Array, second: Array, third: Array, total: Array) -> None:
    for d in range(len(total)):
        total[d] = first[d] + second[d] + third[d]


@_compiled
def _add(x: Array, total: Array) -> None:
    for d in range(len(total)):
        total[d] += x[d]


@_compiled
def _add_scaled(x: Array, factor: Any, total: Array) -> None:
    for d in range(len(total)):
        total[d] += factor * x[d]


@_compiled
def _times(x: Array, factor: Array, product: Array) -> None:
    for d in range(len(product)):
        product[d] = x[d] * factor[d]


@_compiled
def _dot(x: Array, y: Array) -> Any:
    total = x.dtype.type(0)
    for d in range(len(x)):
        total += x[d] * y[d]
    return total
