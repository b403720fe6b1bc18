"""Parts of a section that are predicted one after another, with the places around them on which they depend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from histoflow.models.spots import Floats, Spots
from histoflow.pp.graph import neighbors

Rows = NDArray[np.int64]

_NUMBERS = 1 << 26
"""Of places × genes × draws that are held at once."""
_FEWEST_DRAWS = 4
"""As many numbers go into intervals as into so many draws."""
_MOST, _FEWEST = 1 << 16, 1 << 8
"""Places predicted at once."""
_RUN = 1 << 14
"""More of them come in multiples of this, so that parts of a file need not be written twice."""


class Shelf(Protocol):
    """An array (n_draws, n_places, n_genes), float32, that may lie in a file; a plain array is one."""

    def __getitem__(self, key: Any, /) -> Any:
        """Read; the key is a draw and rows of places."""

    def __setitem__(self, key: Any, value: Any, /) -> None:
        """Write; the key is a draw and rows of places."""


MakeShelf = Callable[[tuple[int, int, int]], Shelf]
"""Makes a shelf of a shape."""


class Part(NamedTuple):
    """Rows of a section, ascending: `own`, which are predicted, and `around`, these and those they depend on."""

    own: Rows
    around: Rows

    @property
    def kept(self) -> Rows:
        """Where its own rows are among those around."""
        return np.searchsorted(self.around, self.own)


class Reach(NamedTuple):
    """How far a prediction looks: `n_hops` along the graph of `n_neighbors`; no hop is the place itself alone."""

    n_hops: int
    n_neighbors: int


class Drawer(NamedTuple):
    """Draws a section part by part.

    `at` maps places (those around a part), and the part, to draws of its own rows, (n_draws, n_own, n_genes), log1p.
    """

    n_draws: int
    at: Callable[[Spots, Part], Floats]


def n_at_once(n_genes: int, n_draws: int) -> int:
    """Places to predict at once, so that memory does not follow panel or draws."""
    fitting = int(np.clip(_NUMBERS // (n_genes * max(n_draws, _FEWEST_DRAWS)), _FEWEST, _MOST))
    return fitting if fitting < _RUN else fitting // _RUN * _RUN


def parts_of(places: Spots, reach: Reach, n_places: int) -> Iterator[Part]:
    """Cut a section into parts of at most `n_places`: runs of rows, or compact ones where neighbours count.

    Parameters
    ----------
    places
        Of the whole section; embeddings are not looked at.
    reach
        How far a prediction looks.
    n_places
        The most of them that a part predicts.

    Yields
    ------
    Every row is in `own` of one part.
    """
    if not reach.n_hops:
        for start in range(0, len(places), n_places):
            rows = np.arange(start, min(start + n_places, len(places)))
            yield Part(rows, rows)
        return
    if len(places) <= n_places:
        everything = np.arange(len(places))
        yield Part(everything, everything)
        return
    index = neighbors(places.xy_um, reach.n_neighbors, groups=places.tissue).index
    for own in _compact(places.xy_um, np.arange(len(places)), n_places):
        yield Part(own, _widened(index, own, reach.n_hops))


def _compact(xy: NDArray[np.float64], rows: Rows, n_places: int) -> Iterator[Rows]:
    """Halve across the longer side until parts are small enough."""
    if len(rows) <= n_places:
        yield np.sort(rows)
        return
    along = xy[rows, int(np.argmax(np.ptp(xy[rows], axis=0)))]
    order = np.argsort(along, kind="stable")
    for half in np.array_split(order, 2):
        yield from _compact(xy, rows[half], n_places)


def _widened(index: NDArray[np.int64], own: Rows, n_hops: int) -> Rows:
    """Rows that are reached from `own` in so many hops along neighbours (n_places, K), with these."""
    reached = np.zeros(len(index), dtype=np.bool_)
    reached[own] = True
    newest = own
    for _ in range(n_hops):
        near = np.unique(index[newest])
        newest = near[~reached[near]]
        reached[newest] = True
    return np.flatnonzero(reached)
