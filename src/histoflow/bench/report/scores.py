"""What a table of held-out figures says: which model is best, by how much over the baselines, and gene by gene."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from histoflow._errors import ReadError
from histoflow.bench.ceiling import CEILING_MODEL
from histoflow.models import ColorBaseline, LibrarySizeBaseline, LocationBaseline, MeanBaseline
from histoflow.models.baselines import true_totals_name
from histoflow.stats.metrics import mean_with_nan_as_zero

MOST_ROWS = 1000
"""Genes in the table of a page."""
R = "pearson"
NONE_IS_0 = (R, "spearman", "partial_pearson", "mse_skill", "variance_ratio")
"""Metrics of which a gene without a defined value counts as 0, as in `bench.summary`."""
BASELINES = (MeanBaseline.name, LibrarySizeBaseline.name, ColorBaseline.name, LocationBaseline.name)
ORACLES = (true_totals_name(LibrarySizeBaseline.name),)
_COLUMNS = ("dataset", "by", "fold", "shares", "section", "model", "seed", "gene", "metric", "value", "error")


@dataclass(frozen=True)
class Score:
    """How one model did on the held-out sections.

    Attributes
    ----------
    model
        Its name in the table.
    kind
        ``"model"``, ``"baseline"``, or ``"oracle"``, which was told what no image shows.
    by_section
        Mean r over the genes of each section, seeds averaged; a gene whose r is not defined counts as 0.
    undefined
        Genes whose r is not defined in some section.
    failed
        Why it could not be scored, by section.
    """

    model: str
    kind: str
    by_section: dict[str, float]
    undefined: tuple[str, ...]
    failed: dict[str, str]

    @property
    def mean(self) -> float:
        """Mean over the sections; NaN where one of them could not be scored."""
        values = list(self.by_section.values())
        return float("nan") if self.failed or not values else float(np.mean(values))

    def ahead_of(self, other: Score) -> int:
        """In how many sections this one is better."""
        return sum(r > other.by_section.get(section, -np.inf) for section, r in self.by_section.items())


def check_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of `bench.run` in which a section of several folds, as areas are, goes by the fold's name.

    What `section` was is in the column `of_section` then.

    Raises
    ------
    ReadError
        If it lacks a column, has no row, or holds no Pearson r.
    """
    if missing := [column for column in _COLUMNS if column not in table]:
        raise ReadError(f"the table lacks the columns {', '.join(missing)}; give one that histoflow evaluate wrote")
    if not (table["metric"] == R).any():
        raise ReadError("the table has no row of metric pearson; give one that histoflow evaluate wrote")
    n_folds = of_genes(table, R).groupby("section")["fold"].nunique()
    areas = table["section"].isin(n_folds.index[n_folds > 1])
    return table.assign(of_section=table["section"], section=table["section"].mask(areas, table["fold"]))


