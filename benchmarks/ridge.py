"""One ridge strength for a whole transcriptome, beside scikit-learn's grid search: `python benchmarks/ridge.py`.

Prints one line of JSON: seconds of wall clock and of processor, peak memory and the strength chosen on each side, and
ratios. Each side runs in a process of its own, ours before and after scikit-learn's; threads are those of
OMP_NUM_THREADS. With `--sklearn-genes` scikit-learn is timed on so many genes and on half of them, and its time on all
of them follows from both.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from histoflow.models.inner import InnerFolds
from histoflow.models.ridge_folds import fit_grouped_ridge

ALPHAS = np.logspace(0, 6, 13)
N_FOLDS, N_FACTORS, NOISE = 5, 30, 3.0


def data(n_spots: int, n_features: int, n_genes: int) -> tuple[np.ndarray, np.ndarray]:
    """Correlated features of five sections that differ a little, and genes that follow some of them; float32."""
    rng = np.random.default_rng(0)
    factors = rng.standard_normal((n_spots, N_FACTORS), dtype=np.float32)
    factors += rng.standard_normal((N_FOLDS, N_FACTORS), dtype=np.float32)[np.arange(n_spots) % N_FOLDS] / 2
    x = factors @ rng.standard_normal((N_FACTORS, n_features), dtype=np.float32)
    x += 2 * rng.standard_normal(x.shape, dtype=np.float32)
    y = rng.standard_normal((n_spots, n_genes), dtype=np.float32)
    y *= NOISE
    y += factors @ rng.standard_normal((N_FACTORS, n_genes), dtype=np.float32)
    return x, y


def folds(n_spots: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Whole sections."""
    section = np.arange(n_spots) % N_FOLDS
    return [(np.flatnonzero(section != k), np.flatnonzero(section == k)) for k in range(N_FOLDS)]


def ours(x: np.ndarray, y: np.ndarray) -> float:
    _, report = fit_grouped_ridge(x, y, InnerFolds("sections", tuple(folds(len(x)))), alphas=ALPHAS)
    return float(report["alpha"])


def sklearn(x: np.ndarray, y: np.ndarray) -> float:
    grid = {"ridge__alpha": ALPHAS}
    search = GridSearchCV(make_pipeline(StandardScaler(), Ridge()), grid, cv=folds(len(x)), n_jobs=1)
    return float(search.fit(x, y).best_params_["ridge__alpha"])


def run(side: str, sizes: tuple[int, int, int]) -> dict[str, float]:
    """One side, in this process."""
    x, y = data(*sizes)
    wall, processor = time.perf_counter(), time.process_time()
    alpha = {"ours": ours, "sklearn": sklearn}[side](x, y)
    told = {"alpha": alpha, "seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - processor}
    return told | {"peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}


def in_process(side: str, spots: int, features: int, genes: int) -> dict[str, float]:
    """One side, in a process of its own."""
    sizes = ["--spots", str(spots), "--features", str(features), "--genes", str(genes)]
    command = [sys.executable, __file__, "--side", side, *sizes]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def scaled(half: dict[str, float], part: dict[str, float], factor: float) -> dict[str, float]:
    """What all genes would take, of which `part` were 1 / `factor`: what does not grow with them is taken once."""
    times = {key: half[key] + (part[key] - half[key]) * (2 * factor - 1) for key in ("seconds", "cpu_seconds")}
    return part | times | {"scaled": True}


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in {"spots": 4000, "features": 1536, "genes": 20_000, "sklearn-genes": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--side", choices=["ours", "sklearn"])
    given = parser.parse_args()
    sizes = given.spots, given.features
    if given.side:
        print(json.dumps(run(given.side, (*sizes, given.genes))))
        return
    timed = given.sklearn_genes or given.genes
    before = in_process("ours", *sizes, given.genes)
    theirs = in_process("sklearn", *sizes, timed)
    if timed < given.genes:
        theirs = scaled(in_process("sklearn", *sizes, timed // 2), theirs, given.genes / timed)
    after = in_process("ours", *sizes, given.genes)
    mean = before | {key: (before[key] + after[key]) / 2 for key in ("seconds", "cpu_seconds")}
    ratios = {f"ratio_of_{key}": round(theirs[key] / mean[key], 1) for key in ("seconds", "cpu_seconds")}
    told = {"spots": given.spots, "features": given.features, "genes": given.genes, "alphas": len(ALPHAS)}
    print(json.dumps(told | {"ours": mean, "sklearn": theirs, "same_alpha": mean["alpha"] == theirs["alpha"]} | ratios))


if __name__ == "__main__":
    main()
