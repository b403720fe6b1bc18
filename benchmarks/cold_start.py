"""Seconds from nothing to work, in fresh processes: `python benchmarks/cold_start.py [--repeats 5] [--json]`.

Medians, the commands taken in turn, beside `import torch` and `import lazyslide`, and as ratios to `import torch`.
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
from statistics import median
from tempfile import TemporaryDirectory

PREDICT = """
import warnings; warnings.simplefilter("ignore")
import anndata, histoflow as hf
hf.models.load(r"{model}").predict(anndata.read_h5ad(r"{section}"))
"""
MAIN = "import sys; sys.argv = {arguments}; from histoflow.cli import main; main()"


def saved(folder: Path) -> tuple[Path, Path]:
    """A small model, and a section to predict."""
    import numpy as np
    from anndata import AnnData
    from scipy import sparse

    from histoflow import models
    from histoflow._keys import EMBEDDINGS, UNS

    rng = np.random.default_rng(0)
    sections = []
    for name in ("A", "B", "C"):
        xy = np.stack(np.divmod(np.arange(100), 10), axis=1) * 200.0
        slots = {"scatter": rng.standard_normal((100, 99), dtype=np.float32), "spatial_um": xy}
        counts = sparse.csr_matrix(rng.poisson(3.0, (100, 20)).astype(np.float32))
        facts = {"section": name, "slide_id": name, "pitch_um": 200.0}
        made = {"scatter": {"id": "0" * 12, "name": "scatter", "patch_um": [112.0]}}
        sections.append(AnnData(counts, obsm=slots, uns={UNS: facts | {EMBEDDINGS: made}}))
        sections[-1].var_names = [f"G{i}" for i in range(20)]
    warnings.simplefilter("ignore")
    models.RidgeProbe().fit(sections, panel=list(sections[0].var_names)).save(folder / "model")
    sections[0].write_h5ad(folder / "section.h5ad")
    return folder / "model", folder / "section.h5ad"


def commands(model: Path, section: Path) -> dict[str, str]:
    """What is timed, as Python programs."""
    return {
        "python": "pass",
        "import torch": "import torch",
        "import lazyslide": "import lazyslide",
        "import histoflow": "import histoflow",
        "histoflow --help": MAIN.format(arguments=["histoflow", "--help"]),
        "histoflow encoders": MAIN.format(arguments=["histoflow", "encoders"]),
        "load and predict": PREDICT.format(model=model, section=section),
    }


def run(program: str) -> tuple[float, float]:
    """Seconds of wall clock and of processor of one fresh process."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, capture_output=True, env=os.environ)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with TemporaryDirectory() as folder:
        programs = commands(*saved(Path(folder)))
        rounds = [{name: run(program) for name, program in programs.items()} for _ in range(given.repeats)]
    medians = {name: [median(one[name][side] for one in rounds) for side in (0, 1)] for name in programs}
    torch_cpu = medians["import torch"][1]
    told = {
        name: {"seconds": round(wall, 2), "cpu_seconds": round(cpu, 2), "cpu_to_torch": round(cpu / torch_cpu, 2)}
        for name, (wall, cpu) in medians.items()
    }
    if given.json:
        print(json.dumps({"repeats": given.repeats, "commands": told}))
        return
    for name, one in told.items():
        print(
            f"{name:20s} {one['seconds']:6.2f} s  {one['cpu_seconds']:6.2f} CPU s  {one['cpu_to_torch']:5.2f} × torch"
        )


if __name__ == "__main__":
    main()
