"""What compiled loops read, write and draw, in instructions that numba would not choose itself.

A loop that writes to a row becomes vector instructions only if the compiler knows that no other row of it lies in the
same memory. For more than a few rows numba's own reads and writes leave that to be found out at every call, or not at
all. Those here say it: rows read with `at` alone share a mark, each row that is written has one of its own.
"""

from __future__ import annotations

from typing import Any

import numba
from llvmlite.binding import get_host_cpu_features
from numba.core import types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

_N_MARKS = 16


def _marked(builder: Any, instruction: Any, own: int) -> None:
    """Tell the compiler that rows of different marks do not overlap (LLVM, `alias.scope` and `noalias`)."""
    domain = builder.module.add_metadata(["rows of a loop"])
    marks = [builder.module.add_metadata([f"rows of mark {mark}", domain]) for mark in range(_N_MARKS)]
    others = [mark for number, mark in enumerate(marks) if number != own]
    instruction.set_metadata("alias.scope", builder.module.add_metadata([marks[own]]))
    instruction.set_metadata("noalias", builder.module.add_metadata(others))


def _opened(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    """The parts of an array."""
    return make_array(kind)(context, builder, value)  # type: ignore[no-untyped-call]


def _pointer(context: Any, builder: Any, kind: Any, row: Any, place: Any) -> Any:
    return builder.gep(_opened(context, builder, kind, row).data, [place], inbounds=True)


def _get(context: Any, row: Any, place: Any, mark: Any) -> Any:
    """Types of `get`, and its instructions."""

    def made(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        number = builder.load(_pointer(context, builder, signature.args[0], *given[:2]))
        _marked(builder, number, mark.literal_value)
        return number

    return row.dtype(row, types.intp, mark), made


def _put(context: Any, row: Any, place: Any, mark: Any, number: Any) -> Any:
    """Types of `put`, and its instructions."""

    def made(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        stored = builder.store(given[3], _pointer(context, builder, signature.args[0], *given[:2]))
        _marked(builder, stored, mark.literal_value)
        return context.get_dummy_value()

    return types.void(row, types.intp, mark, row.dtype), made


def _widen(context: Any) -> Any:
    """Types of `in_wide_vectors`, and what it sets."""

    def made(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        if get_host_cpu_features().get("avx512bf16"):
            set.add(builder.function.attributes, '"prefer-vector-width"="512"')  # a name that llvmlite does not list
        return context.get_dummy_value()

    return types.void(), made


def _mix(context: Any, first: Any, step: Any, factor: Any, offset: Any) -> Any:
    """Types of `mixed`, and its instructions."""

    def made(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        first, step, factor, offset = given
        x = builder.add(first, builder.trunc(step, first.type))
        x = builder.add(builder.mul(x, factor), offset)
        for shift, by in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            x = builder.xor(x, builder.lshr(x, x.type(shift)))
            x = builder.mul(x, x.type(by))
        return x

    return numba.uint32(first, step, factor, offset), made


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
"""Number at a place, not below zero, of a row that is written under this mark, a literal from 1 on."""
put: Any = intrinsic(prefer_literal=True)(_put)
"""Write a number, of the row's type, at a place of a row with this mark."""
in_wide_vectors: Any = intrinsic(_widen)
"""Let the loops of this function use vectors of 512 bits on processors that do not slow down for them."""
# Of two numbers of 32 bits numba makes one of 64, whose products take a processor several times as long.
mixed: Any = intrinsic(_mix)
"""The random word of the place `step` after the first one, uint32, as in `histoflow.flow.dropout`."""
