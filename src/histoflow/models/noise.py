"""Noise that belongs to places by the order of their ids: the same whatever their order, and in whatever parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from histoflow.flow import Prior
from histoflow.models.parts import Rows, Shelf
from histoflow.models.spots import Floats

SomeShelf = TypeVar("SomeShelf", bound=Shelf)

_NUMBERS = 1 << 26
"""Drawn at once, at most, of places × genes."""

Drawn = Iterator[tuple[int, Rows, Floats]]
"""A draw, rows of places, and their numbers (n_rows, n_genes)."""


def prior_noise(prior: Prior, ids: NDArray[np.str_], shape: tuple[int, int], seed: int) -> Drawn:
    """Draw what a flow starts from: `shape` is (n_draws, n_genes).

    Where places × genes are very many, those of the first ids are drawn first, the others from seeds of their own.
    """
    order = np.argsort(ids, kind="stable")
    for number, rows in enumerate(_blocks(order, shape[1])):
        block_seed = seed if number == 0 else int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        generator = torch.Generator().manual_seed(block_seed)
        for draw in range(shape[0]):
            yield draw, rows, prior.sample((len(rows), shape[1]), generator).numpy()


def normal_noise(generator: np.random.Generator, ids: NDArray[np.str_], shape: tuple[int, int]) -> Drawn:
    """Draw standard normal numbers: `shape` is (n_draws, n_genes)."""
    order = np.argsort(ids, kind="stable")
    for draw in range(shape[0]):
        for rows in _blocks(order, shape[1]):
            yield draw, rows, generator.standard_normal((len(rows), shape[1]), dtype=np.float32)


def shelved(shelf: SomeShelf, drawn: Drawn) -> SomeShelf:
    """The shelf, with what is drawn put on it."""
    for draw, rows, values in drawn:
        shelf[draw, rows] = values
    return shelf


def _blocks(order: Rows, n_genes: int) -> list[Rows]:
    step = max(1, _NUMBERS // max(n_genes, 1))
    return [order[start : start + step] for start in range(0, len(order), step)]
