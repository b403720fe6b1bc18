"""The HEST-Benchmark: models on the folds of its tasks, and the table that its leaderboard shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from histoflow._errors import OptionError
from histoflow._keys import section_name
from histoflow._progress import track
from histoflow.bench.parts import Job, Keeper
from histoflow.models import Estimator, RidgeProbe, STFlow
from histoflow.pp.expression import Panel, panel_log1p
from histoflow.stats.metrics import mean_with_nan_as_zero, pearson
from histoflow.stats.splits import Fold

HEST_COLUMNS = ("task", "fold", "shares", "section", "model", "seed", "gene", "metric", "value", "error")
POOLED, OF_SECTION = "pooled_pearson", "pearson"

_SHARES = "the benchmark's own split: whole samples, patients not stated"
_FM_HEST, _FM_GROUPED = "hest_fm-hest", "hest_fm-grouped-cv"
_OFFERED = {
    "hest_fm": (_FM_HEST, _FM_GROUPED),
    _FM_HEST: (_FM_HEST,),
    _FM_GROUPED: (_FM_GROUPED,),
    "stflow": ("stflow",),
}


def hest_models(names: Sequence[str] = ("hest_fm", "stflow"), *, encoder: str, seed: int = 0) -> dict[str, Estimator]:
    """Return the estimators of a benchmark's table, on its scale, log1p of raw counts.

    Parameters
    ----------
    names
        ``"stflow"``, ``"hest_fm-hest"``, ``"hest_fm-grouped-cv"``, or ``"hest_fm"`` for both protocols.
    encoder
        ``obsm`` slot of the embeddings.
    seed
        The only source of randomness.

    Raises
    ------
    OptionError
        If a name is not offered.
    """
    if unknown := [name for name in names if name not in _OFFERED]:
        raise OptionError(f"models has {', '.join(unknown)}; choose from {', '.join(_OFFERED)}")
    about = {"encoder": encoder, "normalize": "none", "seed": seed}
    made: dict[str, Estimator] = {
        _FM_HEST: RidgeProbe.from_options({"protocol": "hest", **about}),
        _FM_GROUPED: RidgeProbe.from_options({"protocol": "grouped-cv", **about}),
        "stflow": STFlow.from_options(about),
    }
    return {model: made[model] for name in names for model in _OFFERED[name]}


def run_hest_task(
    task: str,
    sections: Mapping[str, AnnData],
    folds: Sequence[tuple[Sequence[str], Sequence[str]]],
    *,
    panel: Panel,
    models: Mapping[str, Estimator],
    seed: int = 0,
    out: str | Path | None = None,
) -> pd.DataFrame:
    """Fit every model on the training samples of every fold of a task, and score it on the test samples.

    Parameters
    ----------
    task
        Its name, for the table.
    sections
        Embedded samples by id, X raw counts of at least the panel's genes.
    folds
        Ids of training and test samples, fold by fold.
    panel
        The task's genes.
    models
        Estimators by the name they have in the table, not fitted; their scale becomes log1p of raw counts.
    seed
        Seed of the estimators.
    out
        Folder for fitted models, predictions, and finished parts (a model on a fold) that a later run takes up; None
        for none.

    Returns
    -------
    One row per fold, section, model, gene and metric, in the columns of `HEST_COLUMNS`. Metric pearson: over the spots
    of one test section. Metric pooled_pearson, section empty: the benchmark's, over the spots of all test sections of
    the fold together; NaN where measured or predicted expression is constant.
    """
    jobs = [
        Job(
            Fold(f"{task}-{number}", (), (), _SHARES),
            [sections[sample] for sample in train],
            [sections[sample] for sample in test],
            panel,
            name,
            estimator.clone(normalize="none", seed=seed),
        )
        for number, (train, test) in enumerate(folds)
        for name, estimator in models.items()
    ]
    folder = None if out is None else Path(out)
    parts = [Keeper(job, folder).rows(_score) for job in track(jobs, f"task {task}")]
    return pd.concat(parts, ignore_index=True).assign(task=task)[list(HEST_COLUMNS)]


def _score(job: Job, keeper: Keeper) -> pd.DataFrame:
    fitted = job.estimator.fit(job.train, panel=job.panel)
    keeper.model(fitted)
    measured = [panel_log1p(section, job.panel, "none") for section in job.test]
    predicted = [fitted.predict(section) for section in job.test]
    rows = []
    for section, truth, guess in zip(job.test, measured, predicted, strict=True):
        keeper.prediction(guess, truth, section=section, model=job.model)
        rows.append(_rows(job, section_name(section), OF_SECTION, truth, np.asarray(guess.X)))
    together = np.concatenate(measured), np.concatenate([np.asarray(guess.X) for guess in predicted])
    return pd.concat([*rows, _rows(job, "", POOLED, *together)], ignore_index=True)


def _rows(job: Job, section: str, metric: str, measured: np.ndarray, predicted: np.ndarray) -> pd.DataFrame:
    values = {"gene": list(job.panel.genes), "value": pearson(measured, predicted)}
    return pd.DataFrame(values).assign(section=section, metric=metric, model=job.model, error="")


def hest_leaderboard(table: pd.DataFrame) -> pd.DataFrame:
    """Average as the benchmark's leaderboard does: over genes, over folds, then over tasks, each with one weight.

    A gene without a defined correlation makes the mean of its fold NaN there, and with it the task and the average; the
    same with such genes counted as 0 stands beside it, and so does the mean over single sections.

    Parameters
    ----------
    table
        From `run_hest_task`, of one task or of several below each other.

    Returns
    -------
    One row per model: `model`, one column per task, their `average`, `average_nan_as_0`, `n_nan` (genes without a
    correlation, summed over folds), and `per_section`, the mean r over the genes (NaN as 0) of each test section, over
    the sections of a task, then over tasks.
    """
    return pd.DataFrame([_line(str(name), rows) for name, rows in table.groupby("model", sort=False)])


def _line(model: str, rows: pd.DataFrame) -> dict[str, object]:
    pooled, of_section = rows[rows["metric"] == POOLED], rows[rows["metric"] == OF_SECTION]
    by_task = {str(task): _over_folds(part, False) for task, part in pooled.groupby("task", sort=False)}
    return {
        "model": model,
        **by_task,
        "average": float(np.mean(list(by_task.values()))),
        "average_nan_as_0": _over_tasks(pooled),
        "n_nan": int(pooled["value"].isna().sum()),
        "per_section": _over_tasks(of_section),
    }


def _over_tasks(rows: pd.DataFrame) -> float:
    return float(np.mean([_over_folds(part, True) for _, part in rows.groupby("task", sort=False)]))


def _over_folds(rows: pd.DataFrame, nan_as_zero: bool) -> float:
    """Mean over genes, then over the folds, or the sections of them, of one task."""
    groups = [part["value"].to_numpy(float) for _, part in rows.groupby(["fold", "section"], sort=False)]
    return float(np.mean([mean_with_nan_as_zero(g).mean if nan_as_zero else g.mean() for g in groups]))
