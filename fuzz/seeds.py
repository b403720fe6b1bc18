"""Seed inputs: every one invented and written by code, as small as a reader accepts."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from PIL import Image
from safetensors.torch import save

from fuzz.mutate import Case
from fuzz.mutate_archives import tarred

GENES = ("ACTB", "KRT8", "CD3E", "ACTB")
N_COLUMNS, N_ROWS = 6, 3
SIDE_UM = 10.0
"""Size of a pixel of the invented slide."""


def bytes_of(write: Callable[[Path], None], name: str) -> bytes:
    """The bytes that a writer leaves in a file of that name."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / name)
        return (Path(folder) / name).read_bytes()


def files_of(folder: Path) -> Case:
    """All files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@cache
def picture(kind: str = "png", size: tuple[int, int] = (80, 60), mode: str = "RGB") -> bytes:
    """A small picture in one of the plain formats."""
    made = io.BytesIO()
    values = np.random.default_rng(0).integers(80, 250, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).convert(mode).save(made, kind)
    return made.getvalue()


@cache
def tiff(mpp: float = SIDE_UM) -> bytes:
    """A tiled TIFF with a pyramid and its scale."""
    from histoflow.datasets.formats import write_tiff

    values = np.random.default_rng(0).integers(80, 250, (60, 80, 3), dtype=np.uint8)
    return bytes_of(lambda path: write_tiff(path, values, mpp), "slide.tif")


def lattice() -> pd.DataFrame:
    """A piece of Visium's lattice, in the columns of Space Ranger."""
    row, column = np.meshgrid(np.arange(N_ROWS), np.arange(N_COLUMNS), indexing="ij")
    on = (row + column) % 2 == 0
    row, column = row[on], column[on]
    return pd.DataFrame(
        {
            "barcode": [f"SPOT{i}-1" for i in range(len(row))],
            "in_tissue": [1] * (len(row) - 1) + [0],
            "array_row": row,
            "array_col": column,
            "pxl_row_in_fullres": (10 + row * 8.66).round(2),
            "pxl_col_in_fullres": 10 + column * 5,
        }
    )


def counts(n_spots: int, n_genes: int = len(GENES)) -> np.ndarray:
    """Counts, (n_spots, n_genes)."""
    return np.random.default_rng(1).poisson(2.0, (n_spots, n_genes)).astype(np.int32)


def _ten_x(path: Path, barcodes: list[str], *, old: bool, packed: bool) -> None:
    matrix = sp.csc_matrix(counts(len(barcodes)).T)
    how = {"compression": "gzip", "chunks": True} if packed else {}
    with h5py.File(path, "w") as file:
        group = file.create_group("GRCh38" if old else "matrix")
        for part in ("data", "indices", "indptr"):
            group.create_dataset(part, data=getattr(matrix, part), **how)
        group["shape"] = np.array(matrix.shape, dtype=np.int32)
        group["barcodes"] = np.array(barcodes, dtype="S")
        names = np.array(GENES, dtype="S")
        if old:
            group["genes"], group["gene_names"] = names, names
            return
        kinds = ["Gene Expression"] * (len(GENES) - 1) + ["Antibody Capture"]
        for part, values in {"id": names, "name": names, "feature_type": kinds, "genome": ["toy"] * len(GENES)}.items():
            group[f"features/{part}"] = np.array(values, dtype="S")


@cache
def visium() -> tuple[Case, ...]:
    """Space Ranger folders in every layout, with the hires image and, in some, the slide."""
    table = lattice()
    barcodes = list(table["barcode"][table["in_tissue"] == 1])[::-1]
    factors = {"tissue_hires_scalef": 1.0, "tissue_lowres_scalef": 0.5, "spot_diameter_fullres": 6.5}
    spatial = {
        "outs/spatial/scalefactors_json.json": json.dumps(factors).encode(),
        "outs/spatial/tissue_hires_image.png": picture(),
    }
    header = {"outs/spatial/tissue_positions.csv": table.to_csv(index=False).encode()}
    headerless = {"outs/spatial/tissue_positions_list.csv": table.to_csv(index=False, header=False).encode()}
    parquet = {
        "outs/spatial/tissue_positions.parquet": bytes_of(lambda path: table.to_parquet(path, index=False), "t.parquet")
    }
    matrices = [
        bytes_of(lambda path, o=old, p=packed: _ten_x(path, barcodes, old=o, packed=p), "m.h5")
        for old, packed in ((False, False), (False, True), (True, False))
    ]
    h5 = [{"outs/filtered_feature_bc_matrix.h5": matrix} for matrix in matrices]
    mtx = {f"outs/filtered_feature_bc_matrix/{name}": held for name, held in _mtx(barcodes).items()}
    return (
        spatial | header | h5[0],
        spatial | headerless | h5[1] | {"slide.tif": tiff()},
        spatial | header | h5[2],
        spatial | headerless | mtx,
        spatial | parquet | h5[0],
    )


