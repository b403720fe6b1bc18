"""Inner folds: the held-out part inside the training data that alpha and early stopping look at."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from histoflow._errors import SplitError, TrainingWarning
from histoflow.models.spots import Spots
from histoflow.stats.splits import spatial_blocks

Indices = NDArray[np.intp]

LEAST_SECTIONS = 3
"""Training sections from which whole sections are held out, rather than blocks."""
_MOST_FOLDS = 5
_N_BLOCKS = 4
_LEAST_SPOTS = 16
_BUFFER_PITCHES = 1.5
_WIDEST_PATCH_UM = 224.0
_DIAGONAL = 2**0.5
"""Squares that are so much farther apart than they are wide never overlap, whichever way they lie."""


@dataclass(frozen=True)
class InnerFolds:
    """Pairs of training and held-out rows of the stacked training spots.

    Attributes
    ----------
    how
        In plain words, what is held out; stored with the model.
    folds
        ``(train, test)`` row indices; empty where there are too few spots to hold any out.
    """

    how: str
    folds: tuple[tuple[Indices, Indices], ...]


def inner_folds(sections: Sequence[Spots]) -> InnerFolds:
    """Hold out whole sections where there are three or more, else spatial blocks with a buffer.

    Parameters
    ----------
    sections
        The training spots, in the order in which their rows are stacked.

    Returns
    -------
    At most five folds of whole sections; or four folds, each holding out one block of every section, with a buffer of
    1.5 spot distances, at least the diagonal of 224 µm, so that no two patches across it share pixels.

    Warns
    -----
    TrainingWarning
        If blocks, or nothing, had to stand in for sections.
    """
    starts = np.cumsum([0, *(len(section) for section in sections)])
    rows = [np.arange(first, last) for first, last in pairwise(starts)]
    if len(sections) >= LEAST_SECTIONS:
        return _by_section(rows)
    found = _by_block(sections, rows)
    warnings.warn(
        f"{len(sections)} training section{'s' if len(sections) > 1 else ''}: settings are chosen on {found.how}, "
        "which flatters them; give three sections or more",
        TrainingWarning,
        stacklevel=2,
    )
    return found


def _by_section(rows: list[Indices]) -> InnerFolds:
    n_folds = min(len(rows), _MOST_FOLDS)
    held_out = [np.concatenate(rows[first::n_folds]) for first in range(n_folds)]
    everything = np.arange(sum(map(len, rows)))
    folds = tuple((np.setdiff1d(everything, test), test) for test in held_out)
    return InnerFolds(f"{n_folds} folds of whole sections", folds)


def _by_block(sections: Sequence[Spots], rows: list[Indices]) -> InnerFolds:
    widest_pitch_um = float(np.nanmax([0.0, *(section.pitch_um for section in sections)]))
    buffer_um = max(_DIAGONAL * _WIDEST_PATCH_UM, _BUFFER_PITCHES * widest_pitch_um)
    try:
        if min(map(len, rows)) < _LEAST_SPOTS:
            raise SplitError("too few spots")
        blocks = [spatial_blocks(section.xy_um, _N_BLOCKS, buffer_um=buffer_um) for section in sections]
    except SplitError:
        return InnerFolds("nothing (too few spots to hold any out: fixed defaults)", ())
    folds = []
    for number in range(_N_BLOCKS):
        parts = [
            (own[train], own[test])
            for own, (train, test) in ((r, b[number]) for r, b in zip(rows, blocks, strict=True))
        ]
        folds.append((np.concatenate([train for train, _ in parts]), np.concatenate([test for _, test in parts])))
    return InnerFolds(f"{_N_BLOCKS} spatial blocks with a buffer of {buffer_um:.0f} µm", tuple(folds))
