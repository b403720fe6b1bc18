"""Writers of what instruments leave: slides, a Space Ranger folder, legacy ST tables; the same bytes always."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from histoflow._errors import MissingDependencyError
from histoflow._files import write_json
from histoflow.datasets.arrays import ST_PITCH_UM, SpotArray

_TILE = (256, 256)


def write_tiff(path: Path, picture: np.ndarray, mpp: float) -> None:
    """Write a tiled TIFF with a pyramid and its scale in the resolution tags.

    Parameters
    ----------
    path
        The file.
    picture
        RGB, shape (height, width, 3), uint8.
    mpp
        µm per pixel.

    Raises
    ------
    MissingDependencyError
        Without tifffile or imagecodecs.
    """
    _codecs()
    import tifffile

    with tifffile.TiffWriter(path) as tiff:
        for level in range(4):
            tiff.write(
                picture,
                tile=_TILE,
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 90},
                subfiletype=int(level > 0),
                resolution=(1e4 / mpp / 2**level,) * 2,
                resolutionunit="CENTIMETER",
                software=False,
                metadata=None,
            )
            picture = halved(picture)


def write_jpg(path: Path, picture: np.ndarray) -> None:
    """Write a plain jpg, which knows no scale; `picture` is RGB, (height, width, 3), uint8."""
    path.write_bytes(_codecs().jpeg8_encode(picture, level=90))


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write a png; `picture` is RGB, (height, width, 3), uint8."""
    path.write_bytes(_codecs().png_encode(picture, level=4))


def _codecs() -> Any:
    try:
        import imagecodecs
        import tifffile  # noqa: F401 - one error for both
    except ImportError as err:
        raise MissingDependencyError(f"{err.name} is needed to write slides: pip install 'histoflow[slides]'") from err
    return imagecodecs


def halved(picture: np.ndarray) -> np.ndarray:
    """The picture at half the size, each pixel the mean of four; an odd last row or column is left out."""
    even = picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2].astype(np.uint16)
    total = even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]
    return ((total + 2) // 4).astype(np.uint8)


def write_space_ranger(
    folder: Path,
    picture: np.ndarray,
    spots: SpotArray,
    *,
    on_tissue: np.ndarray,
    counts: pd.DataFrame,
    mpp: float,
    rng: np.random.Generator,
) -> None:
    """Write the parts of a Space Ranger 2 `outs` folder that readers use.

    Parameters
    ----------
    folder
        The `outs` folder; made if it is not there.
    picture
        The full-resolution slide, RGB, shape (height, width, 3), uint8; only its smaller versions are written.
    spots
        The whole array, n_spots spots.
    on_tissue
        Which of them lie on tissue, shape (n_spots,).
    counts
        Counts of those, one row each in the order of `spots`, one column per gene.
    mpp
        µm per pixel of the full-resolution slide.
    rng
        Draws the barcodes.
    """
    spatial = folder / "spatial"
    spatial.mkdir(parents=True)
    hires = halved(picture)
    write_png(spatial / "tissue_hires_image.png", hires)
    write_png(spatial / "tissue_lowres_image.png", halved(hires))
    scales = {"tissue_hires_scalef": 0.5, "tissue_lowres_scalef": 0.25}
    # 65 µm is the theoretical size that Space Ranger writes; the spots measure 55.
    write_json(
        spatial / "scalefactors_json.json",
        {"spot_diameter_fullres": 65 / mpp, "fiducial_diameter_fullres": 105 / mpp, **scales},
    )
    barcodes = _barcodes(len(spots.index), rng)
    _positions(spots, barcodes, on_tissue, mpp).to_csv(spatial / "tissue_positions.csv", index=False)
    _write_10x(folder / "filtered_feature_bc_matrix.h5", counts.set_axis(barcodes[on_tissue], axis=0).sort_index())


def _barcodes(n: int, rng: np.random.Generator) -> np.ndarray:
    """Different 16-mers with the suffix of the first lane, in no order."""
    codes = rng.choice(4**16, size=n, replace=False)
    digits = (codes[:, None] >> (2 * np.arange(16))) & 3
    return np.array(["".join(row) + "-1" for row in np.array(list("ACGT"))[digits]])


def _positions(spots: SpotArray, barcodes: np.ndarray, on_tissue: np.ndarray, mpp: float) -> pd.DataFrame:
    column, row = spots.index.T
    x, y = np.rint(spots.xy_um / mpp).astype(int).T
    return pd.DataFrame(
        {
            "barcode": barcodes,
            "in_tissue": on_tissue.astype(int),
            "array_row": row,
            "array_col": column,
            "pxl_row_in_fullres": y,
            "pxl_col_in_fullres": x,
        }
    )


def _write_10x(path: Path, counts: pd.DataFrame) -> None:
    """Write the feature-barcode matrix in Cell Ranger's third layout: genes × barcodes, by barcode."""
    matrix = sparse.csr_matrix(counts.to_numpy())
    text = h5py.string_dtype("ascii", 18)
    n_genes = len(counts.columns)
    features = {
        "id": [f"TOYG{i:011d}" for i in range(1, n_genes + 1)],
        "name": list(counts.columns),
        "feature_type": ["Gene Expression"] * n_genes,
        "genome": ["toy"] * n_genes,
        "_all_tag_keys": ["genome"],
    }
    with h5py.File(path, "w", track_order=False) as file:
        file.attrs.update({"filetype": "matrix", "version": 2, "chemistry_description": "synthetic"})
        group = file.create_group("matrix")
        group.create_dataset("barcodes", data=list(counts.index), dtype=text, track_times=False)
        for name in ("data", "indices", "indptr"):
            group.create_dataset(name, data=getattr(matrix, name), compression="gzip", track_times=False)
        group.create_dataset("shape", data=np.array(matrix.shape[::-1], dtype=np.int32), track_times=False)
        for name, values in features.items():
            group.create_dataset(f"features/{name}", data=values, dtype=text, track_times=False)


def write_st_tables(folder: Path, spots: SpotArray, counts: pd.DataFrame, *, mpp: float) -> None:
    """Write `counts.tsv.gz` and `spots_selection.tsv` as legacy ST pipelines do.

    Parameters
    ----------
    folder
        Where to write; made if it is not there.
    spots
        The spots on tissue.
    counts
        Their counts, one row each in the order of `spots`, one column per gene.
    mpp
        µm per pixel of the slide.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ids = [f"{x}x{y}" for x, y in spots.index]
    gzip = {"method": "gzip", "mtime": 0}
    counts.set_axis(ids, axis=0).sort_index().to_csv(folder / "counts.tsv.gz", sep="\t", compression=gzip)
    off = spots.xy_um / ST_PITCH_UM - spots.index
    new_x, new_y = (spots.index + off - off.mean(axis=0)).T
    pixel_x, pixel_y = (spots.xy_um / mpp).T
    x, y = spots.index.T
    table = {"x": x, "y": y, "new_x": new_x.round(3), "new_y": new_y.round(3)}
    table |= {"pixel_x": pixel_x.round(2), "pixel_y": pixel_y.round(2), "selected": 1}
    pd.DataFrame(table).to_csv(folder / "spots_selection.tsv", sep="\t", index=False)