def _mtx(barcodes: list[str]) -> Case:
    matrix = sp.coo_matrix(counts(len(barcodes)).T)
    lines = [f"{i + 1} {j + 1} {v}" for i, j, v in zip(matrix.row, matrix.col, matrix.data, strict=True)]
    size = f"{len(GENES)} {len(barcodes)} {matrix.nnz}"
    text = "\n".join(["%%MatrixMarket matrix coordinate integer general", size, *lines]) + "\n"
    features = "".join(f"ENSG{i}\t{gene}\tGene Expression\n" for i, gene in enumerate(GENES))
    return {
        "matrix.mtx": text.encode(),
        "features.tsv.gz": gzip.compress(features.encode(), mtime=0),
        "barcodes.tsv": "".join(f"{barcode}\n" for barcode in barcodes).encode(),
    }


@cache
def visium_hd() -> tuple[Case, ...]:
    """A bin folder of Visium HD."""
    row, column = (grid.ravel() for grid in np.meshgrid(np.arange(3), np.arange(4), indexing="ij"))
    names = [f"s_008um_{r:05d}_{c:05d}-1" for r, c in zip(row, column, strict=True)]
    parts = {"barcode": names, "in_tissue": 1, "array_row": row, "array_col": column}
    parts |= {"pxl_row_in_fullres": 10 + row * 0.8, "pxl_col_in_fullres": 10 + column * 0.8}
    table = pd.DataFrame(parts)
    factors = {"tissue_hires_scalef": 1.0, "bin_size_um": 8.0, "microns_per_pixel": 10.0}
    matrix = bytes_of(lambda path: _ten_x(path, names, old=False, packed=False), "m.h5")
    positions = bytes_of(lambda path: table.to_parquet(path, index=False), "t.parquet")
    shared = {
        "square/spatial/scalefactors_json.json": json.dumps(factors).encode(),
        "square/spatial/tissue_hires_image.png": picture(),
        "square/filtered_feature_bc_matrix.h5": matrix,
    }
    text = table.to_csv(index=False).encode()
    return (
        shared | {"square/spatial/tissue_positions.parquet": positions},
        shared | {"square/spatial/tissue_positions.csv": text},
    )


@cache
def st_tables() -> tuple[Case, ...]:
    """Legacy ST: counts, spots, slide."""
    index = np.stack(np.meshgrid(np.arange(1, 5), np.arange(1, 4)), axis=-1).reshape(-1, 2)
    table = pd.DataFrame(
        {"x": index[:, 0], "y": index[:, 1], "pixel_x": index[:, 0] * 12.5, "pixel_y": index[:, 1] * 12.5}
    )
    values = pd.DataFrame(counts(len(index)), index=[f"{x}x{y}" for x, y in index], columns=list("ABCD"))
    text = values.to_csv(sep="\t").encode()
    selected = table.assign(selected=[1] * (len(index) - 1) + [0]).to_csv(sep="\t", index=False).encode()
    plain = table.to_csv(sep="\t", index=False).encode()
    return (
        {"counts.tsv": text, "spots.tsv": selected, "slide.png": picture()},
        {"counts.tsv.gz": gzip.compress(text, mtime=0), "spots.tsv": plain, "slide.png": picture()},
        {"counts.csv": text.replace(b"\t", b","), "spots.csv": plain.replace(b"\t", b","), "slide.png": picture()},
    )


MANIFEST = """section,kind,slide,counts,spots,patient,block,order,mpp,pitch_um,spots_frame,role
S1,visium,slide.tif,outs,,P1,B1,1,0.5,,fullres,reference
S2,st,slide.tif,counts.tsv,spots.tsv,P1,B1,2,4.62x4.16,200,800x600,held_out
S3,slide,slide.tif,,,P2,,,,,,query
"""


