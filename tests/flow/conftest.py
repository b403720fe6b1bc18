"""Places of spots, ways to move them, and their graph, for the tests of the flow."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from histoflow.pp.graph import neighbors


def _places() -> dict[str, Tensor]:
    """Named layouts of spots in pitches, each (n_spots, 2), float64."""
    column, row = np.meshgrid(np.arange(7.0), np.arange(7.0))
    square = np.stack([column, row], axis=-1).reshape(-1, 2)
    hexagonal = np.stack([column + 0.5 * (row % 2), row * 3**0.5 / 2], axis=-1).reshape(-1, 2)
    jittered = square + np.random.default_rng(1).normal(0, 0.15, square.shape)
    layouts = {
        "jittered": jittered,
        "square": square,
        "hexagonal": hexagonal,
        "rounded": (hexagonal * 137.3).round() / 137.3,
        "one spot": jittered[:1],
        "two spots": jittered[:2],
        "nine spots": jittered[:9],
        "nine in a row": square[::7][:9] * [1, 0],
        "nine of a lattice": hexagonal[(hexagonal < 2.6).all(axis=1)][:9],
    }
    return {name: torch.from_numpy(np.ascontiguousarray(xy)) for name, xy in layouts.items()}


@pytest.fixture(scope="session")
def places() -> dict[str, Tensor]:
    return _places()


@pytest.fixture(scope="session", params=list(_places()))
def xy(request: pytest.FixtureRequest, places: dict[str, Tensor]) -> Tensor:
    """Every layout in turn."""
    return places[request.param]


@pytest.fixture(scope="session")
def connect() -> Callable[..., tuple[Tensor, Tensor]]:
    """Index and mask of the eight nearest spots, as tensors."""

    def connect(xy: Tensor, groups: list[int] | None = None) -> tuple[Tensor, Tensor]:
        found = neighbors(xy.numpy(), 8, groups=groups)
        return torch.from_numpy(found.index), torch.from_numpy(found.mask)

    return connect


@pytest.fixture(scope="session")
def moved() -> Callable[..., Tensor]:
    """Turn by an angle, mirror if asked, and shift far away."""

    def moved(xy: Tensor, angle: float, mirror: bool) -> Tensor:
        cos, sin = np.cos(angle), np.sin(angle)
        turn = torch.tensor([[cos, -sin], [sin, cos]], dtype=xy.dtype)
        return (xy * torch.tensor([-1.0 if mirror else 1.0, 1.0])) @ turn.T + torch.tensor([731.0, -264.0])

    return moved
