"""Super-resolution without toy truth: `python benchmarks/subspot.py DATA OUT`.

On every section C2–C5 of HER2ST, four spots of a 2 × 2 square are pooled into one (only whole squares; counts summed).
Predictors learn from the pooled spots and are scored at the single spots: Pearson r over the spots with at least 500
counts, mean over the 50 genes of the panel (by variance, chosen from the pooled spots that are known), log1p of counts
per 10,000. Two cases: every pooled spot is known; or a quarter of them, one spatial block, is held out and scored (the
mean over the four blocks). Two trainings: the section alone, or with the pooled spots of the other three beside it.

- bicubic: third-order interpolation of the pooled spots, missing squares taken from the nearest one;
- hest_fm: ridge on the mean embedding of the four, applied to the embedding of each spot;
- istar: weakly supervised, a pooled spot being the super-pixels of its four spots, then brought into agreement with the
  pooled counts that are known; `istar, image alone` without that last step.
"""

import json
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from anndata import AnnData
from heldout import MIN_COUNTS, write_manifest
from scipy.ndimage import distance_transform_edt, map_coordinates

from histoflow import io, models, workflow
from histoflow._errors import HistoflowWarning
from histoflow._keys import DENSE, EMBEDDINGS, SPATIAL, SPATIAL_UM, UNS, facts
from histoflow.models.measured import fit_measurement
from histoflow.pp import Panel, choose_panel
from histoflow.pp.expression import library_size, panel_log1p
from histoflow.pp.lattice import Lattice
from histoflow.stats.metrics import mean_with_nan_as_zero, pearson
from histoflow.stats.splits import spatial_blocks

N_GENES, N_BLOCKS = 50, 4
SLOT = "scatter" + DENSE


@dataclass(frozen=True)
class Pooled:
    """A section, its pooled version, and which spots (n_pooled, 4) and squares (n_pooled, 2) the pooled ones are."""

    single: AnnData
    pooled: AnnData
    members: np.ndarray
    squares: np.ndarray
    lattice: Lattice
    cells: np.ndarray

    def known(self, rows: np.ndarray) -> "Pooled":
        """With only some of the pooled spots."""
        return Pooled(
            self.single, self.pooled[rows].copy(), self.members[rows], self.squares[rows], self.lattice, self.cells
        )


