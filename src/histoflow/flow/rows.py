"""What the compiled passes do with one row: loops along its width, which become vector instructions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import llvmlite.binding
import numba
import numpy as np
from numba.extending import overload
from numpy.typing import NDArray

# A loop over several rows becomes a vector loop only with a check that they do not overlap: LLVM allows 8 by itself.
llvmlite.binding.set_option("", "-runtime-memory-check-threshold=64")

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
def gate(packed: Array, choice: Choice, row: int, epsilon: Any, x: Array) -> Any:
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


@compile_at_first_call
def gate_with_slopes(
    packed: Array, choice: Choice, row: int, epsilon: Any, x: Array, by_gate: Array, by_value: Array
) -> Any:
    """As `gate`, with the derivatives of `x` by a and by b."""
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


@compile_at_first_call
def gate_along(first: Array, second: Array, third: Array, choice: Choice, row: int, epsilon: Any, weight: Array) -> Any:
    """Mean and inverse spread of a gated row, as `gate`, and its product with `weight`; the row itself is not kept."""
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


@compile_at_first_call
def factor_of(choice: Choice, row: int, column: int, scale: Any) -> Any:
    """What dropout multiplies a number with: `scale`, or zero."""
    half = len(choice.words)
    bits = choice.words[min(row - half * (row >= half), half - 1), column]
    kept = np.int32(bits << np.int32(16 * (row >= half))) >= np.int32(choice.least)
    return scale if kept else scale * 0


@compile_at_first_call
def centred_dot(x: Array, weight: Array, mean: Any, inverse: Any) -> Any:
    """Product of a row, less its mean, with `weight`, times its inverse spread."""
    total = x.dtype.type(0)
    for d in range(len(x)):
        total += (x[d] - mean) * weight[d]
    return total * inverse


@compile_at_first_call
def add_normal(x: Array, mean: Any, inverse: Any, total: Array) -> None:
    """A quarter of the normalised row: one frame of four."""
    inverse *= x.dtype.type(0.25)
    for d in range(len(x)):
        total[d] += (x[d] - mean) * inverse


@compile_at_first_call
def normal_backward(x: Array, mean: Any, inverse: Any, d_normal: Array, share: Any, d_x: Array) -> None:
    """Gradient of a row from `share` times that of the row normalised."""
    total, along, size = x.dtype.type(0), x.dtype.type(0), x.dtype.type(len(x))
    for d in range(len(x)):
        total += d_normal[d]
        along += d_normal[d] * (x[d] - mean)
    total, along, scale = total / size, along * inverse * inverse / size, share * inverse
    for d in range(len(x)):
        d_x[d] = (d_normal[d] - total - (x[d] - mean) * along) * scale


@compile_at_first_call
def row_backward(x: Array, weight: Array, weight_mean: Any, mean: Any, slope: Any, bend: Any, d_x: Array) -> None:
    """Gradient of a row from that of its logit."""
    constant = -slope * weight_mean - bend * mean
    for d in range(len(x)):
        d_x[d] = slope * weight[d] + bend * x[d] + constant


@compile_at_first_call
def unpack(d_x: Array, by_gate: Array, by_value: Array, d_packed: Array, total: Array, other: Array) -> None:
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


@compile_at_first_call
def add_three(first: Array, second: Array, third: Array, total: Array) -> None:
    """Sum of three rows, into `total`."""
    for d in range(len(total)):
        total[d] = first[d] + second[d] + third[d]


@compile_at_first_call
def add(x: Array, total: Array) -> None:
    """Add a row to `total`."""
    for d in range(len(total)):
        total[d] += x[d]


@compile_at_first_call
def add_scaled(x: Array, factor: Any, total: Array) -> None:
    """Add `factor` times a row to `total`."""
    for d in range(len(total)):
        total[d] += factor * x[d]


@compile_at_first_call
def times(x: Array, factor: Array, product: Array) -> None:
    """Product of two rows, number by number, into `product`."""
    for d in range(len(product)):
        product[d] = x[d] * factor[d]


@compile_at_first_call
def dot(x: Array, y: Array) -> Any:
    """Inner product of two rows."""
    total = x.dtype.type(0)
    for d in range(len(x)):
        total += x[d] * y[d]
    return total
