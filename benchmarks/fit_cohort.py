"""Fit of the four sections of patient C to the final calibrated model, embeddings cached, and its memory.

`python benchmarks/fit_cohort.py DATA [--threads 2]`, DATA the folder of the real sections. Embeddings are made first,
in a process of its own, unless the cache has them. Then `workflow.fit` runs once in a fresh process with the options of
`histoflow fit`: it reads sections and embeddings, chooses the panel of 50 genes, fits, cross-fits and calibrates the
flow. One line of JSON: seconds of wall clock and of processor up to the saved model, imports left out, and peak memory.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from heldout import write_manifest

from histoflow import io, workflow


def embed(folder: Path, data: Path) -> None:
    """Make the embeddings, or find them in the cache."""
    workflow.embed(list(io.read_cohort(write_manifest(data, folder))))


def fit(folder: Path, data: Path, model: str) -> dict:
    """Fit and save, in this process."""
    wall, processor = time.perf_counter(), time.process_time()
    fitted = workflow.fit(io.read_cohort(write_manifest(data, folder)), model=model)
    fitted.save(folder / "model")
    told = {"seconds": round(time.perf_counter() - wall, 1), "cpu_seconds": round(time.process_time() - processor, 1)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return told | {"peak_gb": round(peak, 2), "n_spots": sum(fitted.training_["n_spots"])}


def in_process(task: str, given: argparse.Namespace, folder: Path) -> str:
    command = [sys.executable, __file__, given.data, "--task", task, "--folder", folder, "--model", given.model]
    command += ["--threads", str(given.threads)]
    environment = os.environ | {"OMP_NUM_THREADS": str(given.threads)}
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="stflow")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="the output is JSON with or without it")
    parser.add_argument("--task", choices=["embed", "fit"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(given.threads)
    if given.task == "embed":
        embed(given.folder, given.data)
    elif given.task == "fit":
        print(json.dumps(fit(given.folder, given.data, given.model)))
    else:
        with TemporaryDirectory() as name:
            in_process("embed", given, Path(name))
            told = json.loads(in_process("fit", given, Path(name)))
        print(json.dumps({"model": given.model, "threads": given.threads, **told}))


if __name__ == "__main__":
    main()
