"""Held-out evaluation: every estimator on every fold and seed, one long table; what is done is not done again."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from histoflow._errors import HistoflowError, HistoflowWarning, SplitError
from histoflow._keys import section_name
from histoflow._progress import track
from histoflow.bench.ceiling import ceiling_rows, shares_of_ceiling
from histoflow.bench.folds import By
from histoflow.bench.parts import Job, Keeper, write_table
from histoflow.bench.plan import Plan, make_plan
from histoflow.bench.protocol import (
    check_cohort,
    check_models,
    models_of,
    options_of,
    read_protocol,
    write_protocol,
)
from histoflow.bench.scores import LEFT_OUT, pooled, score
from histoflow.models import (
    Auto,
    ColorBaseline,
    Estimator,
    LibrarySizeBaseline,
    LocationBaseline,
    MeanBaseline,
    from_name,
)
from histoflow.models.baselines import true_totals_name
from histoflow.pp.expression import Panel, library_size, panel_log1p
from histoflow.stats.metrics import mean_with_nan_as_zero
from histoflow.stats.splits import Fold

RESULTS = "results.parquet"
COLUMNS = ("dataset", "by", "fold", "shares", "section", "model", "seed", "gene", "metric", "value", "error")


def default_models(*, encoder: str = "scatter", level: float | None = None) -> dict[str, Estimator]:
    """Return the estimators of an ordinary table: the baselines, the linear probe, the flow.

    Parameters
    ----------
    encoder, level
        As in `models.from_name`.
    """
    names = (MeanBaseline.name, LibrarySizeBaseline.name, ColorBaseline.name, "hest_fm", "stflow")
    return {name: from_name(name, encoder=encoder, level=level) for name in names}


def run(
    cohort: Sequence[AnnData],
    *,
    models: Mapping[str, Estimator | Auto] | None = None,
    by: By | str = "section",
    panel: int | Panel = 50,
    normalize: str = "library",
    min_counts: int = 0,
    seeds: Iterable[int] = (0,),
    out: str | Path | None = None,
) -> pd.DataFrame:
    """Fit every model on all but one part of a cohort and score it on that part, part by part.

    Parameters
    ----------
    cohort
        Embedded sections with raw counts; of a `Cohort` its `missing` says what a gene is that a table lacks.
    models
        Estimators, or choices among estimators, by the name they have in the table, not fitted; None for
        `default_models`.
    by
        What is held out as a whole: ``"section"``, ``"block"``, ``"patient"`` or ``"study"``; or ``"area"``, areas of
        each section behind a buffer, see `Areas`. Where the manifest gives sections the role held_out, these are the
        only fold.
    panel
        Number of genes, chosen by variance in each fold from its training sections alone; or a fixed panel.
    normalize
        Scale: ``"library"``, log1p of counts per 10,000; ``"none"``, log1p of raw counts.
    min_counts
        Spots with fewer counts in all are neither trained on nor scored.
    seeds
        Seeds of the estimators.
    out
        Folder for ``results.parquet``, ``protocol.json``, from which `rerun` makes the same table, the fitted models,
        predictions, and finished parts that a later run takes up; None for none.

    Returns
    -------
    One row per dataset, by, fold, shares, section, model, seed, gene and metric, with `value`, and `error` where a
    model could not be scored. Metrics, each over the spots of one section: pearson, spearman, mse_skill (against the
    mean of the training spots), variance_ratio, partial_pearson (given the log1p total counts), moran_measured,
    moran_predicted, moran_difference, ssim; of predictions with intervals coverage and width of central intervals of
    50, 80 and 90 %, and crps; with an empty gene svg_overlap; with an empty section pearson_pooled, over the spots of
    all test sections together; and share_of_ceiling, pearson over the noise ceiling, NaN where that is not stable.
    Rows of the model "(ceiling)" are of the data: ceiling and ceiling_stable (1 or 0) of every gene. ``attrs`` tells
    panel rule and hash by fold, scale, and spots left out.

    Raises
    ------
    SplitError
        If the level is not stated for every section, gives fewer than two parts, or the auditor finds it violated.
    PanelMismatchError
        If a fixed panel has genes that a section lacks.
    """
    estimators = default_models() if models is None else models
    plan = make_plan(cohort, estimators, by=by, panel=panel, normalize=normalize, min_counts=min_counts, seeds=seeds)
    folder = None if out is None else Path(out)
    parts = [Keeper(job, folder).rows(_score) for job in track(list(_jobs(plan)), "evaluating")]
    parts += [_ceilings(plan, *part) for part in plan.parts()]
    table = pd.concat(parts, ignore_index=True).assign(dataset=plan.dataset, by=plan.level)[list(COLUMNS)]
    table = pd.concat([table, shares_of_ceiling(table)], ignore_index=True)
    table.attrs.update(_attributes(plan))
    if folder is not None:
        write_table(table, folder / RESULTS)
        write_protocol(plan, folder)
    return table


def plan_jobs(
    cohort: Sequence[AnnData],
    models: Mapping[str, Estimator | Auto],
    *,
    by: By | str = "section",
    panel: int | Panel = 50,
    normalize: str = "library",
    min_counts: int = 0,
    seeds: Iterable[int] = (0,),
) -> list[Job]:
    """Plan what `run` would do: the estimator, fold and seed of each of its parts, to be run anywhere by `run_job`.

    Parameters
    ----------
    cohort, models, by, panel, normalize, min_counts, seeds
        As in `run`, which refuses the same.

    Returns
    -------
    The jobs, in the order of the table.
    """
    how: dict[str, Any] = {"normalize": normalize, "min_counts": min_counts, "seeds": seeds}
    return list(_jobs(make_plan(cohort, models, by=by, panel=panel, **how)))


def run_job(job: Job, out: str | Path) -> pd.DataFrame:
    """Fit and score one job, and keep what it made where `run` with this `out` takes it up.

    Parameters
    ----------
    job
        From `plan_jobs`.
    out
        Folder of the evaluation.

    Returns
    -------
    Its rows of the table of `run`, without `dataset` and `by`.
    """
    return Keeper(job, Path(out)).rows(_score)


def is_finished(job: Job, out: str | Path) -> bool:
    """Whether a job has been run to its end in this folder, and what it made is still there."""
    return Keeper(job, Path(out)).finished()


def rerun(
    protocol: str | Path | Mapping[str, Any],
    cohort: Sequence[AnnData],
    *,
    models: Mapping[str, Estimator | Auto] | None = None,
    out: str | Path | None = None,
) -> pd.DataFrame:
    """Run an evaluation again, as its protocol states it.

    Parameters
    ----------
    protocol
        A ``protocol.json`` that `run` wrote, its folder, or what `read_protocol` made of it.
    cohort
        The same sections, embedded in the same way.
    models
        The same estimators; None to make them of the options that the protocol states, which works for all that need
        no file of one's own.
    out
        As in `run`.

    Returns
    -------
    As `run`.

    Raises
    ------
    ReadError, ProtocolError
        If the protocol cannot be read; or cohort, embeddings or models are not those of it, naming what differs.
    """
    told = protocol if isinstance(protocol, Mapping) else read_protocol(protocol)
    check_cohort(told, cohort)
    estimators = models_of(told) if models is None else models
    check_models(told, cohort, estimators)
    table = run(cohort, models=estimators, out=out, **options_of(told))
    stated = {fold["name"]: fold["panel"]["hash"] for fold in told["folds"]}
    found = {str(fold): panel["hash"] for fold, panel in table.attrs["panels"].items()}
    if found != stated:
        warnings.warn(
            "the panels are not those of the protocol: this version chooses other genes from the same data, so that "
            "its figures are not comparable",
            HistoflowWarning,
            stacklevel=2,
        )
    return table


def _attributes(plan: Plan) -> dict[str, Any]:
    panels = {f.name: {"rule": p.rule, "hash": p.hash, "n_genes": len(p)} for f, p, *_ in plan.parts()}
    about = {"normalize": plan.normalize, "min_counts": plan.min_counts, "n_spots_left_out": plan.n_spots_left_out}
    return about | {"panels": panels}


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over genes, by metric, model and fold, then over sections and seeds.

    A NaN counts as 0, except in metrics where it says something of the measurement rather than of the model
    (`scores.LEFT_OUT`, such as moran_measured, ssim and share_of_ceiling): there it is left out.

    Returns
    -------
    Columns model, metric, fold, value, n_nan: `n_nan` genes had no defined value.
    """
    rows = []
    for (model, metric, fold), part in table.groupby(["model", "metric", "fold"], sort=False):
        groups = [group["value"].to_numpy(float) for _, group in part.groupby(["section", "seed"])]
        means = [_mean(values, leave_out=metric in LEFT_OUT) for values in groups]
        failed = bool((part["error"] != "").all())
        defined = [mean for mean in means if not np.isnan(mean)]
        value = float("nan") if failed or not defined else float(np.mean(defined))
        rows.append((model, metric, fold, value, sum(int(np.isnan(values).sum()) for values in groups)))
    return pd.DataFrame(rows, columns=["model", "metric", "fold", "value", "n_nan"])


