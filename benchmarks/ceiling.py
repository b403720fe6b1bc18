"""How near the noise ceiling is to the truth, where the rates are known: `python benchmarks/ceiling.py DATA`.

Counts are drawn from the rates of the toy cohort's genes, and from those of four real sections, neighbours averaged;
the truth is the correlation of the counts with their own rates. DATA is the folder of the real sections.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from heldout import MIN_COUNTS, write_manifest

from histoflow import io
from histoflow._keys import SPATIAL_UM
from histoflow.datasets.expression import log_rates, plant_genes
from histoflow.pp import choose_panel
from histoflow.pp.expression import Normalize, keep_spots, library_size, panel_counts, to_log1p
from histoflow.pp.graph import neighbors_within
from histoflow.stats import noise_ceiling, pearson

RADIUS_UM, N_DRAWS = 300.0, 5
Rates = tuple[np.ndarray, np.ndarray]


def toy_rates(n_spots: int = 250) -> Iterator[Rates]:
    """Rates of every toy gene under random fields, (n_spots, n_genes), and none of others."""
    for seed in range(4):
        rng = np.random.default_rng(seed)
        genes = plant_genes(rng, ["P1"])
        rates = np.exp(log_rates(genes, "P1", rng.normal(size=(5, n_spots))))
        expected = (3000 * np.exp(0.25 * rng.standard_normal(n_spots)) * rates / rates.sum(axis=0)).T
        dispersion = genes["dispersion"].to_numpy()
        yield rng.gamma(1 / dispersion, expected * dispersion), np.zeros(n_spots)


def real_rates(data: Path) -> Iterator[Rates]:
    """Rates of a panel of real genes, and of all others together, as the mean over the spots around."""
    with tempfile.TemporaryDirectory() as folder:
        sections = [keep_spots(s, min_counts=MIN_COUNTS) for s in io.read_cohort(write_manifest(data, Path(folder)))]
    panel = choose_panel(sections)
    for section in sections:
        near = neighbors_within(section.obsm[SPATIAL_UM], RADIUS_UM).toarray() + np.eye(section.n_obs)
        near /= near.sum(axis=1, keepdims=True)
        counts = panel_counts(section, panel)
        yield near @ counts, near @ (library_size(section) - counts.sum(axis=1))


def deviations(rates: list[Rates], normalize: Normalize) -> dict[str, float]:
    """Stable ceilings minus the truth, and how the standard errors do."""

    def scaled(counts: np.ndarray, totals: np.ndarray, depth: float) -> np.ndarray:
        return to_log1p(counts / depth, totals / depth, normalize)

    rng, off, errors, stable = np.random.default_rng(0), [], [], []
    for known, others in rates:
        for seed in range(N_DRAWS):
            counts = rng.poisson(known)
            totals = (counts.sum(axis=1) + rng.poisson(others)).astype(float)
            found = noise_ceiling(counts, totals, scaled, seed=seed)
            truth = pearson(scaled(counts, totals, 1.0), scaled(known, known.sum(axis=1) + others, 1.0))
            off.append((found.ceiling - truth)[found.stable])
            errors.append(found.error[found.stable])
            stable.append(found.stable.mean())
    each = np.concatenate(off)
    told = {"mean": each.mean(), "sd": each.std(), "most": np.abs(each).max(), "stable": np.mean(stable)}
    return {**told, "sd_in_standard_errors": (each / np.concatenate(errors)).std()}


def main(data: Path) -> None:
    of = {"toy": list(toy_rates()), "real": list(real_rates(data))}
    scales: tuple[Normalize, ...] = ("library", "none")
    told = {f"{name}, {scale}": deviations(rates, scale) for name, rates in of.items() for scale in scales}
    print(
        json.dumps({name: {key: round(float(x), 4) for key, x in one.items()} for name, one in told.items()}, indent=1)
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