@cache
def manifests() -> tuple[Case, ...]:
    """Cohorts of several kinds."""
    features = "section,kind,slide,encoder,patch_um\nF1,features,patches.h5,uni,112\n"
    small = "section\tkind\tcounts\trole\nS1\th5ad\tcounts.h5ad\treference\n"
    return ({"cohort.csv": MANIFEST.encode()}, {"cohort.csv": features.encode()}, {"cohort.tsv": small.encode()})


def table_of(n_spots: int = 9) -> AnnData:
    """An AnnData with counts, places, a library and a few things that tools leave."""
    table = lattice()[:n_spots]
    made = AnnData(sp.csr_matrix(counts(n_spots).astype(np.float32)))
    made.obs_names, made.var_names = list(table["barcode"]), [*GENES[:3], "ACTB-2"]
    made.obs["in_tissue"] = 1
    made.obs["array_row"], made.obs["array_col"] = table["array_row"].to_numpy(), table["array_col"].to_numpy()
    made.obs["cluster"] = pd.Categorical(["a", "b", "a"] * (n_spots // 3))
    made.var["gene_ids"] = [f"ENSG{i}" for i in range(4)]
    made.obsm["spatial"] = table[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy(float)
    made.uns["spatial"] = {"L1": {"scalefactors": {"tissue_hires_scalef": 0.5}, "metadata": {"software": "x"}}}
    return made


def bare_table() -> AnnData:
    """The same without what readers of patches do not look at."""
    full = table_of()
    return AnnData(full.X, obs=full.obs[[]], var=full.var[[]], obsm={"spatial": full.obsm["spatial"]})


def h5ad_of(made: AnnData) -> bytes:
    """An AnnData as a file."""
    return bytes_of(made.write_h5ad, "made.h5ad")


@cache
def h5ads() -> tuple[Case, ...]:
    """Counts as scanpy leaves them: sparse, dense, with layers and raw."""
    dense, layered = table_of(), table_of()
    dense.X = dense.X.toarray()
    del dense.uns["spatial"]
    layered.layers["counts"] = layered.X.copy()
    layered.uns["log1p"], layered.uns["L"] = {"base": 2.0}, [1, 2]
    return tuple({"counts.h5ad": h5ad_of(one), "slide.png": picture()} for one in (table_of(), dense, layered))


def _features(path: Path, layout: str) -> None:
    rng = np.random.default_rng(2)
    places = lattice()[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy(float)
    with h5py.File(path, "w") as file:
        name = "embeddings" if layout == "hest" else "features"
        shape = (1, 9, 6) if layout == "trident" else (9, 6)
        file[name] = rng.normal(size=shape).astype(np.float32)
        file["coords"] = (places * 10).astype(np.int64)
        if layout == "hest":
            file["barcodes"] = np.array(lattice()["barcode"], dtype="S")[:, None]
            file["coords"].attrs["pixel_size"], file["coords"].attrs["patch_size_src"] = 1.0, 112
        elif layout == "trident":
            file[name].attrs["encoder"] = "uni_v1"
            told = {"patch_size": 256, "patch_size_level0": 112, "level0_magnification": 10, "target_magnification": 20}
            file["coords"].attrs.update(told | {"overlap": 0})
        else:
            file["coords"].attrs.update({"patch_size": 112, "patch_level": 0, "downsample": [1.0, 1.0]})


@cache
def features() -> tuple[Case, ...]:
    """Patch features of HEST, TRIDENT and CLAM, one with counts."""
    made = {
        layout: bytes_of(lambda path, chosen=layout: _features(path, chosen), "f.h5")
        for layout in ("hest", "trident", "clam")
    }
    table = bare_table()
    table.obsm["spatial"] = table.obsm["spatial"] * 10 + 56
    joined = {"patches.h5": made["hest"], "counts.h5ad": h5ad_of(table)}
    return ({"patches.h5": made["hest"]}, {"patches.h5": made["trident"]}, {"patches.h5": made["clam"]}, joined)


def _patches(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["img"] = np.zeros((9, 4, 4, 3), dtype=np.uint8)
        file["coords"] = (lattice()[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy(float) * 10).astype(np.int64)
        file["barcode"] = np.array(lattice()["barcode"], dtype="S")[:, None]
        file["img"].attrs.update({"pixel_size": 1.0, "patch_size_src": 112})


@cache
def hest_bench() -> tuple[Case, ...]:
    """A task of the HEST-Benchmark with two samples."""
    split = "sample_id,patches_path,expr_path\n{0},patches/{0}.h5,adata/{0}.h5ad\n"
    patches, table = bytes_of(_patches, "p.h5"), h5ad_of(bare_table())
    files = {f"patches/{s}.h5": patches for s in "AB"} | {f"adata/{s}.h5ad": table for s in "AB"}
    files |= {"splits/train_0.csv": split.format("A").encode(), "splits/test_0.csv": split.format("B").encode()}
    files |= {"var_50genes.json": json.dumps({"genes": list(GENES[:3])}).encode()}
    return ({f"task/{name}": held for name, held in files.items()} | {"metadata/A.json": b'{"pixel_size": 1.0}'},)


def section_of(name: str, seed: int, n_spots: int = 16) -> AnnData:
    """An embedded section, for models."""
    from histoflow._keys import EMBEDDINGS, UNS

    rng = np.random.default_rng(seed)
    xy = np.stack(np.meshgrid(np.arange(4), np.arange(4)), axis=-1).reshape(-1, 2)[:n_spots] * 200.0 + 1000
    made = AnnData(sp.csr_matrix(rng.poisson(5, (n_spots, 4)).astype(np.float32)))
    made.var_names, made.obs_names = ["KRT8", "CD3E", "ACTB", "IGKC"], [f"{name}-{i}" for i in range(n_spots)]
    made.obsm["spatial"], made.obsm["spatial_um"] = xy / 2, xy
    made.obsm["scatter"] = rng.normal(size=(n_spots, 5)).astype(np.float32)
    made.obsm["color"] = rng.normal(size=(n_spots, 5)).astype(np.float32)
    told = {"id": "a" * 12, "name": "scatter", "version": "2", "patch_um": [112.0], "licence": "BSD-3-Clause"}
    embeddings = {"scatter": told, "color": told | {"name": "color"}}
    made.uns[UNS] = {"section": name, "slide_id": name, "pitch_um": 200.0, EMBEDDINGS: embeddings}
    return made


@cache
def model_folders() -> tuple[Case, ...]:
    """Saved models of several kinds."""
    from histoflow import models

    small = models.Network(hidden_dim=8, pairwise_dim=8, n_layers=1, n_heads=2, n_components=4)
    kinds = (
        models.MeanBaseline(),
        models.LibrarySizeBaseline(),
        models.ColorBaseline(),
        models.RidgeProbe(),
        models.Calibrated(models.RidgeProbe()),
        models.STFlow("paper", network=small, training=models.Training(max_epochs=1, crops_per_section=1)),
    )
    made = []
    for kind in kinds:
        fitted = kind.fit([section_of(f"S{i}", i) for i in range(3)], panel=["KRT8", "ACTB"])
        with tempfile.TemporaryDirectory() as folder:
            fitted.save(Path(folder) / "model")
            made.append(files_of(Path(folder)))
    return tuple(made)


def _torch_bytes(value: object, **how: bool) -> bytes:
    made = io.BytesIO()
    torch.save(value, made, **how)
    return made.getvalue()


@cache
def pth_files() -> tuple[Case, ...]:
    """Weights as torch saves them, today and before version 1.6."""
    state = {"module.a.weight": torch.ones(2, 3), "a.bias": torch.zeros(2), "n": torch.tensor(3)}
    nested = {"state_dict": state, "epoch": 3}
    return (
        {"weights.pth": _torch_bytes(state)},
        {"weights.pth": _torch_bytes(nested)},
        {"weights.bin": _torch_bytes(state, _use_new_zipfile_serialization=False)},
    )


@cache
def safetensors_files() -> tuple[Case, ...]:
    """Weights as safetensors."""
    state = {"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(2, dtype=torch.float16), "n": torch.tensor(3)}
    return ({"model.safetensors": save(state)}, {"model.safetensors": save({"x": torch.zeros(4)}, {"format": "pt"})})


@cache
def zarrs() -> tuple[Case, ...]:
    """Super-pixels in a SpatialData folder."""
    from histoflow.io.superpixels import Canvas, create_superpixels

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cells.zarr"
        canvas = Canvas((4, 4), (2.0, 2.0), 8.0, 4)
        about = {"method": "istar", "scale": "counts", "n_superpixels": 4}
        made = create_superpixels(path, canvas, GENES[:2], about, spots=["s1", "s2"])
        values = np.ones((2, 4, 4), dtype=np.float32)
        labels = {"tissue": np.ones((4, 4), np.uint8), "spots": np.ones((4, 4), np.int32)}
        made.write((slice(0, 4), slice(0, 4)), values, values, labels)
        return (files_of(Path(folder)),)


@cache
def archives() -> tuple[Case, ...]:
    """A tar of the folder that is wanted, and of another."""
    members = []
    for name in ("spatial", "spatial/a.txt", "spatial/inner", "spatial/inner/b.json", "other/c.txt"):
        member = tarfile.TarInfo(name)
        held = b"" if "." not in name else b"text of " + name.encode()
        member.type = tarfile.REGTYPE if held else tarfile.DIRTYPE
        member.size, member.mode = len(held), 0o755
        members.append((member, held))
    return ({"spatial.tar.gz": tarred(members)},)


@cache
def geojsons() -> tuple[Case, ...]:
    """Regions as QuPath writes them."""
    ring = [[0, 0], [10, 0], [10, 10], [0, 10], [0, 0]]
    polygon = {"type": "Polygon", "coordinates": [ring]}
    many = {"type": "MultiPolygon", "coordinates": [[ring], [[[20, 20], [30, 20], [30, 30], [20, 20]]]]}
    feature = {"type": "Feature", "id": "1", "geometry": polygon, "properties": {"objectType": "annotation"}}
    both = {"type": "GeometryCollection", "geometries": [polygon, {"type": "Point", "coordinates": [1, 1]}]}
    values = (
        {"type": "FeatureCollection", "features": [feature, feature | {"geometry": many}]},
        [feature],
        polygon,
        both,
    )
    return tuple({"regions.geojson": json.dumps(value).encode()} for value in values)


@cache
def gene_lists() -> tuple[Case, ...]:
    """Panels, one name a line."""
    return ({"genes.txt": b"KRT8\nACTB\nCD3E\n"}, {"genes.txt": b"\xef\xbb\xbfKRT8\r\n\r\n ACTB \r\n"})


@cache
def vocabularies() -> tuple[Case, ...]:
    """Symbols and Ensembl ids."""
    return ({"symbol2ensembl.json": json.dumps({"KRT8": "ENSG1", "ACTB": "ENSG2", "CD3E": "ENSG3"}).encode()},)


@cache
def pictures() -> tuple[Case, ...]:
    """Slides in every plain format, and a TIFF."""
    plain = {"slide.png": picture(), "slide.jpg": picture("jpeg"), "slide.bmp": picture("bmp")}
    modes = [{"slide.png": picture("png", mode=mode)} for mode in ("L", "RGBA", "P", "1", "I;16")]
    return (
        *({name: held} for name, held in plain.items()),
        *modes,
        {"slide.tif": tiff()},
        {"slide.tif": picture("tiff")},
    )


@cache
def protocols() -> tuple[Case, ...]:
    """What an evaluation states of itself."""
    from histoflow import models

    kinds = {"hest_fm": models.RidgeProbe(), "mean": models.MeanBaseline(), "stflow": models.STFlow()}
    stated = {name: {"estimator": kind.name, "options": kind.options(), "identity": {}} for name, kind in kinds.items()}
    told = {"format": 1, "by": "section", "areas": None, "normalize": "library", "min_counts": 0, "seeds": [0]}
    panel = {"genes": ["KRT8", "ACTB"], "rule": "given"}
    first = told | {"panel": panel, "models": stated, "folds": []}
    chosen = {"auto": {"estimator": "auto", "candidates": stated, "level": 0.9, "identity": {}}}
    areas = {"by": "area", "areas": {"n_areas": 4, "buffer_um": 500.0}, "panel": {"rule": "variance", "n_genes": 50}}
    return tuple({"protocol.json": json.dumps(one).encode()} for one in (first, first | areas | {"models": chosen}))


def prediction() -> AnnData:
    """What `predict` writes, small."""
    from histoflow import models

    fitted = models.RidgeProbe().fit([section_of(f"S{i}", i) for i in range(3)], panel=["KRT8", "ACTB"])
    return fitted.predict(section_of("Q", 9))


@cache
def predictions() -> tuple[Case, ...]:
    """Predictions as files."""
    return ({"predicted.h5ad": h5ad_of(prediction())},)
