"""What the compiled loops do with one row: loops along its width, which become vector instructions.

Loops touch few arrays each, start at zero and have no mixed types: otherwise the compiler makes no vectors of them.
A gated row has two halves, [a, b]: arrays that hold such rows have an axis of two before the last one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numba
import numpy as np
from numba.extending import overload
from numpy.typing import NDArray

Array = NDArray[Any]
AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])


def compile_at_first_call(function: AnyFunction) -> AnyFunction:
    """Compile at the first call, without the interpreter's lock; sums may be taken in any order, NaN stays NaN."""
    options: dict[str, Any] = {
        "nogil": True,
        "error_model": "numpy",
        "fastmath": {"reassoc", "contract", "nsz", "arcp"},
    }
    try:
        made: AnyFunction = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # numba finds no folder that it may write to
        made = numba.njit(**options)(function)
    return made


class Chosen(NamedTuple):
    """What dropout chooses, see `histoflow.flow.dropout.Choice`: `factor` and `offset` of its stream, and `least`."""

    factor: int
    offset: int
    least: int


@compile_at_first_call
def word(counter: Any, chosen: Chosen) -> Any:
    """The random word of a counter, as in `histoflow.flow.dropout`."""
    x = np.uint32(np.uint32(counter * np.uint32(chosen.factor)) + np.uint32(chosen.offset))
    x = np.uint32(x ^ (x >> np.uint32(16)))
    x = np.uint32(x * np.uint32(0x7FEB352D))
    x = np.uint32(x ^ (x >> np.uint32(15)))
    x = np.uint32(x * np.uint32(0x846CA68B))
    return np.uint32(x ^ (x >> np.uint32(16)))


@compile_at_first_call
def is_kept(chosen: Chosen | None, place: Any) -> Any:
    """Whether dropout keeps the number of a place; without a choice, known when compiled, all are kept."""
    if chosen is None:
        return True
    return word(place, chosen) >= np.uint32(chosen.least)


@compile_at_first_call
def keep(chosen: Chosen | None, by: Any, place: Any, step: int, factor: Array) -> None:
    """What dropout multiplies numbers with, `by` or zero, the first at a place and others so many places apart."""
    for k in range(len(factor)):
        factor[k] = by if is_kept(chosen, place + np.uint32(k * step)) else factor.dtype.type(0)


def _exp(x: float) -> float:
    return math.exp(x)


@compile_at_first_call
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


@overload(_exp)
def _exp_of_type(x: Any) -> Any:
    def single(x: Any) -> Any:
        return _exp_single(x)

    def double(x: Any) -> Any:
        return math.exp(x)

    return single if x == numba.float32 else double


@compile_at_first_call
def _sigmoid(x: Any, one: Any) -> Any:
    return one / (one + _exp(-x))


@compile_at_first_call
def _moments(total: Any, square: Any, width: int, real: Any, epsilon: Any) -> Any:
    """Mean and inverse spread of a row; numbers are turned into `real`, as a product with an integer is a double."""
    mean = total / real(width)
    return mean, real(1) / math.sqrt(max(square / real(width) - mean * mean, real(0)) + epsilon)


@compile_at_first_call
def gate(packed: Array, inside: Chosen | None, counter: Any, epsilon: Any, x: Array) -> Any:
    """``x = keep * SiLU(a) * b`` of a row [a, b]; its mean and inverse spread."""
    real = x.dtype.type
    total, square = real(0), real(0)
    for d in range(len(x)):
        gated = packed[0, d] * _sigmoid(packed[0, d], real(1)) * packed[1, d]
        kept = is_kept(inside, counter + np.uint32(d))
        gated = gated if kept else real(0)
        total += gated
        square += gated * gated
        x[d] = gated
    return _moments(total, square, len(x), real, epsilon)


@compile_at_first_call
def gate_along(
    first: Array, second: Array, third: Array, weight: Array, inside: Chosen | None, counter: Any, epsilon: Any
) -> Any:
    """Mean and inverse spread of the gated sum of three rows, and its product with `weight`; nothing is written."""
    real = weight.dtype.type
    total, square, along = real(0), real(0), real(0)
    for d in range(len(weight)):
        opening = first[0, d] + second[0, d] + third[0, d]
        gated = opening * _sigmoid(opening, real(1)) * (first[1, d] + second[1, d] + third[1, d])
        kept = is_kept(inside, counter + np.uint32(d))
        gated = gated if kept else real(0)
        total += gated
        square += gated * gated
        along += gated * weight[d]
    mean, inverse = _moments(total, square, len(weight), real, epsilon)
    return mean, inverse, along