def of_genes(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Rows of one metric, a gene on a section each; rows over several sections or genes are left out."""
    single = (table["gene"] != "") & (table["section"] != "")
    return table[single & (table["metric"] == metric)]


def metrics_of(table: pd.DataFrame) -> list[str]:
    """Every metric that the table has by gene and section."""
    single = (table["gene"] != "") & (table["section"] != "") & (table["model"] != CEILING_MODEL)
    return [str(metric) for metric in table.loc[single, "metric"].unique()]


def sections_of(table: pd.DataFrame) -> list[str]:
    """Names of the held-out sections, in the order of the table."""
    return [str(section) for section in of_genes(table, R)["section"].unique()]


def scores(table: pd.DataFrame) -> list[Score]:
    """Score every model of the table, best first; models that failed somewhere come last.

    Parameters
    ----------
    table
        From `bench.run`.
    """
    rows = of_genes(table, R)
    found = [_score(str(model), part) for model, part in rows.groupby("model", sort=False) if model != CEILING_MODEL]
    return sorted(found, key=lambda score: -score.mean if np.isfinite(score.mean) else np.inf)


def _score(model: str, rows: pd.DataFrame) -> Score:
    by_section, failed = {}, {}
    for section, part in rows.groupby("section", sort=False):
        reasons = [reason for reason in part["error"].unique() if reason]
        if reasons:
            failed[str(section)] = str(reasons[0])
        else:
            means = [mean_with_nan_as_zero(own["value"].to_numpy(float)).mean for _, own in part.groupby("seed")]
            by_section[str(section)] = float(np.mean(means))
    undefined = rows.loc[rows["value"].isna() & (rows["error"] == ""), "gene"].unique()
    kind = "oracle" if model in ORACLES else "baseline" if model in BASELINES else "model"
    return Score(model, kind, by_section, tuple(map(str, undefined)), failed)


def best_of(found: Sequence[Score], kind: str) -> Score | None:
    """The best score of a kind that has a mean."""
    return next((score for score in found if score.kind == kind and np.isfinite(score.mean)), None)


def by_gene(table: pd.DataFrame, models: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Figures of every gene: means over the sections, and r on each of them.

    Parameters
    ----------
    table
        From `bench.run`.
    models
        Which models.

    Returns
    -------
    By model: `genes`, best r first (not defined counts as 0); `metrics`, by name, one number or None per gene;
    `by_section`, r by section, one number or None per gene.
    """
    scored = table[table["error"] == ""]
    return {model: _genes_of(scored[scored["model"] == model]) for model in models}


def _genes_of(own: pd.DataFrame) -> dict[str, Any]:
    r = of_genes(own, R).groupby(["section", "gene"], sort=False)["value"].mean()
    order = _mean_by_gene(of_genes(own, R), R).fillna(0.0).sort_values(ascending=False, kind="stable").index
    wide = {name: _mean_by_gene(of_genes(own, name), name).reindex(order) for name in metrics_of(own)}
    return {
        "genes": [str(gene) for gene in order],
        "metrics": {name: numbers(values.to_numpy(float)) for name, values in wide.items()},
        "by_section": {
            str(section): numbers(r[section].reindex(order).to_numpy(float)) for section in sections_of(own)
        },
    }


def _mean_by_gene(rows: pd.DataFrame, metric: str) -> pd.Series:
    """Mean over sections and seeds; what is not defined counts as `NONE_IS_0` says, unless it nowhere is."""
    values = rows.set_index("gene")["value"]
    nowhere = values.isna().groupby(level=0).all()
    filled = values.fillna(0.0) if metric in NONE_IS_0 else values
    return filled.groupby(level=0).mean().mask(nowhere)


def first_rows(rows: dict[str, Any]) -> dict[str, Any]:
    """The figures of the first genes, as many as the table of a page has."""
    cut = {key: {name: values[:MOST_ROWS] for name, values in rows[key].items()} for key in ("metrics", "by_section")}
    return {"genes": rows["genes"][:MOST_ROWS], **cut}


def n_cut(rows: dict[str, Any]) -> int:
    """How many genes `first_rows` leaves out."""
    return max(0, len(rows["genes"]) - MOST_ROWS)


def numbers(values: np.ndarray, digits: int = 4) -> list[float | None]:
    """Numbers as JSON holds them: rounded, None for those that are not defined."""
    return [round(float(value), digits) if np.isfinite(value) else None for value in np.asarray(values).ravel()]


def means(table: pd.DataFrame) -> Mapping[str, pd.Series]:
    """Mean of each metric over genes, then over sections and seeds, by model; NaN counts as `NONE_IS_0` says."""
    found = {}
    for metric in metrics_of(table):
        rows = of_genes(table[table["error"] == ""], metric)
        rows = rows.fillna({"value": 0.0}) if metric in NONE_IS_0 else rows
        by_section = rows.groupby(["model", "section", "seed"], sort=False)["value"].mean()
        found[metric] = by_section.groupby(level="model", sort=False).mean()
    return found


def coverage_curve(table: pd.DataFrame, models: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Observed against nominal coverage of the intervals, for the models that give some.

    Returns
    -------
    By model, level by level: `level` and `observed` in [0, 1], and `by_section`, observed on each section.
    """
    ends = [metric.removeprefix("coverage_") for metric in metrics_of(table)]
    levels = sorted(int(end) for end in ends if end.isdigit())
    curves: dict[str, list[dict[str, Any]]] = {}
    for model in models:
        for level in levels:
            rows = of_genes(table[table["model"] == model], f"coverage_{level}").dropna(subset="value")
            if len(rows):
                section = rows.groupby("section", sort=False)["value"].mean()
                observed = {str(name): round(float(value), 4) for name, value in section.items()}
                point = {"level": level / 100, "observed": round(float(section.mean()), 4), "by_section": observed}
                curves.setdefault(model, []).append(point)
    return curves
