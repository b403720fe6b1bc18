"""Folds of a cohort: whole groups of sections, or areas inside them behind a buffer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from anndata import AnnData

from histoflow._errors import OptionError, SplitError
from histoflow._keys import EMBEDDINGS, SPATIAL_UM, check_section, facts, section_name
from histoflow.stats.audit import Finding, audit_ids, refuse
from histoflow.stats.splits import (
    Fold,
    Level,
    SectionFacts,
    check_level,
    describe_shares,
    leave_one_out,
    spatial_blocks,
)

AREA = "area"
_BUFFER_PITCHES = 2.0


@dataclass(frozen=True)
class Areas:
    """Areas inside each section, held out one by one; spots near them are neither trained on nor scored.

    All other sections stay in training. It is the most optimistic of the splits, for the cohort of one section.

    Parameters
    ----------
    n_areas
        Into how many areas of equal numbers of spots every section is cut, at least 2.
    buffer_um
        Distance in µm between what is trained on and what is held out, not below the diagonal of the widest patch, so
        that no two patches across it share pixels; None for that diagonal, or two spot distances if these are more.

    Raises
    ------
    OptionError
        If there are fewer than two areas, or the buffer is not a distance.
    """

    n_areas: int = 4
    buffer_um: float | None = None

    def __post_init__(self) -> None:
        """Refuse what is no split."""
        if self.n_areas < 2:
            raise OptionError(f"n_areas must be at least 2, got {self.n_areas}")
        if self.buffer_um is not None and not 0 <= self.buffer_um < np.inf:
            raise OptionError(f"buffer_um must be a distance in µm of at least 0, got {self.buffer_um}")


By = Level | Areas
"""What is held out: a whole group of sections, or areas of them."""


def plan_folds(cohort: Sequence[AnnData], by: By | str = "section") -> list[Fold]:
    """Hold out every group in turn; or, where a manifest says which sections are held out, these alone.

    Parameters
    ----------
    cohort
        Sections. For a level nothing but what is known about where they come from is looked at; for areas also where
        their spots are, and how wide the patches of their embeddings.
    by
        As in `run`.

    Returns
    -------
    Folds, whose numbers are places in `cohort`. By area a fold has one section on both sides, and says which rows of
    it; sections that a manifest holds out are in none.

    Raises
    ------
    OptionError
        If the level is not offered.
    SplitError
        If it is not stated for every section, gives fewer than two parts, cannot part the sections held out, or is
        violated by how ids are written; by area, if the buffer is too small for the patches or leaves nothing.
    """
    folds = unchecked_folds(cohort, by)
    refuse(finding for fold in folds for finding in audit_fold_ids(fold, cohort, by))
    return folds


def unchecked_folds(cohort: Sequence[AnnData], by: By | str, held_out: Sequence[str] | None = None) -> list[Fold]:
    """The folds of `plan_folds`, however ids are written; `held_out` where the cohort does not say it itself."""
    named = list(getattr(cohort, "held_out_ids", [])) if held_out is None else list(held_out)
    areas = areas_of(by)
    if areas is not None:
        return _area_folds(cohort, areas, named)
    level: Any = by
    check_level(level, also=(AREA,))
    told = [facts_of(section) for section in cohort]
    return _of_roles(told, named, level) if named else leave_one_out(told, level)


def audit_fold_ids(fold: Fold, cohort: Sequence[AnnData], by: By | str) -> list[Finding]:
    """What the ids of a fold's sections say against it, see `audit_ids`."""
    told = [facts_of(section) for section in cohort]
    train, test = ([told[place] for place in side] for side in (fold.train, fold.test))
    return audit_ids(fold.name, level_of(by), train, test, told)


def areas_of(by: By | str) -> Areas | None:
    """The areas that are asked for; None where whole groups of sections are."""
    return Areas() if by == AREA else by if isinstance(by, Areas) else None


def level_of(by: By | str) -> str:
    """What a split is called in tables."""
    return AREA if isinstance(by, Areas) else by