def _mean(values: np.ndarray, *, leave_out: bool) -> float:
    """Mean over genes; NaN where all of them are left out."""
    if not leave_out:
        return mean_with_nan_as_zero(values).mean
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def _jobs(plan: Plan) -> Iterable[Job]:
    for fold, panel, train, test in plan.parts():
        for name, estimator in plan.models.items():
            for seed in plan.seeds:
                yield Job(fold, train, test, panel, name, estimator.clone(seed=seed), plan.missing)


def _ceilings(plan: Plan, fold: Fold, panel: Panel, train: list[AnnData], test: list[AnnData]) -> pd.DataFrame:
    """Rows of the noise ceilings of a fold's held-out sections."""
    rows = [ceiling_rows(section, panel, plan.normalize, plan.missing) for section in test]
    return pd.concat(rows, ignore_index=True).assign(fold=fold.name, shares=fold.shares)


def _score(job: Job, keeper: Keeper) -> pd.DataFrame:
    fitted = job.estimator.fit(job.train, panel=job.panel, missing=job.missing)
    keeper.model(fitted)
    measure = partial(panel_log1p, panel=job.panel, normalize=fitted.normalize, missing=job.missing)
    measured_train = [measure(section) for section in job.train]
    baseline = np.concatenate(measured_train).mean(axis=0, dtype=np.float64)
    rows, found = [], _Found()
    for section in job.test:
        measured = measure(section)
        for model, predicted in _predictions(job.model, fitted, section).items():
            if isinstance(predicted, HistoflowError):
                rows.append(_failed(job.panel, section, model, str(predicted)))
                continue
            rows.append(score(measured, predicted, baseline, section).assign(model=model))
            found.add(model, measured, predicted)
            keeper.prediction(predicted, measured, section=section, model=model)
    return pd.concat([*rows, *found.pooled(job.panel)], ignore_index=True)


