"""A small folder in the exact layout of the HEST-Benchmark, made of coloured squares whose counts follow them."""

import json
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from histoflow.pp import Encoder

SIDE, SQUARES, MPP = 224, 8, 0.25
N_GENES, N_LISTED = 20, 12
FOLDS = {"ONE": [(["A", "B", "C"], ["D"]), (["C", "D"], ["A", "B"])], "TWO": [(["E", "F"], ["G"]), (["F", "G"], ["E"])]}
WEIGHTS = np.random.default_rng(5).normal(size=(3, N_GENES))
EXTRA_PATCHES, EXTRA_SPOTS = 2, 3


def pixels() -> Encoder:
    """The patch itself, 16 × 16 pixels of three colours: 768 features."""
    return Encoder.from_callable(
        lambda x: x.flatten(1).float(), name="pixels", patch_px=16, mean=None, std=None, licence="none"
    )


def barcodes(n_spots: int) -> list[str]:
    return [f"{i // 10:03d}x{i % 10:03d}" for i in range(n_spots)]


def images_of(seed: int, n_patches: int) -> np.ndarray:
    """Patches of 8 × 8 squares, each around the patch's own colour, uint8."""
    rng = np.random.default_rng(seed)
    squares = rng.normal(140, 35, (n_patches, 1, 1, 3)) + rng.normal(0, 25, (n_patches, SQUARES, SQUARES, 3))
    small = np.clip(squares, 0, 255).astype(np.uint8)
    return small.repeat(SIDE // SQUARES, axis=1).repeat(SIDE // SQUARES, axis=2)


def corners_of(n_patches: int) -> np.ndarray:
    """Upper left corners of patches 100 µm apart, in level-0 pixels."""
    place = np.arange(n_patches)
    return np.stack([place % 10, place // 10], axis=1) * int(100 / MPP) + 2000


def write_patches(path: Path, images: np.ndarray, names: list[str], attributes: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("img", data=images, chunks=(1, SIDE, SIDE, 3), compression="gzip", compression_opts=1)
        file["coords"] = corners_of(len(images))
        file["barcode"] = np.array(names, dtype="S")[:, None]
        file["img"].attrs.update(attributes)


def counts_of(images: np.ndarray, seed: int) -> np.ndarray:
    """Counts that follow the colour of each patch."""
    colour = (images.mean(axis=(1, 2)) - 140) / 35
    rate = np.exp(1.5 + 0.3 * colour @ WEIGHTS)
    return np.random.default_rng(seed).poisson(rate).astype(np.float32)


def write_sample(task: Path, sample: str, seed: int, n_spots: int, attributes: dict | None = None) -> None:
    """Patches and counts in other orders; some patches have no counts, some spots no patch."""
    n_patches = n_spots + EXTRA_PATCHES
    images = images_of(seed, n_patches)
    names = barcodes(n_spots) + [f"no_counts_{i}" for i in range(EXTRA_PATCHES)]
    attributes = {"patch_size_src": round(112 / MPP), "patch_size_target": 224} if attributes is None else attributes
    write_patches(task / "patches" / f"{sample}.h5", images, names, attributes)
    order = np.random.default_rng(seed).permutation(n_spots)
    counts = np.vstack([counts_of(images[:n_spots], seed)[order], np.ones((EXTRA_SPOTS, N_GENES), np.float32)])
    table = AnnData(sparse.csr_matrix(counts))
    table.obs_names = [*np.array(barcodes(n_spots))[order], *(f"no_patch_{i}" for i in range(EXTRA_SPOTS))]
    table.var_names = [f"G{i}" for i in range(N_GENES)]
    (task / "adata").mkdir(exist_ok=True)
    table.write_h5ad(task / "adata" / f"{sample}.h5ad")


def write_splits(task: Path, folds: list) -> None:
    (task / "splits").mkdir(parents=True)
    for number, fold in enumerate(folds):
        for side, samples in zip(("train", "test"), fold, strict=True):
            rows = {
                "sample_id": samples,
                "patches_path": [f"patches/{sample}.h5" for sample in samples],
                "expr_path": [f"adata/{sample}.h5ad" for sample in samples],
            }
            pd.DataFrame(rows).to_csv(task / "splits" / f"{side}_{number}.csv", index=False)


def make_hest_folder(folder: Path) -> Path:
    """Task ONE of four samples, 100 spots each, task TWO of three, 30 spots each; two folds each."""
    for number, (name, folds) in enumerate(FOLDS.items()):
        task, samples = folder / name, sorted({s for fold in folds for side in fold for s in side})
        write_splits(task, folds)
        genes = [f"G{i}" for i in range(N_LISTED)][::-1]
        (task / "var_50genes.json").write_text(json.dumps({"genes": genes}))
        for place, sample in enumerate(samples):
            write_sample(task, sample, 10 * number + place, (100, 30)[number])
    return folder


def change_h5ad(path: Path, change) -> None:
    """Write a table of counts anew, changed in place by `change`."""
    table = anndata.read_h5ad(path)
    changed = change(table)
    (table if changed is None else changed).write_h5ad(path)
