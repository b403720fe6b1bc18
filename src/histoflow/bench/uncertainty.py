"""How far the mean score of a model may be off, and its lead over the baselines: sections or patients drawn anew."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from histoflow._errors import OptionError
from histoflow.bench.scores import PEARSON
from histoflow.models import ColorBaseline, LibrarySizeBaseline, LocationBaseline, MeanBaseline
from histoflow.stats.bootstrap import bootstrap_mean
from histoflow.stats.metrics import mean_with_nan_as_zero

BASELINES = (MeanBaseline.name, LibrarySizeBaseline.name, ColorBaseline.name, LocationBaseline.name)
"""The trivial estimators that every table holds."""
LEAST_UNITS = 5
"""Sections or patients from which a bootstrap says something."""


def by_section(table: pd.DataFrame, metric: str = PEARSON) -> pd.DataFrame:
    """Score of every model on every held-out section: mean over genes (NaN counted as 0), then over areas and seeds.

    Parameters
    ----------
    table
        From `run`.
    metric
        One that is told gene by gene and section by section.

    Returns
    -------
    Sections as rows, models as columns in the order of the table; NaN where a model could not be scored.

    Raises
    ------
    OptionError
        If the table has no such metric of single sections.
    """
    rows = table[(table["metric"] == metric) & (table["section"] != "") & (table["error"] == "")]
    if not len(rows):
        known = ", ".join(table.loc[table["section"] != "", "metric"].unique())
        raise OptionError(f"metric is {metric!r}; the table has {known}")
    keys = ["model", "section", "fold", "seed"]
    means = rows.groupby(keys, sort=False)["value"].agg(lambda genes: mean_with_nan_as_zero(genes.to_numpy(float)).mean)
    return means.groupby(["section", "model"], sort=False).mean().unstack("model", sort=False)


def uncertainty(
    table: pd.DataFrame,
    *,
    metric: str = PEARSON,
    patients: Mapping[str, str | None] | None = None,
    level: float = 0.9,
    seed: int = 0,
) -> pd.DataFrame:
    """Mean score of every model, and its lead over the best baseline, each with a bootstrap interval.

    Patients are drawn where five or more are known, each with the mean of its sections; else sections, if there are
    five or more, which says nothing about other patients; else there is no interval, and `by_section` has all there
    is. Leads are paired: models are compared on the same draws of sections.

    Parameters
    ----------
    table
        From `run`.
    metric
        As in `by_section`.
    patients
        Patient of each section; None, or None for a section, where it is not stated.
    level
        Of the intervals.
    seed
        Of the draws.

    Returns
    -------
    One row per model that could be scored everywhere: `mean`, `lower`, `upper`; `over`, the baseline with the highest
    mean, with `ahead_by`, `ahead_lower`, `ahead_upper`; `unit` ("patient" or "section") and `n_units`. NaN where there
    is no interval, and of the lead for baselines.

    Raises
    ------
    OptionError
        If the table has no such metric, or `level` is not in (0, 1).
    """
    scores = by_section(table, metric).dropna(axis=1)
    unit, units = _units(scores, patients or {})
    known = [name for name in scores.columns if name in BASELINES]
    best = max(known, key=lambda name: float(units[name].to_numpy().mean()), default=None)
    rows = []
    for model in scores.columns:
        mean, lower, upper = _interval(units[model], level, seed)
        lead = (np.nan, np.nan, np.nan)
        if best is not None and model not in BASELINES:
            lead = _interval(units[model] - units[best], level, seed)
        over = "" if np.isnan(lead[0]) else best
        rows.append((model, mean, lower, upper, over, *lead, unit, len(units)))
    columns = ["model", "mean", "lower", "upper", "over", "ahead_by", "ahead_lower", "ahead_upper", "unit", "n_units"]
    return pd.DataFrame(rows, columns=columns)


def _units(scores: pd.DataFrame, patients: Mapping[str, str | None]) -> tuple[str, pd.DataFrame]:
    """What is drawn, and the scores of each."""
    of_section = [patients.get(str(section)) for section in scores.index]
    if None in of_section or len(set(of_section)) < LEAST_UNITS:
        return "section", scores
    return "patient", scores.groupby(np.array(of_section, dtype=object), sort=False).mean()


def _interval(values: pd.Series, level: float, seed: int) -> tuple[float, float, float]:
    """Mean and interval; the same seed draws the same units."""
    numbers = values.to_numpy(float)
    if len(numbers) < LEAST_UNITS:
        return float(numbers.mean()), float("nan"), float("nan")
    return (float(numbers.mean()), *bootstrap_mean(numbers, level=level, seed=seed))
