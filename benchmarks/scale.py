"""Memory and time of predicting many tiles into a zarr: `python benchmarks/scale.py --tiles 10000 100000 1000000`.

Tiles lie on a square grid, their embeddings, as wide as those of `scatter`, are invented block by block into a file
that is memory-mapped. The flow with its default recipe, calibrated, and the ridge, calibrated, are fitted on invented
sections, for one epoch: what a prediction costs does not depend on them. Each prediction runs in a process of its own,
whose peak of resident memory, mapped pages of files included, is what is told. One line of JSON a run; with `--json`,
one line for all. `--wide` predicts so many genes on 20,000 tiles besides.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from anndata import AnnData
from scipy import sparse

from histoflow import models, workflow
from histoflow._keys import EMBEDDINGS, UNS

FEATURES, SPOTS, SECTIONS, PITCH_UM, BLOCK = 990, 200, 3, 112.0, 1 << 14
WIDE_TILES = 20_000
QUICK = {"max_epochs": 1, "n_searches": 1, "crops_per_section": 1, "max_crop_spots": 128}
"""Training that takes seconds."""
MADE = {
    "id": "0" * 12,
    "name": "scatter",
    "n_features": 99,
    "patch_um": [112.0, 224.0],
    "context_um": [125.0, 250.0, 500.0, 1000.0],
}


def places(n_places: int) -> np.ndarray:
    """Centres of a square grid, row by row, (n_places, 2), x, y in µm."""
    side = int(np.ceil(np.sqrt(n_places)))
    return np.stack(np.divmod(np.arange(n_places), side)[::-1], axis=1) * PITCH_UM


def features(n_places: int, seed: int) -> np.ndarray:
    """Correlated features, (n_places, FEATURES), float32."""
    axes = np.random.default_rng(0).standard_normal((100, FEATURES), dtype=np.float32) / 10
    rng = np.random.default_rng(seed)
    found = rng.standard_normal((n_places, 100), dtype=np.float32) @ axes
    found += rng.standard_normal((n_places, FEATURES), dtype=np.float32) / 2
    return found


def facts(name: str) -> dict:
    return {"section": name, "slide_id": name, "pitch_um": PITCH_UM, EMBEDDINGS: {"scatter": MADE}}


def section(name: str, seed: int, n_genes: int) -> AnnData:
    """A training section whose counts follow its features."""
    x = features(SPOTS, seed)
    weights = np.random.default_rng(1).standard_normal((FEATURES, n_genes), dtype=np.float32) / FEATURES**0.5
    counts = np.random.default_rng(seed).poisson(np.exp(1 + x @ weights / 2)).astype(np.float32)
    made = AnnData(sparse.csr_matrix(counts), obsm={"scatter": x, "spatial_um": places(SPOTS)}, uns={UNS: facts(name)})
    made.var_names, made.obs_names = [f"G{i}" for i in range(n_genes)], [f"{name}-{i}" for i in range(SPOTS)]
    return made


def fit(kind: str, n_genes: int, out: Path) -> None:
    """Fit a model and save it."""
    sections = [section(f"S{seed}", seed, n_genes) for seed in range(SECTIONS)]
    made = models.STFlow(training=replace(models.STFlow().training, **QUICK))
    estimator = models.Calibrated({"stflow": made, "hest_fm": models.RidgeProbe()}[kind])
    estimator.fit(sections, panel=sections[0].var_names.tolist()).save(out)


def invent(path: Path, n_tiles: int) -> None:
    """Write embeddings block by block."""
    stored = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n_tiles, FEATURES))
    for start in range(0, n_tiles, BLOCK):
        part = stored[start : start + BLOCK]
        part[:] = features(len(part), 1000 + start)


def predict(model: Path, embedding: Path, out: Path, samples: int) -> dict:
    """Predict and write, in this process."""
    mapped = np.load(embedding, mmap_mode="r")
    tiles = AnnData(shape=(len(mapped), 0), obsm={"spatial_um": places(len(mapped))}, uns={UNS: facts("tiles")})
    tiles.obs_names = [f"tile_{i}" for i in range(len(mapped))]
    tiles.obsm["scatter"] = mapped
    fitted = models.load(model)
    wall, processor = time.perf_counter(), time.process_time()
    n_tiles, n_genes = workflow.predict_to_file(fitted, tiles, out, n_samples=samples)
    told = {"tiles": n_tiles, "genes": n_genes, "seconds": round(time.perf_counter() - wall, 1)}
    told |= {"cpu_seconds": round(time.process_time() - processor, 1)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return told | {"peak_rss_gb": round(peak, 2)}


def in_process(*arguments: object) -> str:
    return subprocess.run(
        [sys.executable, __file__, *map(str, arguments)], check=True, capture_output=True, text=True
    ).stdout


def measured(kind: str, n_genes: int, sizes: list[int], given: argparse.Namespace, folder: Path) -> list[dict]:
    """One kind of model at each size, tiles per processor second at the last."""
    model = folder / f"{kind}-{n_genes}"
    in_process("--fit", model, "--kind", kind, "--genes", n_genes)
    told = []
    for n_tiles in sizes:
        embedding, out = folder / f"{n_tiles}.npy", folder / "out.zarr"
        if not embedding.exists():
            in_process("--invent", embedding, "--tiles", n_tiles)
        line = in_process("--predict", model, embedding, out, "--samples", given.samples, "--threads", given.threads)
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e9
        told.append({"model": kind, **json.loads(line), "written_gb": round(size, 2)})
        if not given.json:
            print(json.dumps(told[-1]), flush=True)
    return told


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiles", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--genes", type=int, default=50)
    parser.add_argument("--wide", type=int, default=20_000, help="Genes on 20,000 tiles; 0 to leave it out.")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kind", nargs="+", default=["stflow", "hest_fm"])
    parser.add_argument("--folder", type=Path, help="For what is invented and written; it may take 20 GB.")
    parser.add_argument("--json", action="store_true")
    for hidden in ("--fit", "--invent"):
        parser.add_argument(hidden, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--predict", type=Path, nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(given.threads)
    if given.fit:
        fit(given.kind[0], given.genes, given.fit)
    elif given.invent:
        invent(given.invent, given.tiles[0])
    elif given.predict:
        print(json.dumps(predict(*given.predict, given.samples)))
    else:
        with TemporaryDirectory(dir=given.folder) as folder:
            told = [one for kind in given.kind for one in measured(kind, given.genes, given.tiles, given, Path(folder))]
            if given.wide:
                told += measured("hest_fm", given.wide, [WIDE_TILES], given, Path(folder))
        if given.json:
            print(json.dumps({"samples": given.samples, "threads": given.threads, "runs": told}))


if __name__ == "__main__":
    main()
