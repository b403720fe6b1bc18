"""Spread of the residuals, and the ranks of conformal quantiles."""

import numpy as np
import pytest
from scipy.stats import binom

from histoflow.models.residuals import HIGHEST_LEVEL, LEVELS, ResidualScale, conformal_quantiles
from histoflow.stats.intervals import central_levels, checked_levels


def toy(seed: int, n_spots: int, slope: float) -> tuple[np.ndarray, np.ndarray]:
    """Predictions, and Gaussian residuals whose mean size is 0.5 + slope × (prediction - 2)."""
    rng = np.random.default_rng(seed)
    predicted = rng.uniform(1, 3, size=(n_spots, 5)).astype(np.float32)
    size = 0.5 + slope * (predicted - 2)
    return predicted, rng.normal(size=predicted.shape) * size * np.sqrt(np.pi / 2)


def test_a_spread_that_grows_is_followed():
    predicted, residuals = toy(0, 4000, slope=0.3)
    scale = ResidualScale.fit(predicted, residuals)
    np.testing.assert_allclose(scale.slope, 0.3, atol=0.05)
    np.testing.assert_allclose(scale(np.full((1, 5), 2.8)), 0.5 + 0.3 * 0.8, atol=0.04)
    np.testing.assert_allclose(scale.level, np.abs(residuals).mean(axis=0))


def test_a_spread_that_does_not_grow_stays_flat():
    predicted, residuals = toy(1, 4000, slope=0.0)
    slope = ResidualScale.fit(predicted, residuals).slope
    assert np.abs(slope).max() < 0.03
    many = [ResidualScale.fit(*toy(seed, 200, slope=0.0)).slope for seed in range(40)]
    # A least-squares slope is within its standard error in two of three cases, and is then worth nothing.
    assert np.mean(np.concatenate(many) == 0) == pytest.approx(0.68, abs=0.1)


def test_a_spread_is_never_far_below_its_mean():
    predicted, residuals = toy(0, 4000, slope=0.24)
    scale = ResidualScale.fit(predicted, residuals)
    far = scale(np.full((1, 5), -50.0))
    np.testing.assert_allclose(far[0], 0.25 * scale.level)


def test_residuals_of_nothing_and_a_constant_prediction_give_a_spread():
    scale = ResidualScale.fit(np.ones((20, 2), np.float32), np.zeros((20, 2)))
    assert (scale(np.ones((3, 2))) > 0).all()
    np.testing.assert_array_equal(scale.slope, 0)


@pytest.mark.parametrize("n_spots", [19, 199, 999])
def test_quantiles_are_the_scores_of_the_ranks_that_finite_samples_ask_for(n_spots):
    ranks = np.random.default_rng(0).permutation(np.arange(1, n_spots + 1)).astype(float)
    found = conformal_quantiles(ranks[:, None])[0]
    assert found.dtype == np.float32
    for level, rank in zip(LEVELS, found, strict=True):
        exact = round(level * (n_spots + 1), 6)
        wanted = np.floor(exact) if level < 0.5 else np.ceil(exact)
        assert rank == np.clip(wanted, 1, n_spots)


def test_quantiles_are_of_each_gene_and_increase():
    scores = np.random.default_rng(0).normal(size=(300, 4)) * [1, 2, 3, 4]
    found = conformal_quantiles(scores)
    assert found.shape == (4, len(LEVELS))
    assert (np.diff(found, axis=1) >= 0).all()
    np.testing.assert_array_equal(conformal_quantiles(scores[:, [2]])[0], found[2])
    np.testing.assert_array_equal(conformal_quantiles(scores[::-1]), found)


def test_the_widest_interval_is_between_two_of_the_levels():
    np.testing.assert_array_equal(checked_levels(LEVELS), LEVELS)
    np.testing.assert_allclose(central_levels(HIGHEST_LEVEL), (LEVELS[0], LEVELS[-1]))


@pytest.mark.parametrize(("low", "high"), [(0.05, 0.95), (0.25, 0.75), (0.005, 0.995)])
def test_exchangeable_spots_are_covered_at_the_level(low, high):
    n_genes, n_new = 2000, 1
    rng = np.random.default_rng(int(1000 * high))
    known, new = rng.standard_t(3, size=(299, n_genes)), rng.standard_t(3, size=(n_new, n_genes))
    quantiles = conformal_quantiles(known)
    places = [int(np.flatnonzero(np.isclose(LEVELS, level))[0]) for level in (low, high)]
    inside = (new >= quantiles[:, places[0]]) & (new <= quantiles[:, places[1]])
    # One new spot per gene, genes independent: a binomial count, between the level and a rank on each side more.
    least, most = binom.ppf(0.001, n_genes, high - low), binom.ppf(0.999, n_genes, high - low + 2 / 300)
    assert least <= inside.sum() <= most
