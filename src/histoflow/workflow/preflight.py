"""What is wrong in a cohort before hours of work: files, scales, overlaps, patients; each finding with its fix."""

from __future__ import annotations

import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any, get_args

from anndata import AnnData

from histoflow import bench, io
from histoflow._errors import DroppedSpotsWarning, GeneNamesWarning, HistoflowError, HistoflowWarning, ScaleWarning
from histoflow._keys import SPATIAL_UM, facts, section_name
from histoflow.io.scale import nearest_distance
from histoflow.stats import Finding, Level
from histoflow.workflow.doctor import Check, State, of_error

_PITCH_UM = (2.0, 1000.0)
"""From bins of 2 µm to the coarsest arrays; beyond, the scale is wrong."""
_SAME_PITCH = 0.1
_FEW_GENES = 50
_REMEDIES: dict[type[Warning], str] = {
    ScaleWarning: "give the column mpp if you know it better",
    DroppedSpotsWarning: "check the spot table if you did not expect it",
    GeneNamesWarning: "check the gene names if you did not expect it",
}


def check_cohort(path: str | Path) -> list[Check]:
    """Look at a cohort as the other commands will read it.

    Every section is read and every slide opened, so that missing and damaged files, unknown or contradicting scales,
    and slides that do not belong to their counts are found; then sections are compared with each other.

    Parameters
    ----------
    path
        The manifest.

    Returns
    -------
    One finding for the manifest, one or more for each row, then those between sections: genes, spot distances, what
    each level of a split would hold apart, overlaps and equal rows.
    """
    try:
        cohort = io.read_cohort(path)
    except HistoflowError as err:
        return [of_error(str(path), err)]
    roles = [row.role for row in cohort.rows]
    told = ", ".join(f"{roles.count(role)} {role}" for role in dict.fromkeys(roles))
    checks, sections = [Check("manifest", "ok", f"{len(roles)} rows: {told}")], []
    for row in cohort.rows:
        found, section = _row(cohort, row)
        checks += found
        sections += [section] if section is not None and section.n_vars else []
    return [*checks, *_between(_part(cohort, sections))]