class _Found:
    """What a fold's models predicted of its sections, for the figures of all its spots together."""

    def __init__(self) -> None:
        self._of_model: dict[str, list[tuple[np.ndarray, AnnData]]] = {}

    def add(self, model: str, measured: np.ndarray, predicted: AnnData) -> None:
        """Take one section's measured expression (n_spots, n_genes) and the prediction of it."""
        self._of_model.setdefault(model, []).append((measured, predicted))

    def pooled(self, panel: Panel) -> Iterable[pd.DataFrame]:
        """Rows of each model over all sections."""
        for model, pairs in self._of_model.items():
            measured, predicted = zip(*pairs, strict=True)
            yield pooled(measured, predicted, panel.genes).assign(model=model)


def _predictions(name: str, fitted: Estimator, section: AnnData) -> dict[str, AnnData | HistoflowError]:
    """Predictions by model name; an estimator that has no meaning here gives its reason instead."""
    if isinstance(fitted, LocationBaseline):
        try:
            return {name: fitted.predict(section)}
        except SplitError as err:
            return {name: err}
    found: dict[str, AnnData | HistoflowError] = {name: fitted.predict(section)}
    if isinstance(fitted, LibrarySizeBaseline):
        oracle = fitted.predict_given_totals(section, library_size(section))
        found[true_totals_name(name)] = oracle
    return found


def _failed(panel: Panel, section: AnnData, model: str, reason: str) -> pd.DataFrame:
    rows = pd.DataFrame({"gene": list(panel.genes)}).assign(metric="pearson", value=np.nan)
    return rows.assign(section=section_name(section), model=model, error=reason)
