"""The whole story on one data set: fit, score on a held-out section, predict a slide without counts, report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from histoflow import bench, datasets, io, models, pl
from histoflow._errors import OptionError
from histoflow._files import write_h5ad
from histoflow._keys import SPATIAL_UM, facts
from histoflow.workflow.cohorts import predict_slide
from histoflow.workflow.evaluation import LEVEL, N_SHOWN, evaluate, slide_thumbnail
from histoflow.workflow.reports import report

_DEMO_TRAINING: dict[str, Any] = {"max_epochs": 10, "n_members": 1, "n_searches": 1, "learning_rate": 1e-3}
"""Enough to see what the flow finds in three minutes on two cores; a real fit takes more."""


def demo(out: str | Path, *, dataset: str = "toy", seed: int = 0) -> dict[str, Any]:
    """Tell the whole story: fit, score on a held-out section, load, predict a slide without counts if there is one.

    Parameters
    ----------
    out
        Folder of models, predictions, table, figures and reports.
    dataset
        ``"toy"``, built in; ``"her2st"`` or ``"breast"``, public sections fetched on request, the last one held out.
    seed
        Of the toy cohort and of the estimators.

    Returns
    -------
    Where everything is, reports by what they are of, and the mean r of every model on the held-out section.

    Raises
    ------
    OptionError
        If the data set is not offered.
    ReadError
        If it cannot be fetched.
    MissingDependencyError
        If the libraries of the report are not installed.
    """
    bench.check_library()  # before minutes of work
    folder = Path(out)
    cohort = _demo_cohort(dataset, seed)
    estimators = bench.default_models(level=LEVEL)
    quick = models.STFlow(training=models.Training(**_DEMO_TRAINING), seed=seed)
    estimators["stflow"] = models.Calibrated(quick, LEVEL)
    table = evaluate(cohort, folder, estimators=estimators, seeds=(seed,))
    saved = bench.model_path(folder, fold=str(table["fold"].iloc[0]), model="stflow", seed=seed)
    reports = {"evaluation": report(folder, folder / "report.html")}
    for query in cohort.queries:
        _draw_query(models.load(saved), query, folder)
        reports[query.section] = report(folder / f"{query.section}.h5ad", folder / f"{query.section}.html")
    scores = bench.summary(table)
    of_r = scores[scores["metric"] == "pearson"].set_index("model")["value"].dropna()
    told = {"out": str(folder), "model": str(saved), "figures": str(folder / "figures"), "mean_r": of_r.to_dict()}
    return told | {"reports": {name: str(path) for name, path in reports.items()}}


def _demo_cohort(dataset: str, seed: int) -> io.Cohort:
    if dataset == "toy":
        return datasets.toy(seed=seed)
    if dataset not in ("her2st", "breast"):
        raise OptionError(f"dataset must be toy, her2st or breast, got {dataset!r}")
    rows = (datasets.her2st() if dataset == "her2st" else datasets.breast()).rows
    return io.Cohort([*rows[:-1], replace(rows[-1], role="held_out")], name=dataset)


def _draw_query(model: models.Estimator, query: io.Row, folder: Path) -> Path:
    """Predict a slide without counts, and draw some genes on its tissue."""
    wsi = io.open_wsi(str(query.slide), mpp=query.mpp)
    predicted = predict_slide(model, wsi)
    write_h5ad(predicted, folder / f"{query.section}.h5ad")
    genes = list(predicted.var_names[:N_SHOWN])
    about: dict[str, Any] = {"genes": genes, "scale_label": str(facts(predicted)["scale"])}
    expression, xy_um = np.asarray(predicted[:, genes].X), predicted.obsm[SPATIAL_UM]
    of_query = pl.expression_map(expression, xy_um, thumbnail=slide_thumbnail(wsi), **about)
    return pl.save(of_query, folder / "figures" / f"{query.section}-predicted.png")
