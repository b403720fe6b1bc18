"""Invented sections as real files: a stained ellipse, a Space Ranger folder in every layout, ST tables."""

import gzip
import json
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp
from PIL import Image

MPP = 4.0
SIZE = (800, 720)
CENTRE, RADII = np.array([420, 340]), np.array([250, 200])
GENES = ["ACTB", "MT-CO1", "ACTB", "KRT8", "ACTB-1", "IGKC", "CD3-antibody"]
TYPES = ["Gene Expression"] * 6 + ["Antibody Capture"]


@cache
def paint(scale: float = 1.0) -> bytes:
    """A png of a purple ellipse with texture on pale glass, at `scale` times the full size."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]))
    tissue = (((x - CENTRE[0]) / RADII[0]) ** 2 + ((y - CENTRE[1]) / RADII[1]) ** 2 < 1)[..., None]
    image = np.where(tissue, [150, 90, 160], [240, 236, 242]) + rng.integers(-8, 9, (*x.shape, 1))
    png = BytesIO()
    size = [round(side * scale) for side in SIZE]
    Image.fromarray(image.astype(np.uint8)).resize(size).save(png, "png", dpi=(72, 72), compress_level=1)
    return png.getvalue()


def in_ellipse(xy: np.ndarray, shrink: float = 0.9) -> np.ndarray:
    return (((xy - CENTRE) / (RADII * shrink)) ** 2).sum(axis=1) < 1


@dataclass
class Outs:
    """An invented Space Ranger folder and what is true of it."""

    folder: Path
    slide: Path
    positions: pd.DataFrame
    counts: np.ndarray
    barcodes: list[str]
    genes: list[str] = field(default_factory=lambda: list(GENES))


def lattice() -> pd.DataFrame:
    """Visium positions, 100 µm apart at 4 µm per pixel, in the columns of Space Ranger."""
    row, col = np.meshgrid(np.arange(30), np.arange(56), indexing="ij")
    on = (row + col) % 2 == 0
    row, col = row[on], col[on]
    xy = np.column_stack([40 + col * 50 / MPP, 40 + row * 50 * np.sqrt(3) / MPP])
    return pd.DataFrame(
        {
            "barcode": [f"SPOT{i:04d}-1" for i in range(len(row))],
            "in_tissue": in_ellipse(xy).astype(int),
            "array_row": row,
            "array_col": col,
            "pxl_row_in_fullres": xy[:, 1],
            "pxl_col_in_fullres": xy[:, 0],
        }
    )


def write_positions(spatial: Path, positions: pd.DataFrame, layout: str) -> None:
    if layout == "headerless":
        positions.to_csv(spatial / "tissue_positions_list.csv", header=False, index=False)
    elif layout == "header":
        positions.to_csv(spatial / "tissue_positions.csv", index=False)
    else:
        positions.to_parquet(spatial / "tissue_positions.parquet", index=False)


def write_h5(path: Path, counts: np.ndarray, barcodes: list[str], genes: list[str]) -> None:
    matrix = sp.csc_matrix(counts.T.astype(np.int32))
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        for key in ("data", "indices", "indptr"):
            group[key] = getattr(matrix, key)
        group["shape"] = np.array(matrix.shape, dtype=np.int32)
        group["barcodes"] = np.array(barcodes, dtype="S")
        group["features/id"] = np.array([f"ENSG{i}" for i in range(len(genes))], dtype="S")
        group["features/name"] = np.array(genes, dtype="S")
        group["features/feature_type"] = np.array(TYPES, dtype="S")
        group["features/genome"] = np.array(["toy"] * len(genes), dtype="S")


def write_h5_v2(path: Path, counts: np.ndarray, barcodes: list[str], genes: list[str]) -> None:
    matrix = sp.csc_matrix(counts.T.astype(np.int32))
    with h5py.File(path, "w") as file:
        group = file.create_group("toy")
        for key in ("data", "indices", "indptr"):
            group[key] = getattr(matrix, key)
        group["shape"] = np.array(matrix.shape, dtype=np.int32)
        group["barcodes"] = np.array(barcodes, dtype="S")
        group["genes"] = np.array([f"ENSG{i}" for i in range(len(genes))], dtype="S")
        group["gene_names"] = np.array(genes, dtype="S")


def write_mtx(folder: Path, counts: np.ndarray, barcodes: list[str], genes: list[str]) -> None:
    folder.mkdir()
    scipy.io.mmwrite(folder / "matrix.mtx", sp.coo_matrix(counts.T.astype(np.int32)))
    (folder / "matrix.mtx.gz").write_bytes(gzip.compress((folder / "matrix.mtx").read_bytes()))
    (folder / "matrix.mtx").unlink()
    features = "".join(f"ENSG{i}\t{gene}\t{TYPES[i]}\n" for i, gene in enumerate(genes))
    (folder / "features.tsv.gz").write_bytes(gzip.compress(features.encode()))
    (folder / "barcodes.tsv.gz").write_bytes(gzip.compress("".join(f"{b}\n" for b in barcodes).encode()))


WRITERS = {"h5": write_h5, "h5-v2": write_h5_v2}


@pytest.fixture
def make_outs(tmp_path):
    """Function that writes a Space Ranger folder in the layout asked for."""

    def make(*, positions="header", matrix="h5", images=("hires", "lowres"), name="S1", table=None) -> Outs:
        folder = tmp_path / name / "outs"
        spatial = folder / "spatial"
        spatial.mkdir(parents=True)
        table = lattice() if table is None else table
        write_positions(spatial, table, positions)
        barcodes = table["barcode"][table["in_tissue"] == 1].tolist()[::-1]
        counts = np.random.default_rng(1).poisson(2.0, (len(barcodes), len(GENES))).astype(float)
        if matrix == "mtx":
            write_mtx(folder / "filtered_feature_bc_matrix", counts, barcodes, GENES)
        else:
            WRITERS[matrix](folder / "filtered_feature_bc_matrix.h5", counts, barcodes, GENES)
        factors = {"hires": 0.5, "lowres": 0.15}
        scalefactors = {f"tissue_{key}_scalef": factor for key, factor in factors.items()}
        (spatial / "scalefactors_json.json").write_text(json.dumps(scalefactors | {"spot_diameter_fullres": 16.25}))
        for key in images:
            (spatial / f"tissue_{key}_image.png").write_bytes(paint(factors[key]))
        (tmp_path / f"{name}.png").write_bytes(paint())
        return Outs(folder, tmp_path / f"{name}.png", table, counts, barcodes)

    return make


@dataclass
class Tables:
    """Invented legacy ST files and what is true of them."""

    counts: Path
    spots: Path
    slide: Path
    table: pd.DataFrame
    values: pd.DataFrame


@pytest.fixture
def make_st(tmp_path):
    """Function that writes counts, spot table and slide of a 1k or 2k array, 200 µm at 4 µm per pixel."""

    def make(*, array="1k", name="T1", selected=True) -> Tables:
        index = np.stack(np.meshgrid(np.arange(1, 34), np.arange(1, 36)), axis=-1).reshape(-1, 2)
        step = 200 / MPP
        if array == "2k":
            index = index * 2 - 1
            index = np.concatenate([index, index[:-33] + 1])
            step /= 2
        xy = index * step / 2.2 + 20
        table = pd.DataFrame({"x": index[:, 0], "y": index[:, 1], "pixel_x": xy[:, 0], "pixel_y": xy[:, 1]})
        under = in_ellipse(xy)
        if selected:
            table["selected"] = under.astype(int)
        else:
            table = table[under]
        ids = [f"{x}x{y}" for x, y in index[under]]
        values = pd.DataFrame(np.random.default_rng(2).poisson(3, (len(ids), 5)), index=ids, columns=list("ABCDE"))
        table.to_csv(tmp_path / f"{name}_spots.tsv", sep="\t", index=False)
        values.to_csv(tmp_path / f"{name}.tsv.gz", sep="\t")
        (tmp_path / f"{name}.png").write_bytes(paint())
        return Tables(
            tmp_path / f"{name}.tsv.gz", tmp_path / f"{name}_spots.tsv", tmp_path / f"{name}.png", table, values
        )

    return make
