"""Nearest neighbours among the spots of a section: the same ones however it is ordered, turned or mirrored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix
from scipy.spatial import KDTree

from histoflow._errors import OptionError, ShapeError

_BLOCK = 1 << 14
"""Spots looked up at a time."""
_ROUNDING = 1e-6
"""Part of a radius by which a spot may lie beyond it."""


@dataclass(frozen=True)
class Neighbors:
    """Neighbours of every spot, nearest first.

    `index` has shape (n_spots, K), int64; `mask` has shape (n_spots, K), bool, and is False where a spot has fewer
    than K neighbours. `index` holds the spot itself there, so that it can always be used to gather.
    """

    index: NDArray[np.int64]
    mask: NDArray[np.bool_]


def neighbors(
    xy_um: ArrayLike, n_neighbors: int, *, groups: ArrayLike | None = None, tie_tolerance: float = 0.01
) -> Neighbors:
    """Find the nearest spots of each spot, ties included.

    Every spot no farther than ``1 + tie_tolerance`` times the distance of the `n_neighbors`-th is a neighbour: on a
    lattice whole rings are kept, so the answer depends on the places alone. Only where more than
    ``4 * n_neighbors + 8`` spots tie, which means that spots coincide, are the first ones found kept.

    Parameters
    ----------
    xy_um
        x, y of the spots in µm, any origin, shape (n_spots, 2).
    n_neighbors
        Neighbours wanted; a spot itself is not one of them.
    groups
        Code of the section or piece of tissue of each spot, shape (n_spots,); neighbours are of one group.
    tie_tolerance
        Relative distance within which spots count as equally far.

    Returns
    -------
    Index and mask of shape (n_spots, K), K at least `n_neighbors`.

    Raises
    ------
    ShapeError
        If `xy_um` is not (n_spots, 2), or `groups` not (n_spots,).
    OptionError
        If `n_neighbors` is below 1, `tie_tolerance` negative, or a coordinate not finite.
    """
    xy = np.asarray(xy_um, dtype=np.float64)
    codes = np.zeros(xy.shape[:1], dtype=np.int64) if groups is None else np.asarray(groups)
    _check(xy, codes)
    if n_neighbors < 1:
        raise OptionError(f"n_neighbors is {n_neighbors}; give at least 1")
    if not tie_tolerance >= 0:
        raise OptionError(f"tie_tolerance is {tie_tolerance}; give a relative distance of 0 or more")
    blocks = []
    for members in _members(codes):
        tree = KDTree(xy[members])
        for start in range(0, len(members), _BLOCK):
            own = np.arange(start, min(start + _BLOCK, len(members)))
            near, mask = _nearest(tree, own, n_neighbors, tie_tolerance)
            blocks.append((members[own], members[near], mask))
    return _assemble(blocks, len(xy), n_neighbors)


def neighbors_within(xy_um: ArrayLike, radius_um: float, *, groups: ArrayLike | None = None) -> csr_matrix:
    """Find all spots within a radius of each spot.

    Parameters
    ----------
    xy_um
        x, y of the spots in µm, any origin, shape (n_spots, 2).
    radius_um
        In µm; a spot at just that distance, to within rounding, is a neighbour.
    groups
        As in `neighbors`.

    Returns
    -------
    1 for every pair of neighbours, sparse, shape (n_spots, n_spots); a spot is not its own neighbour.

    Raises
    ------
    ShapeError
        If `xy_um` is not (n_spots, 2), or `groups` not (n_spots,).
    OptionError
        If the radius is not above 0, or a coordinate not finite.
    """
    xy = np.asarray(xy_um, dtype=np.float64)
    codes = np.zeros(xy.shape[:1], dtype=np.int64) if groups is None else np.asarray(groups)
    _check(xy, codes)
    if not 0 < radius_um < np.inf:
        raise OptionError(f"radius_um is {radius_um}; give µm above 0")
    found = [
        members[KDTree(xy[members]).query_pairs(radius_um * (1 + _ROUNDING), output_type="ndarray")]
        for members in _members(codes)
    ]
    first, second = np.concatenate([np.empty((0, 2), dtype=np.int64), *found]).T
    rows, columns = np.concatenate([first, second]), np.concatenate([second, first])
    return csr_matrix((np.ones(len(rows), dtype=np.float32), (rows, columns)), shape=(len(xy),) * 2)


def _members(codes: NDArray[Any]) -> Iterator[NDArray[np.int64]]:
    """Positions of each group's spots, in order."""
    _, group = np.unique(codes, return_inverse=True)
    order = np.argsort(group, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(group[order])) + 1) if len(order) else ()


def _nearest(
    tree: KDTree, own: NDArray[np.int64], n_neighbors: int, tie_tolerance: float
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Neighbours of the spots `own`, as positions in `tree` of shape (len(own), width), and which of them are real."""
    wanted = np.arange(1, min(4 * n_neighbors + 8 + 1, tree.n) + 1)
    distance, near = tree.query(tree.data[own], k=wanted)
    distance[near == own[:, None]] = np.inf
    order = np.lexsort((near, distance))
    distance, near = np.take_along_axis(distance, order, axis=1), np.take_along_axis(near, order, axis=1)
    reach = distance[:, min(n_neighbors, len(wanted)) - 1, None] * (1 + tie_tolerance)
    mask = (distance <= reach) & np.isfinite(distance)
    width = int(mask.sum(axis=1).max())
    return np.where(mask, near, own[:, None])[:, :width], mask[:, :width]


def _assemble(
    blocks: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]], n_spots: int, n_neighbors: int
) -> Neighbors:
    """Put blocks of (rows, index, mask) together, padded to one width."""
    width = max([n_neighbors, *(mask.shape[1] for _, _, mask in blocks)])
    index = np.repeat(np.arange(n_spots)[:, None], width, axis=1)
    mask = np.zeros((n_spots, width), dtype=np.bool_)
    for rows, near, real in blocks:
        index[rows, : near.shape[1]] = near
        mask[rows, : near.shape[1]] = real
    return Neighbors(index, mask)


def _check(xy: NDArray[np.float64], codes: NDArray[Any]) -> None:
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise ShapeError(f"xy_um has shape {xy.shape}; give x and y of every spot, (n_spots, 2)")
    if codes.shape != (len(xy),):
        raise ShapeError(f"groups has shape {codes.shape}; give one code per spot, ({len(xy)},)")
    if bad := int((~np.isfinite(xy)).any(axis=1).sum()):
        raise OptionError(f"xy_um has {bad} of {len(xy)} spots without a finite position; leave them out first")
