"""One sample of the HEST-Benchmark as a section: patches and counts joined by barcode, places in µm where it tells."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from histoflow._errors import (
    DroppedSpotsWarning,
    PanelMismatchError,
    ReadError,
    SlideMismatchError,
)
from histoflow._keys import SPATIAL, SPATIAL_UM, UNS
from histoflow.io.arrays import check_counts, unique_names
from histoflow.io.hdf5 import read_anndata
from histoflow.io.hest_bench import HestPatches, HestSample
from histoflow.io.images import slide_id
from histoflow.io.scale import Scale, fit_pitch, is_plausible, nearest_distance, visium_step

PATCH_UM = 112.0
"""Side of the benchmark's patches: 224 pixels of 0.5 µm."""
PATCH = "patch"
"""``obs`` column: row of a spot's patch in its file."""

_PIXEL_SIZES = ("pixel_size", "pixel_size_um_estimated", "level0_mpp")
_SIDES = ("patch_size_src", "patch_size_level0")
_CONTRADICTORY = 0.05


def hest_section(sample: HestSample, patches: HestPatches, genes: Sequence[str]) -> AnnData:
    """Join the patches of a sample to its counts, by barcode.

    A barcode that comes more than once on either side is left out, since its patch or its counts are not known.

    The size of a level-0 pixel is, in this order: 112 µm, the side of every patch of the benchmark (224 pixels of
    0.5 µm), over the `patch_size_src` level-0 pixels that the file of patches records, or the `pixel_size` there that
    agrees with it; `pixel_size` or `pixel_size_um_estimated` in the counts' ``uns``, or in ``metadata/<sample>.json``
    beside the task's files or the tasks; the lattice of Visium's array positions. Without any of these the places in µm
    are NaN, and whatever needs them refuses.

    Parameters
    ----------
    sample
        From `read_hest_bench`.
    patches
        Its patches, opened.
    genes
        The genes to keep, in this order.

    Returns
    -------
    A section in the order of the patches: X raw counts (n_spots, n_genes), float32 in sparse rows;
    ``obsm["spatial"]``, (n_spots, 2), x, y of the centres in level-0 pixels (of the corners where the scale is not
    known); ``obsm["spatial_um"]`` the same in µm; ``obs["patch"]`` rows of `patches`; ``uns["histoflow"]`` with kind
    ``"hest_bench"``, scale and its source, pitch, and spots left out.

    Raises
    ------
    ReadError
        If the counts are missing, truncated or empty.
    CountsError
        If they are not raw counts.
    PanelMismatchError
        If they lack a gene.
    SlideMismatchError
        If patches and counts have no barcode in common.

    Warns
    -----
    DroppedSpotsWarning
        If patches have no counts, spots no patch, or barcodes are repeated.
    """
    table = _counts(sample)
    rows, of_table, dropped = _join(sample, patches, table)
    place = table.var_names.get_indexer(pd.Index(list(genes)))
    if lacking := [gene for gene, column in zip(genes, place, strict=True) if column < 0]:
        raise PanelMismatchError(
            f"{sample.counts} lacks {len(lacking)} of the task's {len(genes)} genes ({', '.join(lacking[:5])}); "
            "give the list that belongs to these samples"
        )
    section = AnnData(
        X=sp.csr_matrix(table.X, dtype=np.float32)[of_table][:, place],
        obs=pd.DataFrame({PATCH: rows}, index=pd.Index(patches.barcodes[rows], dtype=object)),
        var=pd.DataFrame(index=pd.Index(list(genes), dtype=object)),
    )
    scale = _scale(sample, patches, table)
    known: dict[str, Any] = {"section": sample.sample, "kind": "hest_bench", "slide_id": slide_id(sample.patches)}
    section.obsm[SPATIAL], section.obsm[SPATIAL_UM] = _places(patches.corners[rows], scale)
    if scale is not None:
        known |= {"mpp_x": scale.mpp_x, "mpp_y": scale.mpp_y, "mpp_source": scale.source}
        if not math.isnan(pitch := nearest_distance(section.obsm[SPATIAL_UM])):
            known["pitch_um"] = float(pitch)
    section.uns[UNS] = {**known, "dropped": dropped, "versions": {"histoflow": version("histoflow")}}
    return section


