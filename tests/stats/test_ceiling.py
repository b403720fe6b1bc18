"""Noise ceiling: near the truth where the rates are known, marked where it is not known, an upper bound by name."""

import numpy as np
import pytest

from histoflow._errors import CountsError, OptionError, ShapeError
from histoflow.datasets.expression import log_rates, plant_genes
from histoflow.stats import noise_ceiling, pearson

TARGET = 10_000.0


def library(counts, totals, depth):
    return np.log1p(counts * (TARGET / np.maximum(totals, 1.0))[:, None])


def raw(counts, totals, depth):
    return np.log1p(counts / depth)


def toy_counts(seed, n_spots):
    """Rates of the toy cohort's genes under random fields, and Poisson counts of them."""
    rng = np.random.default_rng(seed)
    genes = plant_genes(rng, ["P1"])
    rates = np.exp(log_rates(genes, "P1", rng.normal(size=(5, n_spots))))
    expected = (3000 * np.exp(0.25 * rng.standard_normal(n_spots)) * rates / rates.sum(axis=0)).T
    dispersion = genes["dispersion"].to_numpy()
    known = rng.gamma(1 / dispersion, expected * dispersion)
    return known, rng.poisson(known)


def few_counts(seed, n_spots):
    """Genes of .5 to 50 counts a spot, as real ones have."""
    rng = np.random.default_rng(seed)
    loadings = rng.normal(size=(4, 40)) * 0.4
    known = np.exp(rng.normal(size=(n_spots, 4)) @ loadings + np.linspace(np.log(0.5), np.log(50), 40))
    known *= rng.gamma(20, 1 / 20, size=(n_spots, 1))
    return known, rng.poisson(known)


@pytest.mark.parametrize("scale", [library, raw])
@pytest.mark.parametrize(("make", "most"), [(toy_counts, 0.06), (few_counts, 0.12)])
def test_counts_of_known_rate_have_the_true_ceiling(scale, make, most):
    deviations = []
    for seed in (0, 1):
        known, counts = make(seed, 500)
        found = noise_ceiling(counts, counts.sum(axis=1), scale)
        truth = pearson(scale(counts, counts.sum(axis=1), 1.0), scale(known, known.sum(axis=1), 1.0))
        assert found.stable.mean() > 0.6
        deviations.append((found.ceiling - truth)[found.stable])
    together = np.concatenate(deviations)
    assert abs(together.mean()) < 0.02
    assert np.abs(together).max() < most


def test_no_prediction_beats_it_by_more_than_its_error():
    known, counts = toy_counts(5, 400)
    found = noise_ceiling(counts, counts.sum(axis=1), raw)
    best = pearson(raw(counts, None, 1.0), raw(known, None, 1.0))
    assert ((best - found.ceiling) < 4 * found.error + 0.01)[found.stable].all()


def test_more_counts_have_a_higher_ceiling():
    known, _ = few_counts(0, 400)
    rng = np.random.default_rng(3)
    ceilings = []
    for depth in (1, 4, 16):
        counts = rng.poisson(known * depth)
        ceilings.append(np.nanmean(noise_ceiling(counts, counts.sum(axis=1), raw).ceiling))
    assert ceilings == sorted(ceilings)
    assert ceilings[2] > 0.95


def test_genes_of_pure_noise_too_few_counts_or_none_are_marked():
    rng = np.random.default_rng(0)
    counts = np.stack([rng.poisson(5.0, 300), rng.poisson(0.01, 300), np.zeros(300), rng.poisson(rng.gamma(2, 9, 300))])
    found = noise_ceiling(counts.T, counts.sum(axis=0), raw)
    assert list(found.stable) == [False, False, False, True]
    assert np.isnan(found.ceiling[2])
    assert not noise_ceiling(counts.T[:5], counts.sum(axis=0)[:5], raw).stable.any()


def test_one_seed_is_one_answer_and_counts_stay_as_they_were():
    _, counts = few_counts(0, 60)
    before = counts.copy()
    first, again, other = (noise_ceiling(counts, counts.sum(axis=1), raw, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.ceiling, again.ceiling)
    assert not np.array_equal(first.ceiling, other.ceiling, equal_nan=True)
    np.testing.assert_array_equal(counts, before)


def test_halves_of_a_linear_scale_follow_spearman_and_brown():
    rng = np.random.default_rng(0)
    counts = rng.poisson(np.exp(rng.normal(size=(20_000, 1))))
    found = noise_ceiling(counts, counts.sum(axis=1), lambda c, totals, depth: c)
    assert found.ceiling[0] == pytest.approx(np.sqrt(2 * found.agreement[0] / (1 + found.agreement[0])), abs=0.01)


@pytest.mark.parametrize(
    ("counts", "totals", "options", "error", "text"),
    [
        ([[1.5]], [2], {}, CountsError, "counts must be whole numbers of at least 0"),
        ([[-1]], [2], {}, CountsError, "counts must be whole numbers"),
        ([[3]], [2], {}, CountsError, "totals without the counts of these genes must be"),
        ([1, 2], [2], {}, ShapeError, r"got \(2,\) and \(1,\)"),
        ([[1]], [2], {"n_thinnings": 0}, OptionError, "n_thinnings is 0"),
    ],
)
def test_what_is_no_table_of_counts_is_told(counts, totals, options, error, text):
    with pytest.raises(error, match=text):
        noise_ceiling(counts, totals, raw, **options)
