"""Splits: which sections, or which spots of a section, are held out, and what they share with the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import KDTree

from histoflow._errors import NotFiniteError, OptionError, ShapeError, SplitError

Level = Literal["section", "block", "patient", "study"]
"""What a fold holds out, from the smallest unit to the largest."""
Indices = NDArray[np.intp]

_TIE_UM = 1e-3
"""Spots closer than this along an axis stand in one lattice row; rounding must not decide their order."""
_ISOTROPIC = 1e-6
"""Below this relative difference of its principal variances a set of spots has no longer axis."""

_FORWARD = (1.0, 0.618034)
"""The way a symmetric set of spots points: at right angles to no row of a lattice, where rounding would decide."""


@dataclass(frozen=True)
class SectionFacts:
    """What is known about where a section comes from; None is "not stated" and is never filled in.

    Attributes
    ----------
    section, patient, block, study
        Ids; `block` is the tissue block. Never empty strings.
    order
        Place of a serial section in its block.
    """

    section: str
    patient: str | None = None
    block: str | None = None
    study: str | None = None
    order: int | None = None

    def __post_init__(self) -> None:
        empty = [level for level in get_args(Level) if getattr(self, level) == ""]
        if empty:
            raise OptionError(f"section {self.section!r}: {', '.join(empty)} is an empty text; give an id or None")


@dataclass(frozen=True)
class Fold:
    """One held-out group of sections.

    Attributes
    ----------
    name
        The id of what is held out.
    train, test
        Positions in the list of sections.
    shares
        In plain words, the closest thing that test shares with train, see `describe_shares`.
    rows
        Of a section that is on both sides, its training rows and its held-out rows; None where sections stay whole.
    """

    name: str
    train: tuple[int, ...]
    test: tuple[int, ...]
    shares: str
    rows: tuple[tuple[int, ...], tuple[int, ...]] | None = None


_SHARES = (
    "same section: optimistic",
    "adjacent serial sections of one block: optimistic",
    "same block, serial: optimistic",
    "same patient, block not stated",
    "same patient, another block",
    "patient not stated",
    "same study, another patient",
    "another patient, study not stated",
    "another patient, another study",
)
"""What a test section can share with a training section, worst first: not stated ranks before stated and different."""


def describe_shares(train: Sequence[SectionFacts], test: Sequence[SectionFacts]) -> str:
    """Say in plain words the closest thing that any test section shares with any training section.

    Parameters
    ----------
    train, test
        Facts of the sections on either side.

    Returns
    -------
    One of a fixed list of labels, from "same section: optimistic" to "another patient, another study".

    Raises
    ------
    SplitError
        If a side is empty, or one block is said to come from two patients.

    Examples
    --------
    >>> describe_shares([SectionFacts("C2", "C", "C1", order=2)], [SectionFacts("C3", "C", "C1", order=3)])
    'adjacent serial sections of one block: optimistic'
    """
    if not train or not test:
        raise SplitError(f"a split needs sections on both sides, got {len(train)} to train and {len(test)} to test")
    _check_blocks([*train, *test])
    return min((_shared(one, other) for one in train for other in test), key=_SHARES.index)


def check_level(by: str, *, also: Sequence[str] = ()) -> None:
    """Refuse a level that is not offered.

    Raises
    ------
    OptionError
        If `by` is not one of `Level`, for texts completed by what else a caller offers.
    """
    if by not in get_args(Level):
        raise OptionError(f"by must be one of {', '.join((*get_args(Level), *also))}, got {by!r}")


def leave_one_out(facts: Sequence[SectionFacts], by: Level = "section") -> list[Fold]:
    """Hold out every section, block, patient or study once.

    Parameters
    ----------
    facts
        One entry per section.
    by
        What is held out as a whole. Only this level is enforced; what else both sides share is told in `Fold.shares`.

    Returns
    -------
    One fold per group, in the order in which groups first appear.

    Raises
    ------
    OptionError
        If `by` is not a level.
    SplitError
        If the level is not stated for a section, gives fewer than two groups, if two sections have one id, or if one
        block is said to come from two patients.

    Examples
    --------
    >>> facts = [SectionFacts("A1", "A"), SectionFacts("A2", "A"), SectionFacts("B1", "B")]
    >>> [(fold.name, fold.train, fold.test) for fold in leave_one_out(facts, by="patient")]
    [('A', (2,), (0, 1)), ('B', (0, 1), (2,))]
    """
    check_level(by)
    _check_sections(facts)
    _check_blocks(facts)
    return [_fold(facts, name, test) for name, test in _groups(facts, by).items()]


def spatial_blocks(xy_um: ArrayLike, n_folds: int, *, buffer_um: float) -> list[tuple[Indices, Indices]]:
    """Split the spots of one section into contiguous blocks of equal size, each held out once.

    The section is cut in two across its longer principal axis, and the parts again, until there are `n_folds` blocks
    whose sizes differ by at most one. Training spots nearer than `buffer_um` to a spot of the block are left out of
    that fold: neighbours share pixels and tissue (spatial block cross-validation, Roberts et al., Ecography 2017).

    The order of the spots, shifts and, where a part has one longer axis, rotations do not change the blocks.

    Parameters
    ----------
    xy_um
        Spot centres, shape (n_spots, 2), x y in µm, any origin.
    n_folds
        Number of blocks, at least 2; as many as there are spots if these are fewer.
    buffer_um
        Distance in µm kept free between training and test spots; 0 for none.

    Returns
    -------
    One ``(train, test)`` pair of sorted row indices per block; the test parts together hold every spot once.

    Raises
    ------
    OptionError
        If `n_folds` is below 2 or `buffer_um` is negative or not finite.
    ShapeError, NotFiniteError
        If `xy_um` is not an array of finite pairs.
    SplitError
        If there are fewer than two spots, or the buffer leaves a fold without training spots.

    Examples
    --------
    >>> for train, test in spatial_blocks([[0, 0], [100, 0], [200, 0], [300, 0]], 2, buffer_um=150):
    ...     print(train, test)
    [3] [0 1]
    [0] [2 3]
    """
    xy = _checked_xy(xy_um)
    if n_folds < 2:
        raise OptionError(f"n_folds must be at least 2, got {n_folds}")
    if not 0 <= buffer_um < np.inf:
        raise OptionError(f"buffer_um must be a distance in µm of at least 0, got {buffer_um}")
    blocks = _bisect(xy, np.arange(len(xy)), min(n_folds, len(xy)))
    return [(_beyond(xy, test, buffer_um), test) for test in blocks]


def _shared(train: SectionFacts, test: SectionFacts) -> str:
    """The label of one pair of sections: the first statement that holds, worst first."""
    section, block, patient, study = (_compare(train, test, level) for level in get_args(Level))
    adjacent = train.order is not None and test.order is not None and abs(train.order - test.order) == 1
    cases = (
        section is True,
        block is True and adjacent,
        block is True,
        patient is True and block is None,
        patient is True,
        patient is None,
        study is True,
        study is None,
        True,
    )
    return _SHARES[cases.index(True)]


def _compare(train: SectionFacts, test: SectionFacts, level: str) -> bool | None:
    """Whether two sections agree at a level; None where one of them does not state it."""
    one, other = getattr(train, level), getattr(test, level)
    return None if one is None or other is None else bool(one == other)


def _check_sections(facts: Sequence[SectionFacts]) -> None:
    names = [fact.section for fact in facts]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise SplitError(f"section ids must be unique, but {', '.join(repeated)} came more than once: rename them")


def _check_blocks(facts: Sequence[SectionFacts]) -> None:
    patient_of: dict[str, str] = {}
    for fact in facts:
        if fact.block is None or fact.patient is None:
            continue
        known = patient_of.setdefault(fact.block, fact.patient)
        if known != fact.patient:
            raise SplitError(
                f"section {fact.section}: block {fact.block!r} is said to come from patient {fact.patient!r}, "
                f"elsewhere from {known!r}; give the blocks of different patients different ids"
            )


def _groups(facts: Sequence[SectionFacts], by: Level) -> dict[str, tuple[int, ...]]:
    """Positions of the sections of each group, in order of first appearance."""
    missing = [fact.section for fact in facts if getattr(fact, by) is None]
    if missing:
        raise SplitError(
            f"cannot split by {by}: not stated for {', '.join(missing)}; fill the column '{by}', or split by "
            "another level"
        )
    groups: dict[str, tuple[int, ...]] = {}
    for position, fact in enumerate(facts):
        group = getattr(fact, by)
        groups[group] = (*groups.get(group, ()), position)
    if len(groups) < 2:
        raise SplitError(
            f"cannot split by {by}: {len(facts)} sections give {len(groups)} group ({', '.join(groups) or 'none'}), at "
            "least 2 are needed; add sections, or split by a smaller unit"
        )
    return groups


def _fold(facts: Sequence[SectionFacts], name: str, test: tuple[int, ...]) -> Fold:
    held_out = set(test)
    train = tuple(position for position in range(len(facts)) if position not in held_out)
    return Fold(name, train, test, describe_shares([facts[i] for i in train], [facts[i] for i in test]))


def _checked_xy(xy_um: ArrayLike) -> NDArray[np.float64]:
    xy = np.asarray(xy_um, dtype=float)
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise ShapeError(f"xy_um must have shape (n_spots, 2), got {xy.shape}")
    if not np.isfinite(xy).all():
        raise NotFiniteError("xy_um holds NaN or infinite positions: leave those spots out")
    if len(xy) < 2:
        raise SplitError(f"spatial blocks need at least 2 spots, got {len(xy)}: fit without an inner fold")
    return xy


def _bisect(xy: NDArray[np.float64], members: Indices, n_blocks: int) -> list[Indices]:
    """Cut `members` into `n_blocks` blocks of sorted indices into `xy`, (n_spots, 2)."""
    if n_blocks == 1:
        return [np.sort(members)]
    n_first = n_blocks // 2
    ranked = members[_along_longer_axis(xy[members])]
    cut = len(members) * n_first // n_blocks
    return [*_bisect(xy, ranked[:cut], n_first), *_bisect(xy, ranked[cut:], n_blocks - n_first)]


def _along_longer_axis(xy: NDArray[np.float64]) -> Indices:
    """Order of points (n_spots, 2) along their longer principal axis; within a lattice row, along the other."""
    along, across = _principal_coordinates(xy)
    order = np.argsort(along)
    row = np.empty(len(xy), dtype=np.intp)
    row[order] = np.cumsum(np.diff(along[order], prepend=along.min()) > _TIE_UM)
    ranks: Indices = np.lexsort((across, row))
    return ranks


def _principal_coordinates(xy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coordinates (2, n_spots) in µm on the longer and the shorter principal axis, with the longer tail ahead."""
    centred = xy - xy.mean(axis=0)
    (var_x, cov), (_, var_y) = centred.T @ centred
    isotropic = np.hypot(var_x - var_y, 2 * cov) <= _ISOTROPIC * (var_x + var_y)
    angle = 0.0 if isotropic else np.arctan2(2 * cov, var_x - var_y) / 2
    axis = np.array([np.cos(angle), np.sin(angle)])
    along = centred @ axis
    tail = (along**3).sum()
    symmetric = abs(tail) <= _ISOTROPIC * (np.abs(along) ** 3).sum()
    if (axis @ _FORWARD if symmetric else tail) < 0:
        axis = -axis
    coordinates: NDArray[np.float64] = np.stack([centred @ axis, centred @ [-axis[1], axis[0]]])
    return coordinates


def _beyond(xy: NDArray[np.float64], test: Indices, buffer_um: float) -> Indices:
    """Indices of the spots outside `test` that keep `buffer_um` from all of it."""
    rest = np.setdiff1d(np.arange(len(xy)), test)
    distance, _ = KDTree(xy[test]).query(xy[rest])
    train: Indices = rest[distance >= buffer_um]
    if not len(train):
        raise SplitError(
            f"buffer_um={buffer_um:g} leaves no training spot: all {len(rest)} lie within {distance.max():.0f} µm of "
            f"the {len(test)} spots held out; give a smaller buffer_um or more folds"
        )
    return train