@compile_at_first_call
def gate_with_slopes(
    packed: Array, weight: Array, inside: Chosen | None, counter: Any, epsilon: Any, slopes: Array
) -> Any:
    """As `_gate_along`, with the derivatives of the row by a and by b; the second, times b, is the row."""
    real = weight.dtype.type
    total, square, along = real(0), real(0), real(0)
    for d in range(len(weight)):
        # Where a number is dropped, a sigmoid of zero makes it zero, and both derivatives with it.
        kept = is_kept(inside, counter + np.uint32(d))
        sigmoid = _sigmoid(packed[0, d], real(1)) if kept else real(0)
        opened = packed[0, d] * sigmoid
        slopes[0, d] = packed[1, d] * sigmoid * (real(1) + packed[0, d] - opened)
        slopes[1, d] = opened
        gated = opened * packed[1, d]
        total += gated
        square += gated * gated
        along += gated * weight[d]
    mean, inverse = _moments(total, square, len(weight), real, epsilon)
    return mean, inverse, along


@compile_at_first_call
def add_three(first: Array, second: Array, third: Array, total: Array) -> None:
    """Sum of three rows, each in two halves, into `total`."""
    for half in range(2):
        for d in range(total.shape[1]):
            total[half, d] = first[half, d] + second[half, d] + third[half, d]


@compile_at_first_call
def unpack(d_packed: Array, own: Array, receiver: Array, sender: Array) -> None:
    """Gradient of a row before its gate, set in its own place and added to those of its two spots."""
    for half in range(2):
        for d in range(d_packed.shape[1]):
            given = d_packed[half, d]
            own[half, d] = given
            receiver[half, d] += given
            sender[half, d] += given


@compile_at_first_call
def weight_backward(packed: Array, slopes: Array, slope: Any, mean: Any, total: Array) -> None:
    """Add to the gradient of the last layer what a row contributes: `slope` times the row less its mean."""
    for d in range(packed.shape[1]):
        total[d] += slope * (slopes[1, d] * packed[1, d] - mean)


@compile_at_first_call
def row_backward(packed: Array, slopes: Array, centred: Array, slope: Any, bend: Any, mean: Any) -> None:
    """Turn derivatives of a row into the gradient before its gate, in place."""
    for d in range(packed.shape[1]):
        d_x = slope * centred[d] + bend * (slopes[1, d] * packed[1, d] - mean)
        slopes[0, d] *= d_x
        slopes[1, d] *= d_x


@compile_at_first_call
def product(x: Array, y: Array, made: Array) -> None:
    """Product of two rows, number by number, into `made`."""
    for d in range(len(x)):
        made[d] = x[d] * y[d]


@compile_at_first_call
def add_normal(x: Array, centre: Any, inverse: Any, total: Array) -> None:
    """Add the row, less its centre, times `inverse` to `total`."""
    for d in range(len(x)):
        total[d] += (x[d] - centre) * inverse


@compile_at_first_call
def normal_backward(x: Array, d_normal: Array, total: Any, centre: Any, bend: Any, inverse: Any, slopes: Array) -> None:
    """Turn derivatives of a row into the gradient before its gate, in place, from that of the row normalised."""
    for d in range(len(x)):
        d_x = (d_normal[d] - total - (x[d] - centre) * bend) * inverse
        slopes[0, d] *= d_x
        slopes[1, d] *= d_x


@compile_at_first_call
def pack_frame(place: Array, distance: Any, weight: Array, frame: int, packed: Array) -> None:
    """The first layer of an edge in a frame: one of four flips of signs."""
    first, second = (
        place[0] * packed.dtype.type(1 - 2 * (frame // 2)),
        place[1] * packed.dtype.type(1 - 2 * (frame % 2)),
    )
    for half in range(2):
        for d in range(packed.shape[1]):
            sum_of_places = weight[0, half, d] * first + weight[1, half, d] * second
            packed[half, d] = sum_of_places + weight[2, half, d] * distance + weight[3, half, d]


@compile_at_first_call
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


@compile_at_first_call
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


@compile_at_first_call
def softmax_backward(softmax: Array, factor: Array, d_logit: Array) -> None:
    """From the gradient of weights before dropout to that of logits before it, in place."""
    total = dot(d_logit, softmax)
    for k in range(len(softmax)):
        d_logit[k] = softmax[k] * (d_logit[k] - total) * factor[k]


@compile_at_first_call
def dot(x: Array, y: Array) -> Any:
    """Inner product of two rows."""
    total = x.dtype.type(0)
    for d in range(len(x)):
        total += x[d] * y[d]
    return total


@compile_at_first_call
def add_scaled(x: Array, factor: Any, total: Array) -> None:
    """Add `factor` times a row to `total`."""
    for d in range(len(x)):
        total[d] += factor * x[d]


@compile_at_first_call
def set_scaled(x: Array, factor: Any, made: Array) -> None:
    """`factor` times a row, into `made`."""
    for d in range(len(x)):
        made[d] = factor * x[d]
