"""What an evaluation is going to do, decided before anything is fitted: folds, what they share, panels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from anndata import AnnData

from histoflow._errors import OptionError, SplitError
from histoflow._keys import Missing, section_name
from histoflow.bench.audit import audit_sections
from histoflow.bench.folds import By, audit_fold_ids, level_of, sides_of, unchecked_folds
from histoflow.models import Auto, Estimator
from histoflow.pp.expression import Normalize, Panel, check_normalize, choose_panel, keep_spots
from histoflow.stats.audit import Finding, refuse
from histoflow.stats.splits import Fold


@dataclass(frozen=True)
class Plan:
    """An evaluation, planned.

    Attributes
    ----------
    dataset
        Name of the cohort.
    by, asked_panel, min_counts, seeds
        As they were asked for.
    normalize, missing
        Scale, and what a gene is that a table lacks.
    held_out
        Ids of the sections that the manifest holds out.
    sections, kept
        As they came, and without poor spots.
    folds
        Audited, their labels complete.
    findings
        What the auditor found, none of which refuses.
    panels
        The genes of each fold.
    models
        Estimators by name, with this scale.
    """

    dataset: str
    by: By | str
    asked_panel: int | Panel
    min_counts: int
    seeds: tuple[int, ...]
    normalize: Normalize
    missing: Missing
    held_out: tuple[str, ...]
    sections: list[AnnData]
    kept: list[AnnData]
    folds: list[Fold]
    findings: list[Finding]
    panels: list[Panel]
    models: Mapping[str, Estimator | Auto]

    @property
    def level(self) -> str:
        """What the split is called in tables."""
        return level_of(self.by)

    @property
    def n_spots_left_out(self) -> int:
        """Spots with too few counts."""
        return int(sum(a.n_obs - b.n_obs for a, b in zip(self.sections, self.kept, strict=True)))

    def parts(self) -> Iterable[tuple[Fold, Panel, list[AnnData], list[AnnData]]]:
        """Every fold with its panel, its training and its held-out sections."""
        for fold, panel in zip(self.folds, self.panels, strict=True):
            yield fold, panel, *sides_of(fold, self.kept)


def make_plan(
    cohort: Sequence[AnnData],
    models: Mapping[str, Estimator | Auto],
    *,
    by: By | str,
    panel: int | Panel,
    normalize: str,
    min_counts: int,
    seeds: Iterable[int],
) -> Plan:
    """Plan an evaluation, arguments as in `run`, and refuse one that leaks.

    Raises
    ------
    OptionError
        If an option is not offered, or there is no model or no seed.
    SplitError
        If the cohort cannot be split so, the auditor finds the level violated, or no spot of a section is left.
    PanelMismatchError
        If there are too few genes for a panel.
    """
    scale, tried = check_normalize(normalize), tuple(seeds)
    if not models or not tried:
        raise OptionError(f"got {len(models)} models and {len(tried)} seeds; give at least one of each")
    sections, held_out = list(cohort), tuple(getattr(cohort, "held_out_ids", ()))
    kept = [keep_spots(section, min_counts=min_counts) for section in sections]
    if empty := [section_name(section) for section in kept if not section.n_obs]:
        raise SplitError(f"min_counts={min_counts} leaves no spot of {', '.join(empty)}; give a smaller number")
    folds, findings = _audited(unchecked_folds(kept, by, held_out), kept, by)
    return Plan(
        dataset=str(getattr(cohort, "name", "sections")),
        by=by,
        asked_panel=panel,
        min_counts=int(min_counts),
        seeds=tried,
        normalize=scale,
        missing=getattr(cohort, "missing", "error"),
        held_out=held_out,
        sections=sections,
        kept=kept,
        folds=folds,
        findings=findings,
        panels=[_panel(panel, sides_of(fold, kept)[0], scale) for fold in folds],
        models={name: estimator.clone(normalize=normalize) for name, estimator in models.items()},
    )


def _panel(panel: int | Panel, train: list[AnnData], normalize: Normalize) -> Panel:
    return panel if isinstance(panel, Panel) else choose_panel(train, panel, normalize=normalize)


def _audited(folds: list[Fold], sections: list[AnnData], by: By | str) -> tuple[list[Fold], list[Finding]]:
    """The folds, refused where they violate the asked level, labelled with whatever else their sides share."""
    found = [finding for fold in folds for finding in audit_fold_ids(fold, sections, by)]
    found += audit_sections(folds, sections, by)
    refuse(found)
    return [replace(fold, shares="; ".join([fold.shares, *_labels(fold, found)])) for fold in folds], found


def _labels(fold: Fold, found: list[Finding]) -> list[str]:
    """What was found of a fold and is not in its label already, each once."""
    return list(dict.fromkeys(f.sentence for f in found if f.fold == fold.name and f.kind != "serial"))
