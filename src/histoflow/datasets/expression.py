"""Genes with known drivers, and the counts a spot array would measure of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from histoflow.datasets.arrays import SpotArray
from histoflow.datasets.fields import sample, smooth_noise
from histoflow.datasets.tissue import FIELDS, Tissue

_FAMILIES = {"texture": ("TEX", 16), "color": ("COL", 16), "neighborhood": ("NBR", 16), "nothing": ("NIL", 12)}
_FILTERED = {"MT-CO1": 1.2, "MT-ND4": 0.8, "RPL3": 0.9, "RPS6": 0.7, "LOW01": -7.0}
"""Genes that a panel leaves out, with their log base rate: mitochondrial, ribosomal, too rarely detected."""


def plant_genes(rng: np.random.Generator, patients: Sequence[str]) -> pd.DataFrame:
    """Draw the genes: what drives each, how strongly, and by how much patients differ.

    Parameters
    ----------
    rng
        Source of randomness.
    patients
        Ids of the patients.

    Returns
    -------
    One row per gene: `driver` (texture, color, neighborhood or nothing), `base` (natural log of the rate),
    `dispersion` (of the negative binomial), one column of loadings for each of `FIELDS`, and one `offset_<patient>`
    for each patient, both in natural log units.
    """
    kinds = {f"{stem}{i + 1:02d}": driver for driver, (stem, n) in _FAMILIES.items() for i in range(n)}
    genes = pd.DataFrame({"driver": pd.Series({**kinds, **dict.fromkeys(_FILTERED, "nothing")})})
    genes.index.name = "gene"
    genes["base"] = rng.normal(0, 0.35, len(genes))
    genes["dispersion"] = 0.09
    filtered = list(_FILTERED)
    genes.loc[filtered, "base"] = list(_FILTERED.values())
    # As variable as driven genes, so that only the rule on names keeps them out of a panel.
    genes.loc[filtered[:-1], "dispersion"] = 0.5
    genes[list(FIELDS)] = _loadings(genes["driver"], rng)
    for patient in patients:
        genes[f"offset_{patient}"] = rng.normal(0, 0.15, len(genes))
    return genes


def _loadings(drivers: pd.Series, rng: np.random.Generator) -> np.ndarray:
    """Loadings, shape (n_genes, n_fields); each family is up in one half of its genes and down in the other."""
    loadings = pd.DataFrame(0.0, index=drivers.index, columns=list(FIELDS))
    strength = rng.uniform(0.45, 0.7, len(drivers)) * np.where(np.arange(len(drivers)) % 2, -1, 1)
    mix = rng.uniform(-0.35, 0.35, len(drivers)) + np.where(np.arange(len(drivers)) % 4 < 2, 0.0, np.pi / 2)
    texture = drivers == "texture"
    loadings.loc[texture, "cellularity"] = (strength * np.cos(mix))[texture]
    loadings.loc[texture, "fibres"] = (strength * np.sin(mix))[texture]
    for driver, field in (("color", "eosin"), ("neighborhood", "niche")):
        loadings.loc[drivers == driver, field] = strength[drivers == driver]
    return loadings.to_numpy()


def log_rates(genes: pd.DataFrame, patient: str, fields: np.ndarray) -> np.ndarray:
    """Natural log of every gene's rate.

    Parameters
    ----------
    genes
        As `plant_genes` returns them.
    patient
        Whose offsets apply.
    fields
        Latent fields, shape (n_fields, ...), in the order of `FIELDS`.

    Returns
    -------
    Shape (n_genes, ...); differences between places and between genes mean something, the zero does not.
    """
    constant = (genes["base"] + genes[f"offset_{patient}"]).to_numpy()
    rates: np.ndarray = np.tensordot(genes[list(FIELDS)].to_numpy(), fields, axes=1)
    rates += constant.reshape(-1, *[1] * (fields.ndim - 1))
    return rates


def draw_counts(
    genes: pd.DataFrame,
    spots: SpotArray,
    tissue: Tissue,
    *,
    patient: str,
    mean_counts: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Counts of one section: negative binomial around the mean rate inside each spot times its library size.

    Parameters
    ----------
    genes
        As `plant_genes` returns them.
    spots
        Where is measured.
    tissue
        What is measured.
    patient
        Whose offsets apply.
    mean_counts
        Total counts of a typical spot; more where there are more cells, and drifting over the slide.
    rng
        Source of randomness.

    Returns
    -------
    Counts, shape (n_spots, n_genes), int32.
    """
    fields = np.stack([sample(field, spots.points()) for field in tissue.fields])
    rates = np.exp(log_rates(genes, patient, fields)).mean(axis=-1)
    drift = sample(smooth_noise(rng, tissue.depth.shape, 30), spots.points()).mean(axis=1)
    cells = fields[FIELDS.index("cellularity")].mean(axis=-1)
    log_library = 0.12 * cells + 0.15 * drift + 0.18 * rng.standard_normal(len(cells))
    expected = (mean_counts * np.exp(log_library) * rates / rates.sum(axis=0)).T
    dispersion = genes["dispersion"].to_numpy()
    counts: np.ndarray = rng.poisson(rng.gamma(1 / dispersion, expected * dispersion)).astype(np.int32)
    return counts
