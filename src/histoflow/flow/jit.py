"""How the functions of `kernels` are compiled: into whatever calls them, or once and kept in a file.

What is kept in files is not compiled anew when this file changes, only when `kernels` does, which names a digest of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
from numba.extending import overload

AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])
# Without the interpreter's lock; sums may be taken in any order, NaN stays NaN.
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz", "arcp"}}


def inlined(function: AnyFunction) -> AnyFunction:
    """Compile into whatever calls it."""
    made: AnyFunction = numba.njit(forceinline=True, **_OPTIONS)(function)
    return made


def by_type(function: Callable[..., Any]) -> Callable[[AnyFunction], AnyFunction]:
    """Compile into whatever calls `function` what the decorated one picks by the types of its arguments."""
    options: Any = {"forceinline": True, **_OPTIONS}
    made: Callable[[AnyFunction], AnyFunction] = overload(function, jit_options=options, strict=False)
    return made


def compile_at_first_call(function: AnyFunction) -> AnyFunction:
    """Compile at the first call, or take from a file what an earlier process compiled."""
    try:
        made: AnyFunction = numba.njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # numba finds no folder that it may write to
        made = numba.njit(**_OPTIONS)(function)
    return made
