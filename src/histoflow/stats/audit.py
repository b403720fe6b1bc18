"""What the two sides of a fold share although their ids say otherwise: pixels, counts, blocks, patients."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from histoflow._errors import SplitError
from histoflow.stats.splits import SectionFacts

Kind = Literal[
    "spelling",
    "serial",
    "serial_ids",
    "same_slide",
    "overlapping_pixels",
    "same_pixels",
    "same_counts",
    "patient_cells",
]
"""What a finding is about."""

COUNTS = "counts"
"""Name of the hashes of counts among those of a section's rows."""
_LEAST_ROWS, _LEAST_PART = 3, 0.01
"""Rows, and part of the smaller section, that must be equal before two sections are called the same."""
_TITLES = re.compile(r"^(patient|subject|donor|case|block|study|pt|p)(?=\d)")
_BETWEEN_NUMBERS, _ELSEWHERE = re.compile(r"(?<=\d)[\W_]+(?=\d)"), re.compile(r"(?<!\d)[\W_]+|[\W_]+(?!\d)")
_LEADING_ZEROS = re.compile(r"(?<!\d)0+(?=\d)")
_SAME_PLACE_UM = 1.0
_MOST_TOLD = 5


@dataclass(frozen=True)
class Finding:
    """Something that the two sides of a fold share.

    Attributes
    ----------
    fold
        Name of the fold.
    level
        The level that the split was asked to keep apart.
    kind
        What is shared, one of `Kind`.
    sections
        The section held out, and the training section it shares this with.
    sentence
        In plain words what was found, and what to do.
    refuses
        Whether it violates the asked level, so that the fold must not be scored.
    """

    fold: str
    level: str
    kind: Kind
    sections: tuple[str, str]
    sentence: str
    refuses: bool


def refuse(findings: Iterable[Finding]) -> None:
    """Raise if a finding violates the level that the split was asked to keep apart.

    Raises
    ------
    SplitError
        Naming fold, sections and what to do; the first ones, and how many more there are.
    """
    told = list(dict.fromkeys(finding.sentence for finding in findings if finding.refuses))
    if told:
        more = f"; and {len(told) - _MOST_TOLD} more" if len(told) > _MOST_TOLD else ""
        raise SplitError(f"the split leaks: {'; '.join(told[:_MOST_TOLD])}{more}")


@dataclass(frozen=True)
class Contents:
    """What is in a section, as far as two of them can be compared.

    Attributes
    ----------
    facts
        Where it comes from.
    slide_id
        Hash of its slide's bytes; empty where it has none.
    xy_um
        Centres of its spots, shape (n_spots, 2), x, y in µm from the corner of the slide.
    patch_um
        Side of the widest patch that a model sees, in µm; 0 where none sees any.
    rows
        Hashes of its rows, each (n_spots,), by what they are of: `counts`, and each embedding by its name.
    """

    facts: SectionFacts
    slide_id: str
    xy_um: NDArray[np.float64]
    patch_um: float
    rows: Mapping[str, NDArray[np.uint64]]


def audit_ids(
    fold: str, by: str, train: Sequence[SectionFacts], test: Sequence[SectionFacts], everyone: Sequence[SectionFacts]
) -> list[Finding]:
    """Find ids that say that the two sides of a fold are apart where they may not be.

    Parameters
    ----------
    fold
        Its name.
    by
        The asked level.
    train, test
        What is known of the sections of each side.
    everyone
        What is known of all sections of the cohort.

    Returns
    -------
    Two spellings of one patient, block or study (refused at that level); serial sections of one block (told; by block
    they cannot be on both sides); and, by block, sections of one patient with consecutive numbers whose blocks hold
    nothing else, which are serial sections under a block each (refused).
    """
    single = {block for block, n in Counter(fact.block for fact in everyone).items() if n == 1}
    found: list[Finding] = []
    for one, other in product(test, train):
        pair = (one.section, other.section)
        for level in ("patient", "block", "study"):
            if text := _spellings(one, other, level):
                found.append(Finding(fold, by, "spelling", pair, text, by == level))
        if not _adjacent(one, other):
            continue
        if one.block is not None and one.block == other.block:
            text = f"sections {one.section} and {other.section} are neighbours in block {one.block!r}: optimistic"
            found.append(Finding(fold, by, "serial", pair, text, by == "block"))
        elif by == "block" and _of_one_patient(one, other) and {one.block, other.block} <= single - {None}:
            found.append(Finding(fold, by, "serial_ids", pair, _serial_ids(one, other), True))
    return found


def _adjacent(one: SectionFacts, other: SectionFacts) -> bool:
    return one.order is not None and other.order is not None and abs(one.order - other.order) == 1


def _of_one_patient(one: SectionFacts, other: SectionFacts) -> bool:
    return one.patient is not None and one.patient == other.patient


def _serial_ids(one: SectionFacts, other: SectionFacts) -> str:
    return (
        f"sections {one.section} and {other.section} of one patient have consecutive numbers in `order`, but blocks "
        f"{one.block!r} and {other.block!r}, which hold nothing else: give serial sections of one block its id, or "
        "leave `order` empty where a block has one section"
    )


