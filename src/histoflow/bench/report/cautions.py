"""Warnings in plain words: what a reader has to know before using a figure or a map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from histoflow.bench.report.maps import Shown
from histoflow.bench.report.scores import R, Score, of_genes, sections_of
from histoflow.bench.report.words import listed, number, percent

ENOUGH_SECTIONS = 5
_COVERAGE_OFF = 0.10
_FLAT = 0.5
_MEANINGS = {
    "same section": "training and test spots lie on one slide; nothing here says how well it does on another section",
    "serial": "neighbouring slices of one tissue look alike; nothing here says how well it does on another patient",
    "same block": "slices of one tissue look alike; nothing here says how well it does on another patient",
    "same patient": "nothing here says how well it does on another patient",
    "patient not stated": "whether it holds for another patient is not known; state the patient of every section",
    "same study": "slides of another laboratory, stain or scanner may do worse",
}


def of_evaluation(
    table: pd.DataFrame, found: Sequence[Score], chosen: Score, shown: Shown, curves: Mapping[str, Any]
) -> list[str]:
    """Collect the warnings of an evaluation, the gravest first.

    Parameters
    ----------
    table
        From `bench.run`.
    found
        Scores of its models.
    chosen
        The one that is mapped.
    shown
        What is mapped.
    curves
        From `coverage_curve`.
    """
    return [
        *_of_split(table),
        *_of_failures([score for score in found if score.kind == "model"]),
        *_of_number(table),
        *_of_coverage(curves),
        *_of_genes(chosen),
        *_of_flatness(table, chosen),
        *_of_panels(table),
        *_of_seeds(table),
        *of_maps(shown),
        *_of_failures([score for score in found if score.kind != "model"]),
    ]


def _with_meaning(label: str) -> str:
    """A label of what a fold's parts share, and what follows from it."""
    meaning = next((text for part, text in _MEANINGS.items() if part in label), None)
    told = label.replace(": optimistic", " (optimistic)")
    return told if meaning is None else f"{told}: {meaning}"


def _of_split(table: pd.DataFrame) -> list[str]:
    labels = [str(label) for label in table["shares"].unique() if label]
    return [f"What held-out and training parts share: {_with_meaning(label)}." for label in labels]


def _of_failures(found: Sequence[Score]) -> list[str]:
    return [
        f"{score.model} could not be scored on {listed(list(score.failed))}: {next(iter(score.failed.values()))}."
        for score in found
        if score.failed
    ]


def _of_number(table: pd.DataFrame) -> list[str]:
    n = len(sections_of(table))
    if n >= ENOUGH_SECTIONS:
        return []
    held_out = f"{n} sections were" if n != 1 else "One section was"
    return [
        f"{held_out} held out, too few for an interval around the means: read the single points, and take small "
        "differences between models for nothing."
    ]


def _of_seeds(table: pd.DataFrame) -> list[str]:
    seeds = sorted(int(seed) for seed in table["seed"].unique())
    if len(seeds) < 2:
        return []
    return [
        f"Figures are means over the seeds {listed([str(seed) for seed in seeds])}; the maps are of seed {seeds[0]}."
    ]


def _of_coverage(curves: Mapping[str, Any]) -> list[str]:
    found = []
    for model, points in curves.items():
        off = [p for p in points if abs(p["observed"] - p["level"]) > _COVERAGE_OFF]
        if off:
            worst = max(off, key=lambda p: abs(p["observed"] - p["level"]))
            way = "too narrow" if worst["observed"] < worst["level"] else "too wide"
            found.append(
                f"Intervals of {model} are {way}: those of {percent(worst['level'])} hold "
                f"{percent(worst['observed'])} of the measured values."
            )
    return found


def _of_genes(chosen: Score) -> list[str]:
    if not chosen.undefined:
        return []
    return [
        f"r of {chosen.model} is not defined for {listed(chosen.undefined)} on some section, because measured or "
        "predicted expression does not vary there; it counts as 0 in every mean."
    ]


def _of_flatness(table: pd.DataFrame, chosen: Score) -> list[str]:
    rows = of_genes(table[table["model"] == chosen.model], "variance_ratio")["value"]
    if not len(rows) or not rows.mean() < _FLAT:
        return []
    return [
        f"The predicted maps of {chosen.model} are flatter than the tissue: their variance is {number(rows.mean(), 2)} "
        "of the measured one. Read where expression is higher and lower, not by how much."
    ]


def _of_panels(table: pd.DataFrame) -> list[str]:
    genes = of_genes(table, R).groupby("fold", sort=False)["gene"].agg(frozenset)
    if genes.nunique() < 2:
        return []
    n_all = len(frozenset().union(*genes))
    return [
        f"Every fold has a gene list of its own, chosen from its training sections: {n_all} genes in all, of which "
        f"{len(frozenset.intersection(*genes))} are in every fold. Means over folds are over these lists."
    ]


def of_maps(shown: Shown) -> list[str]:
    """Warnings about what is mapped.

    Parameters
    ----------
    shown
        From `shown_sections`.
    """
    found = []
    if shown.n_unfamiliar:
        places = [f"{flagged} of {total} on {section}" for section, (flagged, total) in shown.n_unfamiliar.items()]
        found.append(
            f"Some places look unlike what the model was trained on, in tissue or in stain: {listed(places)}. They are "
            "outlined on the maps, and their predictions should not be used."
        )
    if shown.left_out:
        found.append(
            f"To keep this page small there are no maps of {listed(shown.left_out)}; the tables count them in, and "
            "their predictions are in the evaluation's folder."
        )
    if shown.n_thinned:
        drawn = [f"{n} places of {section}" for section, n in shown.n_thinned.items()]
        found.append(f"To keep this page small the maps show {listed(drawn)}, drawn at random, and not all of them.")
    if bare := [record["name"] for record in shown.sections if record["picture"] is None]:
        found.append(f"There is no picture of the tissue of {listed(bare)}: its maps are drawn without tissue.")
    return found + [
        f"There is no map of {model} on {listed(sections)}: {reason}."
        for model, (sections, reason) in shown.lacking.items()
    ]
