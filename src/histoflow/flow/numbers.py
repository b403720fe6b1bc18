"""What compiled loops read, write and draw, in instructions that numba would not choose itself.

A loop that writes to a row becomes vector instructions only if the compiler knows that no other row of it lies in the
same memory. For more than a few rows numba's own reads and writes leave that to be found out at every call, or not at
all. Those here say it: rows that are only read share a mark, 0, and each one that is written has its own, 1 to 7.

What is said holds for all that becomes one function: a row written in one loop must not be read with another mark in a
later one, as the compiler may then read it before. So marks come in groups of eight, and nothing is said of rows of
different groups: what one loop writes, the next one reads as of mark 8.
"""

from __future__ import annotations

from typing import Any

import numba
from llvmlite.binding import get_host_cpu_features
from numba.core import types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

_N_MARKS = 8
"""Of a group."""


def _marked(builder: Any, instruction: Any, own: int) -> None:
    """Tell the compiler that rows of different marks do not overlap (LLVM, `alias.scope` and `noalias`)."""
    group, place = divmod(own, _N_MARKS)
    domain = builder.module.add_metadata([f"rows of group {group}"])
    marks = [builder.module.add_metadata([f"rows of mark {group}, {mark}", domain]) for mark in range(_N_MARKS)]
    others = [mark for number, mark in enumerate(marks) if number != place]
    instruction.set_metadata("alias.scope", builder.module.add_metadata([marks[place]]))
    instruction.set_metadata("noalias", builder.module.add_metadata(others))


def _opened(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    """The parts of an array."""
    return make_array(kind)(context, builder, value)  # type: ignore[no-untyped-call]


def _is_row(kind: Any) -> bool:
    """Whether numbers lie one beside the other, as `_pointer` takes for granted."""
    return isinstance(kind, types.Array) and kind.ndim == 1 and kind.layout in "CF"


def _pointer(context: Any, builder: Any, kind: Any, row: Any, place: Any) -> Any:
    return builder.gep(_opened(context, builder, kind, row).data, [place], inbounds=True)


def _get(context: Any, row: Any, place: Any, mark: Any) -> Any:
    """Types of `get`, and its instructions."""

    def made(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        number = builder.load(_pointer(context, builder, signature.args[0], *given[:2]))
        _marked(builder, number, mark.literal_value)
        return number

    return row.dtype(row, types.intp, mark) if _is_row(row) else None, made


def _put(context: Any, row: Any, place: Any, mark: Any, number: Any) -> Any:
    """Types of `put`, and its instructions."""

    def made(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        stored = builder.store(given[3], _pointer(context, builder, signature.args[0], *given[:2]))
        _marked(builder, stored, mark.literal_value)
        return context.get_dummy_value()

    return types.void(row, types.intp, mark, row.dtype) if _is_row(row) else None, made


def _widen(context: Any) -> Any:
    """Types of `in_wide_vectors`, and what it sets."""

    def made(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        if get_host_cpu_features().get("avx512bf16"):
            set.add(builder.function.attributes, '"prefer-vector-width"="512"')  # a name that llvmlite does not list
        return context.get_dummy_value()

    return types.void(), made


def _advance(context: Any, place: Any, factor: Any, offset: Any) -> Any:
    """Types of `advanced`, and its instructions."""

    def made(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        place, factor, offset = given
        return builder.add(builder.mul(builder.trunc(place, factor.type), factor), offset)

    return numba.uint32(types.int64, factor, offset), made


def _mix(context: Any, start: Any, step: Any) -> Any:
    """Types of `mixed`, and its instructions."""

    def made(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        x = builder.add(*given)
        for shift, by in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            x = builder.xor(x, builder.lshr(x, x.type(shift)))
            x = builder.mul(x, x.type(by))
        return x

    return numba.uint32(start, step), made


def _without_owner(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    if isinstance(kind, types.Array):
        held = _opened(context, builder, kind, value)
        held.meminfo = held.meminfo.type(None)
        return held._getvalue()
    if isinstance(kind, types.BaseTuple):
        parts: Any = kind
        for place, part in enumerate(parts):
            one = _without_owner(context, builder, part, builder.extract_value(value, place))
            value = builder.insert_value(value, one, place)
    return value


def _borrow(context: Any, given: Any) -> Any:
    """Types of `borrowed`, and its instructions."""

    def made(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return _without_owner(context, builder, given, values[0])

    return given(given), made


borrowed: Any = intrinsic(_borrow)
"""Arrays, or a tuple with arrays, that the caller holds meanwhile: their rows are not counted as further users."""
get: Any = intrinsic(prefer_literal=True)(_get)
"""Number at a place, not below zero, of a row with this mark, a literal."""
put: Any = intrinsic(prefer_literal=True)(_put)
"""Write a number, of the row's type, at a place of a row with this mark."""
in_wide_vectors: Any = intrinsic(_widen)
"""Let the loops of this function use vectors of 512 bits on processors that do not slow down for them."""
# Of two numbers of 32 bits numba makes one of 64, whose products take a processor several times as long.
advanced: Any = intrinsic(_advance)
"""``factor * place + offset``, uint32, of a place in 64 bits, of which the lower half counts."""
mixed: Any = intrinsic(_mix)
"""The random word of the sum of two numbers, all uint32, as in `histoflow.flow.dropout`."""
