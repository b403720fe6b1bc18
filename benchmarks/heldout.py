"""The held-out figures of the README, from the real sections: `python benchmarks/heldout.py DATA OUT`.

DATA is the folder of the real sections, OUT gets tables, models, predictions and figures; a second run takes up what
is finished. Leave one section out on both scales, then three controls: shuffled counts, one reference alone, and
a slide without counts against its spots.
"""

import csv
import json
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from anndata import AnnData
from scipy.interpolate import griddata

from histoflow import bench, io, models, workflow
from histoflow._errors import HistoflowWarning
from histoflow._keys import SPATIAL_UM
from histoflow.pp import choose_panel
from histoflow.pp.expression import keep_spots, panel_log1p
from histoflow.stats.metrics import mean_with_nan_as_zero, mse_skill, pearson

SLIDES = {"C2": "5714_HE_BT_C2.jpg", "C3": "5714_HE_BT_D1.jpg", "C4": "5714_HE_BT_D2.jpg", "C5": "5714_HE_BT_E1.jpg"}
MIN_COUNTS, N_SHUFFLES = 500, 20


def write_manifest(data: Path, out: Path) -> Path:
    """The four serial sections of patient C as a cohort."""
    path = out / "cohort.csv"
    with path.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["section", "patient", "block", "order", "kind", "slide", "counts", "spots"])
        for order, (section, slide) in enumerate(SLIDES.items(), start=1):
            folder = (data / "her2st" / section).resolve()
            files = [folder / name for name in (slide, "counts.tsv.gz", "spots_selection.tsv")]
            writer.writerow([section, "C", "C", order, "st", *files])
    return path


def leave_one_out(cohort: io.Cohort, out: Path, normalize: str) -> dict[str, object]:
    """Mean over folds of the mean over genes, by model and metric; and how long it took."""
    start = time.perf_counter()
    table = workflow.evaluate(cohort, out / normalize, normalize=normalize, min_counts=MIN_COUNTS)
    scores = bench.summary(table)
    mean = scores.pivot_table(index="model", columns="metric", values="value", sort=False)
    by_fold = scores[scores["metric"] == "pearson"].pivot_table(index="model", columns="fold", values="value")
    told = {"mean": mean.round(4).to_dict("index"), "r_by_fold": by_fold.round(4).to_dict("index")}
    return told | {"minutes": round((time.perf_counter() - start) / 60, 1)}


def shuffled(sections: list[AnnData], estimator: models.Estimator, seed: int) -> tuple[float, float]:
    """Mean r and MSE skill over folds on real counts after training on counts shuffled between spots."""
    scores = []
    for place, test in enumerate(sections):
        train = [bench.shuffle_counts(s, seed) for i, s in enumerate(sections) if i != place]
        panel = choose_panel(train)
        predicted = estimator.clone(seed=seed).fit(train, panel=panel).predict(test).X
        measured = panel_log1p(test, panel, "library")
        mean = np.concatenate([panel_log1p(s, panel, "library") for s in train]).mean(axis=0)
        metrics = pearson(measured, predicted), mse_skill(measured, predicted, baseline=mean)
        scores.append([mean_with_nan_as_zero(metric).mean for metric in metrics])
    r, skill = np.mean(scores, axis=0)
    return float(r), float(skill)


def one_reference(sections: list[AnnData]) -> dict[str, object]:
    """C2 alone as reference, C3 predicted."""
    reference, query = sections[:2]
    told: dict[str, object] = {}
    for estimator in (models.RidgeProbe(), models.STFlow()):
        panel = choose_panel([reference])
        predicted = estimator.fit([reference], panel=panel).predict(query)
        r = pearson(panel_log1p(query, panel, "library"), predicted.X)
        told[estimator.name] = {
            "r": round(mean_with_nan_as_zero(r).mean, 4),
            "inner_folds": estimator.training_["inner_folds"],
        }
    return told


def slide_against_spots(cohort: io.Cohort, out: Path) -> dict[str, object]:
    """The saved models of the fold C5: the bare jpg, interpolated to the spots, beside the spots themselves."""
    section = cohort.select(sections=["C5"])[0]
    mpp = float(section.uns["histoflow"]["mpp_x"]), float(section.uns["histoflow"]["mpp_y"])
    told: dict[str, object] = {}
    for name in ("hest_fm", "stflow"):
        model = models.load(bench.model_path(out / "library", fold="C5", model=name))
        at_spots = workflow.predict_section(model, section)
        at_tiles = workflow.predict_slide(model, io.open_wsi(cohort.rows[3].slide, mpp=mpp))
        there = griddata(at_tiles.obsm[SPATIAL_UM], at_tiles.X, section.obsm[SPATIAL_UM])
        inside = np.isfinite(there).all(axis=1)
        r = pearson(at_spots.X[inside], there[inside])
        told[name] = {
            "spots_inside": f"{inside.sum()} of {len(inside)}",
            "median_r": round(float(np.median(r)), 4),
            "least_r": round(float(r.min()), 4),
        }
    return told


def main(data: Path, out: Path) -> None:
    """Write every figure to OUT/figures.json."""
    warnings.simplefilter("ignore", HistoflowWarning)
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    cohort = io.read_cohort(write_manifest(data, out))
    told: dict[str, object] = {normalize: leave_one_out(cohort, out, normalize) for normalize in ("library", "none")}
    kept = [keep_spots(section, min_counts=MIN_COUNTS) for section in cohort]
    told["one_reference"] = one_reference(kept)
    told["slide_against_spots"] = slide_against_spots(cohort, out)
    ridge = np.array([shuffled(kept, models.RidgeProbe(), seed) for seed in range(N_SHUFFLES)])
    told["shuffled_hest_fm"] = {
        "mean_r": float(ridge[:, 0].mean()),
        "sd_of_r": float(ridge[:, 0].std()),
        "most_skill": float(ridge[:, 1].max()),
    }
    told["shuffled_stflow"] = dict(zip(("r", "skill"), shuffled(kept, models.STFlow(), 0), strict=True))
    (out / "figures.json").write_text(json.dumps(told, indent=2))
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
