"""Models that each release saved, kept with what they predicted: `python -m tests.kept_models` makes those of this one.

Data are invented and come of plain arithmetic, so that they are the same with every version of numpy. A release adds a
folder and never changes one that is there.
"""

from __future__ import annotations

import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
from anndata import AnnData
from scipy import sparse

from histoflow import models
from histoflow._keys import EMBEDDINGS, UNS

FOLDER = Path(__file__).parent / "fixtures" / "models"
PREDICTED = "predicted.json"
GENES = ("KRT8", "CD3E", "ACTB")
PANEL = GENES[:2]
N_SPOTS, N_FEATURES = 16, 4
_SMALL = models.Network(hidden_dim=8, pairwise_dim=8, n_layers=1, n_heads=2, n_components=2, n_neighbors=2)


def section(number: int) -> AnnData:
    """An invented section on a square lattice, embedded with patches and super-pixels."""
    spot, feature, gene = np.arange(N_SPOTS), np.arange(N_FEATURES), np.arange(len(GENES))
    values = np.sin(1.0 + spot[:, None] * 0.7 + feature * 1.3 + number * 2.1).astype(np.float32)
    counts = np.rint(8 + 6 * np.sin(spot[:, None] * 0.7 + gene * 1.1 + number * 2.1)).astype(np.float32)
    made = AnnData(sparse.csr_matrix(counts))
    made.var_names, made.obs_names = list(GENES), [f"S{number}-{i}" for i in spot]
    xy = np.stack([spot % 4, spot // 4], axis=1) * 200.0 + 1000
    bags = np.concatenate([values + 0.1, values - 0.1], axis=1)
    slots = {"spatial": xy / 2, "spatial_um": xy, "scatter": values, "color": values, "scatter_dense": bags}
    for slot, held in slots.items():
        made.obsm[slot] = held
    told = {"id": "a" * 12, "name": "scatter", "version": "2", "patch_um": [112.0], "licence": "BSD-3-Clause"}
    dense = {"n_features": N_FEATURES, "superpixel_um": 8.0, "n_superpixels": 2}
    embeddings = {"scatter": told, "color": told | {"name": "color"}, "scatter_dense": told | dense}
    made.uns[UNS] = {"section": f"S{number}", "slide_id": f"S{number}", "pitch_um": 200.0, EMBEDDINGS: embeddings}
    return made


def estimators() -> dict[str, models.Estimator]:
    """One of every kind that needs no weights of others, small."""
    training = models.Training(max_epochs=1, n_members=1, n_searches=1, crops_per_section=1)
    return {
        "mean": models.MeanBaseline(),
        "library_size": models.LibrarySizeBaseline(),
        "color": models.ColorBaseline(),
        "hest_fm": models.RidgeProbe(),
        "stflow": models.STFlow("paper", network=_SMALL, training=training),
        "istar": models.SubspotRegressor(training=training, hidden_dim=4, n_components=2),
        "calibrated": models.Calibrated(models.RidgeProbe()),
    }


def predicted(model: models.Estimator) -> dict[str, list[list[float]]]:
    """What a model says of one more section, to be kept beside it."""
    made = model.predict(section(9), n_samples=2)
    layers = {name: np.asarray(layer, dtype=float) for name, layer in made.layers.items()}
    return {name: values.tolist() for name, values in ({"X": np.asarray(made.X, dtype=float)} | layers).items()}


def make(folder: Path) -> None:
    """Fit every estimator, save it and write what it predicts."""
    for name, estimator in estimators().items():
        fitted = estimator.fit([section(number) for number in range(3)], panel=list(PANEL))
        fitted.save(folder / name)
        (folder / name / PREDICTED).write_text(json.dumps(predicted(fitted)) + "\n")


if __name__ == "__main__":
    target = FOLDER / version("histoflow")
    if target.exists():
        sys.exit(f"{target} is there: what a release saved is never changed")
    with tempfile.TemporaryDirectory(dir=FOLDER) as made:
        make(Path(made))
        Path(made).rename(target)
        Path(made).mkdir()
