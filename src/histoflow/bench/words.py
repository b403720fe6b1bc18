"""An evaluation in words and as JSON: scores, their uncertainty, what was not defined, the ceiling."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd

from histoflow.bench.ceiling import CEILING_MODEL
from histoflow.bench.runner import summary
from histoflow.bench.scores import CEILING, CEILING_STABLE, PEARSON
from histoflow.bench.uncertainty import by_section, uncertainty

_SHOWN = (
    *("pearson", "share_of_ceiling", "pearson_pooled", "spearman", "mse_skill", "variance_ratio"),
    *("moran_difference", "svg_overlap", "ssim", "coverage_90", "width_90", "crps"),
)
_MOST_GENES = 8


def as_json(table: pd.DataFrame, patients: Mapping[str, str | None] | None = None) -> dict[str, Any]:
    """Tell an evaluation as JSON holds it.

    Parameters
    ----------
    table
        From `run`.
    patients
        As in `uncertainty`.

    Returns
    -------
    `mean` (of every metric, by model, mean over folds), `r` (rows of `uncertainty`), `r_by_section`, `undefined` (by
    model, the genes whose r is not defined, with the number of sections), `errors` (by model), `ceiling` (mean where
    it is stable, `stable_share` of genes and sections, and `unstable`, genes that are so nowhere), `shares`.
    """
    told = {
        "mean": json.loads(_wide(table).to_json(orient="index")),
        "r": json.loads(uncertainty(table, patients=patients).to_json(orient="records")),
        "r_by_section": json.loads(by_section(table).to_json(orient="columns")),
        "undefined": undefined_genes(table),
        "errors": {str(model): str(error) for model, error in _errors(table).items()},
        "ceiling": _ceiling(table),
        "shares": list(table["shares"].unique()),
    }
    return told


def in_words(table: pd.DataFrame, patients: Mapping[str, str | None] | None = None) -> str:
    """Tell an evaluation in a few lines: the table, what its r is worth, and what it hides.

    Parameters
    ----------
    table
        From `run`.
    patients
        As in `uncertainty`.
    """
    wide = _wide(table)
    lines = [wide[[name for name in _SHOWN if name in wide]].round(3).to_string(na_rep="-")]
    lines += [_uncertain(table, patients), _undefined(table), _of_ceiling(table)]
    lines += [f"not scored: {model}: {error}" for model, error in _errors(table).items()]
    lines += [f"held out: {'; '.join(table['shares'].unique())}"]
    return "\n".join(line for line in lines if line)


def undefined_genes(table: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Genes whose r is not defined, because measured or predicted values do not vary, and in how many sections.

    They count as 0 in every mean.

    Parameters
    ----------
    table
        From `run`.
    """
    rows = table[(table["metric"] == PEARSON) & (table["error"] == "") & table["value"].isna()]
    found: dict[str, dict[str, int]] = {}
    for (model, gene), part in rows.groupby(["model", "gene"], sort=False):
        found.setdefault(str(model), {})[str(gene)] = int(part[["fold", "section"]].drop_duplicates().shape[0])
    return found


def _wide(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over folds, models as rows, metrics as columns."""
    scores = summary(table[table["model"] != CEILING_MODEL])
    return scores.pivot_table(index="model", columns="metric", values="value", sort=False, dropna=False)


def _uncertain(table: pd.DataFrame, patients: Mapping[str, str | None] | None) -> str:
    rows = uncertainty(table, patients=patients)
    if rows.empty:
        return ""
    unit, n_units = rows["unit"].iloc[0], int(rows["n_units"].iloc[0])
    if rows["lower"].isna().all():
        scores = by_section(table).round(3)
        each = [f"{model}: {', '.join(f'{r:.3f}' for r in scores[model])}" for model in scores]
        few = f"{_number(n_units, unit)}, too few for an interval; r on {', '.join(scores.index)}:"
        return "\n  ".join([few, *each])
    told = [
        f"{row.model}: {row.mean:.3f} ({row.lower:.3f} to {row.upper:.3f}){_lead(row)}" for row in rows.itertuples()
    ]
    return "\n  ".join([f"r with a 90 % interval, {n_units} {unit}s drawn anew:", *told])


def _lead(row: Any) -> str:
    if not row.over:
        return ""
    return f", ahead of {row.over} by {row.ahead_by:.3f} ({row.ahead_lower:.3f} to {row.ahead_upper:.3f})"


def _undefined(table: pd.DataFrame) -> str:
    n_genes = table[(table["metric"] == PEARSON)].groupby("model")["gene"].nunique()
    told = [
        f"{model} {'all' if len(genes) == n_genes[model] else _listed(list(genes))}"
        for model, genes in undefined_genes(table).items()
    ]
    return f"genes without a defined r, counted as 0: {'; '.join(told)}" if told else ""


def _of_ceiling(table: pd.DataFrame) -> str:
    told = _ceiling(table)
    if told["mean"] is None:
        return "noise ceiling: not stable for any gene"
    others = f"; nowhere stable: {_listed(told['unstable'])}" if told["unstable"] else ""
    where = f"stable for {told['stable_share']:.0%} of genes and sections"
    return f"noise ceiling of r, an upper bound: {told['mean']:.3f}, {where}{others}"


def _ceiling(table: pd.DataFrame) -> dict[str, Any]:
    """Mean of the stable ceilings, the share of genes and sections that have one, and genes that nowhere have."""
    values = table.loc[table["metric"] == CEILING, "value"]
    stable = table[table["metric"] == CEILING_STABLE]
    best = stable.groupby("gene", sort=False)["value"].max()
    mean = float(values.mean()) if values.notna().any() else None
    unstable = [str(gene) for gene in best.index[best == 0]]
    return {"mean": mean, "stable_share": float(stable["value"].mean()), "unstable": unstable}


def _errors(table: pd.DataFrame) -> pd.Series:
    return table[table["error"] != ""].drop_duplicates("model").set_index("model")["error"]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_GENES} more" if len(names) > _MOST_GENES else ""
    return ", ".join(names[:_MOST_GENES]) + more


def _number(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