def pool(section: AnnData, index: np.ndarray) -> Pooled:
    """Pool spots by their array index (n_spots, 2), two by two."""
    squares, square_of, size = np.unique(index // 2, axis=0, return_inverse=True, return_counts=True)
    whole = np.flatnonzero(size == 4)
    members = np.stack([np.flatnonzero(square_of.ravel() == square) for square in whole])
    bags = np.asarray(section.obsm[SLOT])[members]
    pooled = AnnData(sp.csr_matrix(sum(section.X[members[:, k]] for k in range(4))), var=section.var.copy())
    pooled.obs_names = [f"{x}x{y}" for x, y in squares[whole]]
    for slot in (SPATIAL, SPATIAL_UM, "scatter"):
        pooled.obsm[slot] = np.asarray(section.obsm[slot])[members].mean(axis=1)
    pooled.obsm[SLOT] = bags.reshape(len(bags), -1)
    known = facts(section)
    pooled.uns[UNS] = {**known, "pitch_um": 2 * float(known["pitch_um"])}
    mpp = float(known["mpp_x"]), float(known["mpp_y"])
    width, height = known["slide_size_px"]
    lattice = Lattice.over((width, height), mpp)
    cells = lattice.nearest(section.obsm[SPATIAL], int(known[EMBEDDINGS][SLOT]["n_superpixels"]))
    return Pooled(section, pooled, members, squares[whole], lattice, cells)


def bicubic(part: Pooled, log1p: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Interpolate pooled expression (n_pooled, n_genes) to single spots by their array index."""
    first = part.squares.min(axis=0)
    lattice = np.full((*(part.squares.max(axis=0) - first + 1), log1p.shape[1]), np.nan)
    lattice[tuple((part.squares - first).T)] = log1p
    nearest = distance_transform_edt(np.isnan(lattice[..., 0]), return_distances=False, return_indices=True)
    filled = lattice[tuple(nearest)]
    at = ((index - 0.5) / 2 - first).T
    return np.stack([map_coordinates(plane, at, order=3, mode="nearest") for plane in np.moveaxis(filled, -1, 0)], 1)


def istar(model: models.SubspotRegressor, part: Pooled, log1p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Single spots by the image alone, and in agreement with the pooled spots: (n_spots, n_genes), log1p."""
    n_spots, n_superpixels = part.cells.shape
    bags = np.asarray(part.single.obsm[SLOT], dtype=np.float32).reshape(n_spots * n_superpixels, -1)
    counts = model.superpixels(bags).mean(axis=0).reshape(n_spots, n_superpixels, -1)
    features = bags.reshape(n_spots, n_superpixels, -1)
    pooled = [x[part.members].reshape(len(part.members), -1, *x.shape[2:]) for x in (part.cells, features, counts)]
    fitted = fit_measurement(part.lattice, *pooled, log1p, pitch_um=float(facts(part.pooled)["pitch_um"]))
    adjusted = fitted.adjust(counts.reshape(-1, counts.shape[-1]), part.cells.ravel(), bags).reshape(counts.shape)
    return np.log1p(counts.mean(axis=1)), np.log1p(adjusted.mean(axis=1))


def predictions(part: Pooled, beside: list[AnnData], index: np.ndarray, panel: Panel) -> dict[str, np.ndarray]:
    """Single spots of a section by every predictor, from its known pooled spots and other sections."""
    train = [part.pooled, *beside]
    log1p = panel_log1p(part.pooled, panel, "library")
    probe = models.RidgeProbe().fit(train, panel=panel)
    image, agreeing = istar(models.SubspotRegressor().fit(train, panel=panel), part, log1p)
    return {
        "bicubic": bicubic(part, log1p, index),
        "hest_fm": np.asarray(probe.predict(part.single).X),
        "istar, image alone": image,
        "istar": agreeing,
    }


def scores(part: Pooled, beside: list[AnnData], index: np.ndarray, held_out: np.ndarray | None) -> dict[str, float]:
    """Mean r at the single spots of all pooled ones, or of those held out."""
    everything = np.arange(len(part.members))
    known = part if held_out is None else part.known(np.setdiff1d(everything, held_out))
    panel = choose_panel([known.pooled, *beside], N_GENES)
    spots = part.members[everything if held_out is None else held_out].ravel()
    spots = spots[library_size(part.single)[spots] >= MIN_COUNTS]
    measured = panel_log1p(part.single, panel, "library")[spots]
    found = predictions(known, beside, index, panel)
    return {name: mean_with_nan_as_zero(pearson(measured, values[spots])).mean for name, values in found.items()}


def mean_of(parts: list[dict[str, float]]) -> dict[str, float]:
    """Mean of every entry."""
    return {name: float(np.mean([part[name] for part in parts])) for name in parts[0]}


def compare(pooled: list[Pooled], indices: list[np.ndarray]) -> dict[str, dict[str, list[float]]]:
    """Every case and training: mean r of every predictor, section by section."""
    told: dict[str, dict[str, list[float]]] = {}
    for training in ("section alone", "with the others"):
        for case in ("all pooled spots known", "a quarter held out in blocks"):
            rows = []
            for part, index in zip(pooled, indices, strict=True):
                beside = [other.pooled for other in pooled if other is not part] if training != "section alone" else []
                blocks = spatial_blocks(part.pooled.obsm[SPATIAL_UM], N_BLOCKS, buffer_um=0.0)
                folds = [None] if case.startswith("all") else [test for _, test in blocks]
                rows.append(mean_of([scores(part, beside, index, fold) for fold in folds]))
            told[f"{case}, {training}"] = {name: [round(row[name], 4) for row in rows] for name in rows[0]}
            print(f"{case}, {training}")
            for name, values in told[f"{case}, {training}"].items():
                print(
                    f"  {name:20s} {np.mean(values):.3f}   {' '.join(f'{value:.3f}' for value in values)}", flush=True
                )
    return told


def main(data: Path, out: Path) -> None:
    """Write every figure to OUT/subspot.json, and print both tables."""
    warnings.simplefilter("ignore", HistoflowWarning)
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    sections = list(io.read_cohort(write_manifest(data, out)))
    workflow.embed_for(sections, [models.RidgeProbe(), models.SubspotRegressor()])
    indices = [np.array([name.split("x") for name in section.obs_names], dtype=int) for section in sections]
    told = compare([pool(s, index) for s, index in zip(sections, indices, strict=True)], indices)
    (out / "subspot.json").write_text(json.dumps(told, indent=2))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