def _places(corners: NDArray[np.float64], scale: Scale | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if scale is None:
        return corners, np.full_like(corners, np.nan)
    mpp = np.array([scale.mpp_x, scale.mpp_y])
    centres = corners + PATCH_UM / mpp / 2
    return centres, centres * mpp


def _counts(sample: HestSample) -> AnnData:
    """The table of counts, checked; gene names unique."""
    table = read_anndata(sample.counts, "AnnData")
    if not table.n_obs or not table.n_vars or table.X is None:
        raise ReadError(f"{sample.counts} holds {table.n_obs} spots and {table.n_vars} genes; there is nothing to read")
    check_counts(table.X, f"{sample.sample} ({sample.counts})", genes=table.var_names)
    table.var_names = pd.Index(unique_names(table.var_names.astype(str), f"section {sample.sample}"), dtype=object)
    return table


def _join(
    sample: HestSample, patches: HestPatches, table: AnnData
) -> tuple[NDArray[np.int64], NDArray[np.int64], dict[str, int]]:
    """Rows of the patches that have counts, the rows of their counts, and how many of each were left out, and why."""
    of_patches, of_counts = pd.Index(patches.barcodes), pd.Index(table.obs_names.astype(str))
    repeated = set(of_patches[of_patches.duplicated()]) | set(of_counts[of_counts.duplicated()])
    rows = np.flatnonzero(of_patches.isin(of_counts) & ~of_patches.isin(repeated))
    if not len(rows):
        raise SlideMismatchError(
            f"sample {sample.sample}: {sample.patches} (barcodes such as {of_patches[0]}) and {sample.counts} (such as "
            f"{of_counts[0]}) have no barcode in common that comes once; give files of one sample"
        )
    ambiguous = int(of_patches.isin(repeated).sum()), int(of_counts.isin(repeated).sum())
    dropped = {
        "no_counts": len(of_patches) - len(rows) - ambiguous[0],
        "no_patch": len(of_counts) - len(rows) - ambiguous[1],
        "repeated": sum(ambiguous),
    }
    if any(dropped.values()):
        named = {
            "no_counts": "patches without counts",
            "no_patch": "spots without a patch",
            "repeated": "repeated rows",
        }
        told = ", ".join(f"{dropped[reason]} {text}" for reason, text in named.items() if dropped[reason])
        warnings.warn(f"sample {sample.sample}: left out: {told}", DroppedSpotsWarning, stacklevel=3)
    once = np.flatnonzero(~of_counts.isin(repeated))
    return rows, once[of_counts[once].get_indexer(of_patches[rows])], dropped


def _scale(sample: HestSample, patches: HestPatches, table: AnnData) -> Scale | None:
    """µm per level-0 pixel, or None where nothing tells it; see `hest_section`."""
    if told := _of_patches(patches):
        return told
    for size in (_of_uns(table.uns), *map(_of_metadata, _metadata_files(sample))):
        if size is not None and is_plausible(scale := Scale(size, size, "metadata")):
            return scale
    if SPATIAL in table.obsm and {"array_row", "array_col"} <= set(table.obs):
        places = np.asarray(table.obsm[SPATIAL], dtype=np.float64)[:, :2]
        return fit_pitch(table.obs[["array_col", "array_row"]], places, visium_step())
    return None


def _of_patches(patches: HestPatches) -> Scale | None:
    """What the file of patches records: how many level-0 pixels a patch is wide, the size of a pixel, or both.

    The width is a whole number, so that a pixel size that agrees with it is more exact; one that does not is that of
    another image.
    """
    pixel, side = patches.number(*_PIXEL_SIZES), patches.number(*_SIDES)
    by_side = None if side is None else PATCH_UM / side
    agrees = by_side is None or (pixel is not None and abs(pixel / by_side - 1) <= _CONTRADICTORY)
    size = pixel if agrees else by_side
    return None if size is None or not is_plausible(Scale(size, size, "metadata")) else Scale(size, size, "metadata")


def _of_uns(known: Any) -> float | None:
    """A pixel size in a nested record, wherever in it."""
    if not isinstance(known, dict):
        return None
    for name in _PIXEL_SIZES:
        value = known.get(name)
        if isinstance(value, int | float | np.number) and 0 < float(value) < math.inf:
            return float(value)
    return next((found for value in known.values() if (found := _of_uns(value)) is not None), None)


def _metadata_files(sample: HestSample) -> list[Path]:
    task = sample.counts.parent.parent
    return [folder / "metadata" / f"{sample.sample}.json" for folder in (task, task.parent)]


def _of_metadata(path: Path) -> float | None:
    if not path.is_file():
        return None
    try:
        return _of_uns(json.loads(path.read_text()))
    except (ValueError, RecursionError) as err:
        raise ReadError(f"{path} is not valid JSON ({err}); fetch it anew") from err