def _row(cohort: io.Cohort, row: io.Row) -> tuple[list[Check], AnnData | None]:
    """What is found in a row, and its section if it has one that can be read."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", HistoflowWarning)
        try:
            section = None if row.kind == "slide" else cohort.select(sections=[row.section])[0]
            known = _slide_facts(row) if section is None else facts(section)
        except HistoflowError as err:
            return [of_error(row.section, err)], None
    notes = [
        Check(row.section, "note", str(one.message), _REMEDIES[one.category])
        for one in caught
        if one.category in _REMEDIES
    ]
    size = "slide without counts" if section is None else f"{section.n_obs} spots, {section.n_vars} genes"
    found = [Check(row.section, "ok", f"{size}, {_scale(known)}"), *notes]
    return found + ([] if section is None else _pitch(section)), section


def _slide_facts(row: io.Row) -> dict[str, Any]:
    wsi = io.open_wsi(str(row.slide), mpp=row.mpp)
    known = dict(wsi.attrs["histoflow"])
    wsi.close()  # type: ignore[no-untyped-call]
    return known


def _scale(known: dict[str, Any]) -> str:
    """The scale, and where it is known from."""
    if "mpp_x" not in known:
        return "scale not stated: places in level-0 pixels alone"
    return f"{known['mpp_x']:.3g} × {known['mpp_y']:.3g} µm/px (from {known['mpp_source']})"


def _pitch(section: AnnData) -> list[Check]:
    """Whether neighbouring spots lie as far apart as spots do."""
    if SPATIAL_UM not in section.obsm:
        return []
    pitch_um = nearest_distance(section.obsm[SPATIAL_UM])
    if not (pitch_um < _PITCH_UM[0] or pitch_um > _PITCH_UM[1]):
        return []
    told = f"neighbouring spots lie {pitch_um:.3g} µm apart, wanted {_PITCH_UM[0]:g} to {_PITCH_UM[1]:g} µm"
    return [Check(section_name(section), "fail", told, "the scale is wrong: correct the column mpp")]


def _part(cohort: io.Cohort, sections: list[AnnData]) -> io.Cohort:
    return cohort.select(sections=[section_name(section) for section in sections])


def _between(cohort: io.Cohort) -> list[Check]:
    """What is found between the sections that could be read."""
    if not cohort.rows:
        return []
    checks = [_genes(cohort), *_spot_distances(cohort)]
    if len(cohort) < 2:
        return checks
    return [*checks, *(_level(cohort, level) for level in get_args(Level)), *_audited(cohort)]


def _genes(cohort: io.Cohort) -> Check:
    """Whether a panel can be chosen: one species, and genes in all references."""
    references = cohort.select(role="reference") if any(row.role == "reference" for row in cohort.rows) else cohort
    try:
        species = io.check_species(cohort)
    except HistoflowError as err:
        return of_error("genes", err)
    shared = set.intersection(*(set(section.var_names) for section in references))
    told = f"{len(shared)} in all {len(references)} references, species {species}"
    state: State = "fail" if not shared else "note" if len(shared) < _FEW_GENES else "ok"
    fix = "" if state == "ok" else "name genes one way (hf.rename_genes), or leave out the section of another panel"
    return Check("genes", state, told, fix)


def _spot_distances(cohort: io.Cohort) -> list[Check]:
    """A note where sections of different spot distance are to be learned from together."""
    known = {section_name(section): facts(section).get("pitch_um") for section in cohort}
    stated = {name: float(pitch_um) for name, pitch_um in known.items() if pitch_um is not None}
    if not stated or max(stated.values()) <= (1 + _SAME_PITCH) * min(stated.values()):
        return []
    told = ", ".join(f"{name} {pitch_um:.0f} µm" for name, pitch_um in stated.items())
    fix = "expected of different technologies; else check mpp and pitch_um"
    return [Check("spot distances", "note", f"they differ: {told}", fix)]


def _level(cohort: io.Cohort, level: str) -> Check:
    """Whether an evaluation by this level can be had, and what its parts share."""
    what = f"evaluate --by {level}"
    try:
        folds = bench.plan_folds(cohort, level)
    except HistoflowError as err:
        return of_error(what, err, "note")
    shares = "; ".join(dict.fromkeys(fold.shares for fold in folds))
    together = defaultdict(list)
    for section in cohort:
        together[facts(section).get(level, section_name(section))].append(section_name(section))
    groups = [f"{name} ({', '.join(names)})" for name, names in together.items() if len(names) > 1]
    told = f"{len(folds)} folds; train and test share: {shares}"
    return Check(what, "ok", f"{told}; together: {', '.join(groups)}" if groups else told)


def _audited(cohort: io.Cohort) -> list[Check]:
    """Pixels, counts and ids on both sides of a split, each pair of sections once."""
    try:
        found = bench.audit(cohort, by="section")
    except HistoflowError as err:
        return [of_error("overlaps", err, "note")]
    worst: dict[tuple[str, frozenset[str]], Finding] = {}
    for finding in found:
        worst.setdefault((finding.kind, frozenset(finding.sections)), finding)
    return [_finding(finding) for finding in worst.values()] or [Check("overlaps", "ok", "none between sections")]


def _finding(finding: Finding) -> Check:
    state: State = "fail" if finding.refuses else "note"
    told, _, fix = finding.sentence.rpartition(": ")
    if finding.kind in ("same_pixels", "same_counts"):
        told, _, fix = finding.sentence.rpartition("; ")
    if finding.kind in ("serial", "same_slide"):
        told, fix = finding.sentence, "evaluate --by block or --by patient, and read the scores as optimistic else"
    return Check(finding.kind.replace("_", " "), state, told, fix, "SplitError" if finding.refuses else "")
