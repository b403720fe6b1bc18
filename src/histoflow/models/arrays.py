"""Named arrays of a saved model: what belongs to one part of it stands under a prefix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import nn

Module = TypeVar("Module", bound=nn.Module)

Arrays = dict[str, NDArray[Any]]


def named(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
    """The arrays, `prefix` before their names."""
    return {prefix + key: value for key, value in arrays.items()}


def under(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
    """The arrays whose names begin with `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


def with_weights(make: Callable[[], Module], weights: Arrays) -> Module:
    """Make a network and give it its weights; one of other sizes is refused before there is room made for it.

    Raises
    ------
    ValueError
        If the weights are not those of such a network.
    """
    with torch.device("meta"):
        wanted = {key: tuple(value.shape) for key, value in make().state_dict().items()}
    if wanted != {key: value.shape for key, value in weights.items()}:
        raise ValueError("the weights are not of a network of these sizes")
    network = make()
    network.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})
    return network.eval()
