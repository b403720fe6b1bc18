"""Small invented sections that carry embeddings, without slides."""

import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

from histoflow._keys import EMBEDDINGS, UNS

GENES = [f"G{i}" for i in range(6)]
WEIGHTS = np.random.default_rng(7).normal(size=(12, len(GENES)))


def make_section(name: str, seed: int, n_spots: int = 49, embedding_id: str = "a" * 12) -> AnnData:
    """A square lattice of spots whose counts follow their embeddings."""
    rng = np.random.default_rng(seed)
    side = int(np.ceil(np.sqrt(n_spots)))
    xy = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2)[:n_spots] * 200.0 + 1000
    features = rng.normal(size=(n_spots, 12)).astype(np.float32)
    counts = rng.poisson(np.exp(2 + 0.4 * features @ WEIGHTS / 2)).astype(np.float32)
    section = AnnData(sparse.csr_matrix(counts))
    section.var_names, section.obs_names = GENES, [f"{name}-{i}" for i in range(n_spots)]
    slots = {"spatial": xy / 2, "spatial_um": xy, "scatter": features, "color": features[:, :5].copy()}
    slots["scatter_dense"] = superpixels(features, seed)
    for slot, values in slots.items():
        section.obsm[slot] = values
    made = {
        "id": embedding_id,
        "name": "scatter",
        "version": "2",
        "patch_um": [112.0, 224.0],
        "licence": "BSD-3-Clause",
    }
    gigapath = made | {"name": "gigapath", "n_features": 1536, "patch_um": [112.0], "standardize": False}
    section.obsm["gigapath"] = rng.normal(size=(n_spots, 1536)).astype(np.float32)
    section.uns[UNS] = {
        "section": name,
        "slide_id": name,
        "pitch_um": 200.0,
        EMBEDDINGS: {
            "scatter": made,
            "color": made | {"name": "color"},
            "gigapath": gigapath,
            "scatter_dense": made | {"n_features": features.shape[1], "superpixel_um": 8.0, "n_superpixels": 4},
        },
    }
    return section


def superpixels(features: np.ndarray, seed: int, n_superpixels: int = 4) -> np.ndarray:
    """Bags whose mean is `features`, (n_spots, n_superpixels × n_features)."""
    noise = np.random.default_rng(seed + 100).normal(size=(len(features), n_superpixels, features.shape[1]))
    bags = features[:, None] + noise - noise.mean(axis=1, keepdims=True)
    return bags.reshape(len(features), -1).astype(np.float32)


@pytest.fixture
def sections() -> list[AnnData]:
    return [make_section(f"S{i}", seed=i) for i in range(4)]
