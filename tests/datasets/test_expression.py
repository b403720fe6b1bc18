"""Genes and counts: balanced families, rates by their formula, counts with the moments they should have."""

import numpy as np
import pytest

from histoflow.datasets.arrays import visium_array
from histoflow.datasets.expression import draw_counts, log_rates, plant_genes
from histoflow.datasets.tissue import FIELDS, grow

DRIVEN_BY = {
    "texture": {"cellularity", "fibres"},
    "color": {"eosin"},
    "neighborhood": {"niche"},
    "nothing": set(),
}


@pytest.fixture(scope="module")
def genes():
    return plant_genes(np.random.default_rng(0), ["P1", "P2"])


def test_every_family_loads_on_its_fields_and_no_other(genes):
    assert genes.groupby("driver").size().to_dict() == {"texture": 16, "color": 16, "neighborhood": 16, "nothing": 17}
    for driver, fields in DRIVEN_BY.items():
        loadings = genes.loc[genes.driver == driver, list(FIELDS)]
        assert set(loadings.columns[(loadings != 0).any()]) == fields
        if fields:
            assert (np.hypot.reduce(loadings.to_numpy(), axis=1) > 0.44).all()


@pytest.mark.parametrize(("driver", "field"), [("color", "eosin"), ("neighborhood", "niche")])
def test_half_of_a_family_goes_up_and_half_goes_down(genes, driver, field):
    assert (genes.loc[genes.driver == driver, field] > 0).sum() == 8


def test_log_rate_is_base_plus_offset_plus_loadings_times_fields(genes):
    fields = np.random.default_rng(1).normal(size=(len(FIELDS), 3, 4))
    rates = log_rates(genes, "P2", fields)
    gene = genes.loc["TEX05"]
    expected = gene["base"] + gene["offset_P2"] + sum(gene[name] * fields[i] for i, name in enumerate(FIELDS))
    np.testing.assert_allclose(rates[genes.index.get_loc("TEX05")], expected.astype(float))


def test_counts_have_the_library_the_share_and_the_spread_that_were_planted(genes):
    tissue = grow(np.random.default_rng(2), (1600, 1600), 700)
    spots = visium_array((1600, 1600))
    flat = genes.assign(**dict.fromkeys(FIELDS, 0.0))
    draws = [
        draw_counts(flat, spots, tissue, patient="P1", mean_counts=3000.0, rng=np.random.default_rng(seed))
        for seed in range(12)
    ]
    counts = np.concatenate(draws).astype(float)
    total = counts.sum(axis=1)
    assert np.median(total) == pytest.approx(3000, rel=0.05)
    rates = np.exp(flat["base"] + flat["offset_P1"]).to_numpy()
    np.testing.assert_allclose(counts.sum(axis=0) / counts.sum(), rates / rates.sum(), rtol=0.05, atol=1e-5)
    share = counts[:, 0] / total
    expected = 0.09 + (1 / counts[:, 0].mean()) * np.mean(total.mean() / total)
    assert share.var() / share.mean() ** 2 == pytest.approx(expected, rel=0.1)


def test_the_rare_gene_is_detected_in_less_than_a_tenth_of_spots(genes):
    tissue = grow(np.random.default_rng(2), (1600, 1600), 700)
    counts = draw_counts(
        genes, visium_array((1600, 1600)), tissue, patient="P1", mean_counts=4000.0, rng=np.random.default_rng(0)
    )
    assert counts.dtype == np.int32
    assert 0 < (counts[:, genes.index.get_loc("LOW01")] > 0).mean() < 0.1
