"""Peak memory of super-resolving a large slide: `python benchmarks/subspot_memory.py OUT [SIDE]`.

A synthetic slide of SIDE × SIDE pixels (30,000) of 0.5 µm, three quarters of it tissue, is written in pieces as a tiled
TIFF with a pyramid. A model of 50 genes, fitted on the toy cohort, resolves it through `histoflow super-resolve` in a
process of its own, whose peak of resident memory is what is told. OUT gets slide, model, result and cache.
"""

import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile
import torch

from histoflow import datasets, workflow
from histoflow._errors import HistoflowWarning

MPP, TILE, LEVELS = 0.5, 512, (1, 4, 16)


def tissue_pattern(toy: Path) -> np.ndarray:
    """A square of toy tissue, mirrored so that it can be repeated, (height, width, 3)."""
    picture = tifffile.imread(toy / "P1_A" / "HE.tif")
    middle = picture[picture.shape[0] // 2 - 512 :, picture.shape[1] // 2 - 512 :][:1024, :1024]
    fine = middle.repeat(2, axis=0).repeat(2, axis=1)
    wide = np.concatenate([fine, fine[:, ::-1]], axis=1)
    return np.concatenate([wide, wide[::-1]])


def tiles(pattern: np.ndarray, side: int, step: int) -> Iterator[np.ndarray]:
    """Tiles of one level of the slide, row by row."""
    coarse = pattern[::step, ::step]
    n_tiles = -(-side // step // TILE)
    for row in range(n_tiles):
        for column in range(n_tiles):
            y, x = (np.arange(TILE) + first * TILE for first in (row, column))
            tile = coarse[np.ix_(y % len(coarse), x % len(coarse))].copy()
            out = np.hypot(*np.meshgrid(y * step / side - 0.5, x * step / side - 0.5, indexing="ij")) > 0.49
            tile[out] = 243
            yield tile


def write_slide(path: Path, pattern: np.ndarray, side: int) -> None:
    """Write the slide tile by tile."""
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for step in LEVELS:
            shape = (side // step, side // step, 3)
            resolution = (1e4 * 1 / (MPP * step), 1e4 * 1 / (MPP * step))
            options = {"compression": "jpeg", "compressionargs": {"level": 90}, "subfiletype": int(step > 1)}
            tiff.write(
                tiles(pattern, side, step),
                shape=shape,
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="rgb",
                resolution=resolution,
                resolutionunit="CENTIMETER",
                metadata=None,
                **options,
            )


def fitted(out: Path) -> Path:
    """A model of 50 genes of the toy cohort."""
    path = out / "model"
    if not path.is_dir():
        cohort = datasets.toy(out / "toy")
        workflow.fit(cohort, model="istar", panel=50).save(path)
    return path


def measured(model: Path, slide: Path, out: Path) -> dict[str, float]:
    """Seconds and peak resident memory of the command, in GB."""
    command = [sys.executable, "-c", "from histoflow.cli import main; main()", "super-resolve", str(model), str(slide)]
    environment = os.environ | {"HISTOFLOW_CACHE": str(out / "cache"), "OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    process = subprocess.Popen([*command, "--mpp", str(MPP), "--out", str(out / "superpixels.zarr")], env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the command failed with status {status}")
    return {"seconds": round(time.perf_counter() - start), "peak_rss_gb": round(usage.ru_maxrss * 1024 / 1e9, 2)}


def main(out: Path, side: int) -> None:
    """Print and write what was measured."""
    warnings.simplefilter("ignore", HistoflowWarning)
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    model, slide = fitted(out), out / f"slide-{side}.tif"
    if not slide.exists():
        write_slide(slide, tissue_pattern(out / "toy"), side)
    told = {"side_px": side, "n_superpixels": round(side * MPP / 8) ** 2, **measured(model, slide, out)}
    (out / "subspot_memory.json").write_text(json.dumps(told, indent=2))
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 30_000)
