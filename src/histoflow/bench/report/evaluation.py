"""The page of an evaluation: which model to use and why, maps, genes, calibration, and how it was done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from histoflow._errors import HistoflowError
from histoflow._keys import facts
from histoflow.bench.ceiling import CEILING_MODEL
from histoflow.bench.report import cautions, done, words
from histoflow.bench.report.maps import Picture, Shown, mapped_genes, shown_sections
from histoflow.bench.report.page import render
from histoflow.bench.report.scores import (
    R,
    Score,
    best_of,
    by_gene,
    check_table,
    coverage_curve,
    first_rows,
    means,
    n_cut,
    of_genes,
    scores,
    sections_of,
)
from histoflow.bench.report.words import listed, number

ReadPrediction = Callable[[str, str, str, int], AnnData]
"""Gives what was predicted, by fold, section, model and seed; raises an error of ours where there is none."""


def evaluation_page(
    table: pd.DataFrame,
    read: ReadPrediction,
    *,
    protocol: Mapping[str, Any] | None = None,
    pictures: Mapping[str, Picture] | None = None,
    source: str = "",
) -> str:
    """Write an evaluation as one HTML page that needs nothing else.

    Parameters
    ----------
    table
        From `bench.run`.
    read
        Gives what was predicted, by fold, section, model and seed, with ``layers["measured"]``, as `read_prediction`.
    protocol
        How the evaluation was done, where that was recorded.
    pictures
        Of the tissue, by section.
    source
        Where it all comes from, for the page to say.

    Returns
    -------
    The page.

    Raises
    ------
    ReadError
        If the table is not one of `bench.run`.
    MissingDependencyError
        If plotly is not installed.
    """
    table = check_table(table)
    found = scores(table)
    chosen = _chosen(found)
    genes = by_gene(table, [score.model for score in found])
    shown = _shown(table, found, chosen, genes[chosen.model]["genes"], read, dict(pictures or {}))
    curves = coverage_curve(table, [score.model for score in found])
    known = _known(table, read, chosen)
    content = {
        "title": f"{table['dataset'].iloc[0]}: how well gene expression is predicted",
        "verdict": verdict(found),
        "cautions": [*cautions.of_evaluation(table, found, chosen, shown, curves), *done.findings(protocol or {})],
        "tiles": _tiles(table, found, chosen),
        "models": _model_table(table, found),
        "done": done.of_evaluation(table, protocol or {}, known, source, shown.trained_on),
        "glossary": _glossary(table),
        "calibrated": bool(curves),
        "n_genes_cut": n_cut(genes[chosen.model]),
        "n_mapped": len(mapped_genes(genes[chosen.model]["genes"])),
    }
    data = {
        "models": [_chart_row(score) for score in found],
        "ceiling": _ceiling(table),
        "chosen": chosen.model,
        "sections": shown.sections,
        "mapped": shown.models,
        "genes": {model: first_rows(rows) for model, rows in genes.items()},
        "columns": _columns(table),
        "curves": curves,
        "scale": str(known.get("scale", "log1p")),
    }
    return render("evaluation.html.j2", content, data)


def _chosen(found: Sequence[Score]) -> Score:
    """The model that the page shows: the best one, or where there is none the best baseline, or the first."""
    return best_of(found, "model") or best_of(found, "baseline") or found[0]


def verdict(found: Sequence[Score]) -> dict[str, Any]:
    """Say which model to use, and why.

    Parameters
    ----------
    found
        Scores, best first.

    Returns
    -------
    `headline`, and `reasons`, one sentence each.
    """
    model, baseline = best_of(found, "model"), best_of(found, "baseline")
    if model is None:
        return {"headline": "No model but baselines was scored.", "reasons": ["Evaluate one, such as hest_fm."]}
    n = len(model.by_section)
    if baseline is not None and model.mean <= baseline.mean:
        return {
            "headline": f"No model is better than the baseline {baseline.model}.",
            "reasons": [
                f"The best one, {model.model}, reaches a mean r of {number(model.mean)} on {_sections(n)}; the "
                f"baseline reaches {number(baseline.mean)}. Do not use its maps for what the baseline cannot show."
            ],
        }
    reasons = [f"Its mean r over the genes is {number(model.mean)}, averaged over {_sections(n)} held out."]
    if baseline is not None:
        reasons.append(_comparison(model, baseline, "the best baseline, "))
    others = [score for score in found if score.kind == "model" and score is not model and np.isfinite(score.mean)]
    reasons += [_comparison(model, others[0], "the next model, ")] if others else []
    return {"headline": f"Use {model.model}.", "reasons": reasons}


def _sections(n: int) -> str:
    return "1 section" if n == 1 else f"{n} sections"


def _comparison(model: Score, other: Score, what: str) -> str:
    n, ahead = len(model.by_section), model.ahead_of(other)
    where = "on every section" if ahead == n else f"on {ahead} of {n} sections"
    doubt = "" if ahead == n or n == 1 else ": the order of the two may be chance"
    return (
        f"It is {number(model.mean - other.mean)} ahead of {what}{other.model} ({number(other.mean)}), and better "
        f"{where}{doubt}."
    )


_TILES = {
    "mse_skill": "squared error taken away from the mean's",
    "share_of_ceiling": "of the r that the counts allow",
    "coverage_90": "of measured values in 90 % intervals",
}


def _tiles(table: pd.DataFrame, found: Sequence[Score], chosen: Score) -> list[tuple[str, str, str]]:
    """Label, figure and remark of each of the numbers on top."""
    baseline, mean = best_of(found, "baseline"), means(table)
    rows = of_genes(table[table["model"] == chosen.model], R)
    n_genes = rows.groupby("section")["gene"].nunique()
    tiles = [("mean r", number(chosen.mean), chosen.model)]
    if baseline is not None and baseline is not chosen:
        tiles.append(("best baseline", number(baseline.mean), baseline.model))
    for metric, remark in _TILES.items():
        value = float(mean.get(metric, pd.Series(dtype=float)).get(chosen.model, np.nan))
        if np.isfinite(value):
            tiles.append((words.METRICS[metric][0], number(value), remark))
    tiles.append(("held out", str(len(sections_of(table))), listed(sections_of(table), 6)))
    return [*tiles, ("genes", str(int(n_genes.max())), f"{rows['gene'].nunique()} in all folds together")]


def _model_table(table: pd.DataFrame, found: Sequence[Score]) -> dict[str, Any]:
    """Columns and rows of the table of models."""
    mean, sections = means(table), sections_of(table)
    metrics = [name for name in words.IN_MODEL_TABLE if name in mean and mean[name].notna().any()]
    rows = [
        {
            "model": score.model,
            "kind": score.kind,
            "r": number(score.mean),
            "by_section": [number(score.by_section.get(section)) for section in sections],
            "values": [number(float(mean[name].get(score.model, np.nan))) for name in metrics],
        }
        for score in found
    ]
    few = sections if len(sections) <= 8 else []
    return {"sections": few, "metrics": [words.METRICS[name][0] for name in metrics], "rows": rows}


def _chart_row(score: Score) -> dict[str, Any]:
    values = {section: round(r, 4) for section, r in score.by_section.items()}
    return {
        "model": score.model,
        "kind": score.kind,
        "mean": None if not np.isfinite(score.mean) else round(score.mean, 4),
        "by_section": values,
    }


def _ceiling(table: pd.DataFrame) -> float | None:
    """Mean over genes and sections of the noise ceiling, where the table has it."""
    values = of_genes(table[table["model"] == CEILING_MODEL], "ceiling")["value"].dropna()
    return round(float(values.mean()), 4) if len(values) else None


def _columns(table: pd.DataFrame) -> list[dict[str, str]]:
    there = [name for name in words.IN_GENE_TABLE if len(of_genes(table, name)["value"].dropna())]
    return [{"key": name, "label": words.METRICS[name][0], "title": words.METRICS[name][1]} for name in there]


def _glossary(table: pd.DataFrame) -> list[tuple[str, str]]:
    there = [entry for name, entry in words.METRICS.items() if len(of_genes(table, name)["value"].dropna())]
    return [*there, *words.OTHER.items()]


def _shown(
    table: pd.DataFrame,
    found: Sequence[Score],
    chosen: Score,
    ranked: Sequence[str],
    read: ReadPrediction,
    pictures: dict[str, Picture],
) -> Shown:
    """Maps of the chosen model, and of others that vary from place to place."""
    seed = int(table["seed"].min())
    place = of_genes(table, R).drop_duplicates("section").set_index("section")[["fold", "of_section"]]
    others = [s.model for s in found if s is not chosen and s.kind != "oracle" and np.isfinite(s.mean) and s.mean > 0]
    return shown_sections(
        sections_of(table),
        [chosen.model, *others],
        lambda section, model: read(str(place["fold"][section]), str(place["of_section"][section]), model, seed),
        genes=mapped_genes(ranked),
        pictures={str(name): pictures[of] for name, of in place["of_section"].items() if of in pictures},
    )


def _known(table: pd.DataFrame, read: ReadPrediction, chosen: Score) -> dict[str, Any]:
    """What a prediction of the chosen model says of itself."""
    row = of_genes(table[table["model"] == chosen.model], R).iloc[0]
    try:
        return facts(read(str(row["fold"]), str(row["of_section"]), chosen.model, int(row["seed"])))
    except HistoflowError:
        return {}  # `shown_sections` has told why
