"""Named arrays of a saved model: what belongs to one part of it stands under a prefix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]


def named(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
    """The arrays, `prefix` before their names."""
    return {prefix + key: value for key, value in arrays.items()}


def under(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
    """The arrays whose names begin with `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
