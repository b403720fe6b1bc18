"""Super-resolution against the truth: `python benchmarks/subspot_toy.py OUT`.

In the toy cohort the rate of every gene at every 8 µm is known. A model of 50 genes learns from the spots of the three
reference sections and resolves the held-out one, from its slide alone and with its counts. Prints Pearson r between
what is drawn and the true share of the rate, over the super-pixels on tissue, as the mean over the genes of the panel
that anything drives, and of the panel as a whole. OUT gets the cohort and the figures.
"""

import json
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from anndata import AnnData

from histoflow import datasets, io, workflow
from histoflow._errors import HistoflowWarning
from histoflow.stats.metrics import mean_with_nan_as_zero, pearson

HELD_OUT, N_GENES = "P2_B", 50


def against_truth(cells: AnnData, truth: datasets.ToyTruth) -> dict[str, float]:
    """Mean r over the driven genes of the panel, and over all of them."""
    rate = np.exp(truth.log_rate(HELD_OUT))
    rows, columns = np.array([name.split("x") for name in cells.obs_names], dtype=int).T
    inside = (rows < rate.shape[1]) & (columns < rate.shape[2])
    rows, columns = rows[inside], columns[inside]
    on_tissue = truth.tissue[HELD_OUT][rows, columns]
    share = rate[:, rows[on_tissue], columns[on_tissue]] / rate[:, rows[on_tissue], columns[on_tissue]].sum(axis=0)
    genes = [truth.drivers.index.get_loc(gene) for gene in cells.var_names]
    r = pearson(share[genes].T, np.asarray(cells.X)[inside][on_tissue])
    driven = (truth.drivers["driver"].iloc[genes] != "nothing").to_numpy()
    told = {"driven": mean_with_nan_as_zero(r[driven]).mean, "all": mean_with_nan_as_zero(r).mean}
    return {name: round(float(value), 4) for name, value in told.items()} | {"n_driven": int(driven.sum())}


def main(out: Path) -> None:
    """Print and write both figures."""
    warnings.simplefilter("ignore", HistoflowWarning)
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    cohort, truth = datasets.toy(out / "toy"), datasets.toy_truth(out / "toy")
    model = workflow.fit(cohort, model="istar", panel=N_GENES)
    (section,) = cohort.select(sections=[HELD_OUT])
    resolved = {
        "slide alone": workflow.super_resolve(io.open_section_slide(section), model=model),
        "with its counts": workflow.super_resolve(section, model=model),
    }
    told = {name: against_truth(cells, truth) for name, cells in resolved.items()}
    told |= {"minutes": round((time.perf_counter() - start) / 60, 1)}
    (out / "subspot_toy.json").write_text(json.dumps(told, indent=2))
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