def _spellings(one: SectionFacts, other: SectionFacts, level: str) -> str:
    """What is wrong where two ids of a level differ only in how they are written; empty where nothing is."""
    first, second = getattr(one, level), getattr(other, level)
    if first is None or second is None or first == second or _plain(first) != _plain(second):
        return ""
    return (
        f"sections {one.section} and {other.section} have the {level} ids {first!r} and {second!r}, which look like "
        "one: write it in one way, or make them differ by more than case, spaces and punctuation"
    )


def _plain(text: str) -> str:
    """An id without case, punctuation (but between numbers), leading zeros, and the word for what it is."""
    parted = _BETWEEN_NUMBERS.sub("-", text.casefold())
    letters = _ELSEWHERE.sub("", parted)
    return _LEADING_ZEROS.sub("", _TITLES.sub("", letters))


def audit_contents(fold: str, by: str, train: Sequence[Contents], test: Sequence[Contents]) -> list[Finding]:
    """Find pixels and counts that are on both sides of a fold, whatever the sections are called.

    Parameters
    ----------
    fold
        Its name.
    by
        The asked level.
    train, test
        What is in the sections of each side; of one that is split, what is in its part.

    Returns
    -------
    Patches that overlap, equal rows of embeddings and equal rows of counts, all refused: nothing that was trained on
    can be held out, at any level. One slide on both sides without overlap is told.
    """
    pairs = list(product(test, train))
    return [*_of_slides(fold, by, pairs), *_of_rows(fold, by, pairs)]


def _of_slides(fold: str, by: str, pairs: Iterable[tuple[Contents, Contents]]) -> Iterator[Finding]:
    for one, other in pairs:
        if not one.slide_id or one.slide_id != other.slide_id:
            continue
        names = (one.facts.section, other.facts.section)
        patch_um = max(one.patch_um, other.patch_um)
        n_spots = n_overlapping(one.xy_um, other.xy_um, patch_um)
        what = "parts of one section" if names[0] == names[1] else f"sections {names[0]} and {names[1]}"
        if n_spots:
            text = (
                f"{what} lie on one slide, and the patches of {n_spots} spots held out share pixels with patches "
                f"trained on ({patch_um:g} µm wide): {_remedy(one.facts, other.facts, by)}"
            )
            yield Finding(fold, by, "overlapping_pixels", names, text, True)
        elif names[0] != names[1]:
            yield Finding(fold, by, "same_slide", names, f"{what} lie on one slide, at other places", False)


def n_overlapping(test_xy_um: NDArray[np.float64], train_xy_um: NDArray[np.float64], patch_um: float) -> int:
    """Count the test spots, (n_spots, 2) in µm, whose square patch shares pixels with one around a training spot."""
    nearest, _ = KDTree(train_xy_um).query(test_xy_um, p=np.inf)
    return int((nearest < max(patch_um, _SAME_PLACE_UM)).sum())


def _of_rows(fold: str, by: str, pairs: Iterable[tuple[Contents, Contents]]) -> Iterator[Finding]:
    for one, other in pairs:
        names = (one.facts.section, other.facts.section)
        both = {what: n_equal(one.rows[what], other.rows[what]) for what in one.rows if what in other.rows}
        counts = both.pop(COUNTS, 0)
        equal = {what: n for what, n in both.items() if n}
        remedy = _remedy(one.facts, other.facts, by)
        if equal:
            what, n_rows = max(equal.items(), key=lambda item: item[1])
            text = f"sections {names[0]} and {names[1]} have {n_rows} equal rows of {what}: the same pixels twice"
            yield Finding(fold, by, "same_pixels", names, f"{text}; {remedy}", True)
        if counts:
            text = f"sections {names[0]} and {names[1]} have {counts} equal rows of counts: the same spots twice"
            yield Finding(fold, by, "same_counts", names, f"{text}; {remedy}", True)


def n_equal(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> int:
    """Count the rows that two sections share, 0 where so few may be chance; rows that repeat in a section do not count.

    Empty glass looks the same everywhere, and spots without counts are equal: only rows that are alone in their own
    section say anything.
    """
    n_rows = len(np.intersect1d(_alone(first), _alone(second), assume_unique=True))
    return n_rows if n_rows >= max(_LEAST_ROWS, _LEAST_PART * min(len(first), len(second))) else 0


def _alone(rows: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hashes that come once."""
    values, times = np.unique(rows, return_counts=True)
    alone: NDArray[np.uint64] = values[times == 1]
    return alone


def _remedy(one: SectionFacts, other: SectionFacts, by: str) -> str:
    if one.section == other.section:
        return "give a wider buffer"
    if by in ("section", "area"):
        return "keep one of the two sections, or leave out the shared spots"
    first, second = getattr(one, by), getattr(other, by)
    return f"they are said to be of {by} {first!r} and {second!r}; give them one {by}, or keep one of the two"