def sides_of(fold: Fold, sections: Sequence[AnnData]) -> tuple[list[AnnData], list[AnnData]]:
    """Training and held-out sections of a fold, or the parts of them that belong to each side."""
    sides = [[sections[place] for place in side] for side in (fold.train, fold.test)]
    if fold.rows is None:
        return sides[0], sides[1]
    (place,) = fold.test
    kept = [sections[place][list(rows)].copy() for rows in fold.rows]
    train = [kept[0] if other == place else sections[other] for other in fold.train]
    return train, [kept[1]]


def facts_of(section: AnnData) -> SectionFacts:
    """What is known about where a section comes from."""
    known = facts(section)
    ids = {key: None if known.get(key) is None else str(known[key]) for key in ("patient", "block", "study")}
    order = known.get("order")
    return SectionFacts(section_name(section), **ids, order=None if order is None else int(order))


def widest_patch_um(section: AnnData) -> float:
    """Side in µm of the widest patch that the section's embeddings look at; 0 where it has none."""
    made = facts(section).get(EMBEDDINGS, {}).values()
    return max((float(side) for one in made for side in np.ravel(one.get("patch_um", 0.0))), default=0.0)


def _of_roles(told: list[SectionFacts], held_out: list[str], by: Level) -> list[Fold]:
    """The one fold of the sections that a manifest holds out."""
    test = tuple(i for i, fact in enumerate(told) if fact.section in held_out)
    train = tuple(i for i in range(len(told)) if i not in test)
    groups = [{getattr(told[i], by) for i in side} for side in (train, test)]
    shared = groups[0] & groups[1] - {None}
    if shared or None in groups[0] | groups[1]:
        rows = {fact.section: getattr(fact, by) for fact in told}
        empty = [section for section, group in rows.items() if group is None]
        both = [f"{section} ({by} {group!r})" for section, group in rows.items() if group in shared]
        why = f"shared by both sides: {', '.join(both)}" if both else f"not stated for {', '.join(empty)}"
        raise SplitError(
            f"the sections held out cannot be split from the references by {by}: {why}; "
            f"{'split by another level' if both else f'fill the column {by!r}, or split by another level'}"
        )
    label = describe_shares([told[i] for i in train], [told[i] for i in test])
    return [Fold("+".join(told[i].section for i in test), train, test, label)]


def _area_folds(cohort: Sequence[AnnData], areas: Areas, held_out: list[str]) -> list[Fold]:
    places = [place for place, section in enumerate(cohort) if section_name(section) not in held_out]
    if not places:
        raise SplitError("every section is held out by the manifest; areas are cut from references: change the roles")
    names = [section_name(cohort[place]) for place in places]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise SplitError(f"section ids must be unique, but {', '.join(repeated)} came more than once: rename them")
    return [replace(fold, train=tuple(places)) for place in places for fold in _of_section(cohort[place], place, areas)]


def _of_section(section: AnnData, place: int, areas: Areas) -> list[Fold]:
    """The areas of one section."""
    check_section(section, needs=[SPATIAL_UM])
    name, buffer_um = section_name(section), _buffer_um(section, areas)
    try:
        blocks = spatial_blocks(section.obsm[SPATIAL_UM], areas.n_areas, buffer_um=buffer_um)
    except SplitError as err:
        raise SplitError(f"section {name} cannot be split by area: {err}") from err
    label = f"same section, {buffer_um:.0f} µm away: optimistic"
    return [
        Fold(f"{name}-area{number}", (), (place,), label, rows=(tuple(train.tolist()), tuple(test.tolist())))
        for number, (train, test) in enumerate(blocks, start=1)
    ]


def _buffer_um(section: AnnData, areas: Areas) -> float:
    """The asked buffer, not less than what keeps patches apart in every direction."""
    diagonal = float(np.sqrt(2) * widest_patch_um(section))
    if areas.buffer_um is None:
        return max(diagonal, _BUFFER_PITCHES * float(np.nan_to_num(facts(section).get("pitch_um", 0.0))))
    if areas.buffer_um < diagonal:
        raise SplitError(
            f"section {section_name(section)}: buffer_um={areas.buffer_um:g} is below {diagonal:.0f} µm, the diagonal "
            f"of the widest patch ({widest_patch_um(section):g} µm): patches across it would share pixels; give more"
        )
    return areas.buffer_um
