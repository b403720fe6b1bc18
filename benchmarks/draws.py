"""Whether a draw looks like tissue: `python benchmarks/draws.py DATA OUT`.

Sections C2–C5 of HER2ST, one left out, as in `heldout.py`, by the flow that this script fits, or that `heldout.py`
fitted in the same folder. Of every held-out section, Moran's I of every gene and the correlation of every gene pair:
measured; in single draws; in the mean of the draws; and in that mean with independent normal noise of the draws' own
variance for every spot and gene. Told are the mean absolute differences from what was measured; and how the error of
the sum over a region follows the spread of that sum over the draws, regions being squares of three by three spots.
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from anndata import AnnData
from heldout import MIN_COUNTS, write_manifest

from histoflow import bench, io, models, workflow
from histoflow._errors import HistoflowWarning
from histoflow._keys import SPATIAL_UM, STD, UNS, facts, section_name
from histoflow.pp.expression import keep_spots, panel_log1p
from histoflow.pp.graph import neighbors
from histoflow.stats.metrics import moran

N_DRAWS, REGION_PITCHES = 32, 3.0


def structure(section: AnnData, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Moran's I of every gene, and the correlation of every pair, of expression (n_spots, n_genes)."""
    graph = neighbors(section.obsm[SPATIAL_UM], 4)
    correlation = np.corrcoef(values, rowvar=False)
    return moran(values, graph.index, graph.mask), correlation[np.triu_indices(len(correlation), 1)]


def away(measured: tuple[np.ndarray, ...], found: tuple[np.ndarray, ...]) -> list[float]:
    """Mean absolute difference of both."""
    return [float(np.nanmean(np.abs(a - b))) for a, b in zip(measured, found, strict=True)]


def regions(section: AnnData) -> list[np.ndarray]:
    """Rows of spots in squares of three by three pitches."""
    square = np.floor(section.obsm[SPATIAL_UM] / (REGION_PITCHES * float(facts(section)["pitch_um"]))).astype(int)
    _, of = np.unique(square, axis=0, return_inverse=True)
    return [np.flatnonzero(of.ravel() == number) for number in range(of.max() + 1)]


def of_section(model: models.Estimator, section: AnnData) -> dict[str, object]:
    """Every comparison for one held-out section."""
    predicted = model.predict(section, n_samples=N_DRAWS, return_samples=True)
    draws, mean = np.asarray(predicted.uns[UNS]["samples"]), np.asarray(predicted.X)
    measured = panel_log1p(section, model.panel_, model.normalize)
    noise = np.random.default_rng(0).normal(size=draws.shape) * np.asarray(predicted.layers[STD])
    truth = structure(section, measured)
    told: dict[str, object] = {
        "draw": np.mean([away(truth, structure(section, draw)) for draw in draws], axis=0).round(4).tolist(),
        "mean": np.round(away(truth, structure(section, mean)), 4).tolist(),
        "mean and independent noise": np.mean([away(truth, structure(section, mean + one)) for one in noise], axis=0)
        .round(4)
        .tolist(),
    }
    rows = regions(section)
    error = np.stack([(measured[own] - mean[own]).sum(axis=0) for own in rows])
    spread = {"draws": draws, "independent noise": mean + noise}
    told["region: root mean square of error over spread"] = {
        name: round(
            float(np.sqrt(np.mean((error / np.stack([d[:, own].sum(1).std(0, ddof=1) for own in rows])) ** 2))), 3
        )
        for name, d in spread.items()
    }
    return told


def main(data: Path, out: Path) -> None:
    """Write every figure to OUT/draws.json, and print it."""
    warnings.simplefilter("ignore", HistoflowWarning)
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    sections = list(io.read_cohort(write_manifest(data, out)))
    workflow.embed_for(sections, [models.STFlow()])
    bench.run(sections, models={"stflow": models.STFlow()}, min_counts=MIN_COUNTS, out=out / "library")
    told = {}
    for section in sections:
        kept, name = keep_spots(section, min_counts=MIN_COUNTS), section_name(section)
        told[name] = of_section(models.load(bench.model_path(out / "library", fold=name, model="stflow")), kept)
        print(name, json.dumps(told[name]), flush=True)
    (out / "draws.json").write_text(json.dumps(told, indent=2))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
