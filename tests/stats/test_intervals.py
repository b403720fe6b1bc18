"""Intervals: quantiles as the contract writes them, coverage by counting, CRPS as the closed form of a Gaussian."""

import numpy as np
import pytest
from scipy.stats import norm

from histoflow._errors import NotFiniteError, OptionError, ShapeError
from histoflow.stats import central_levels, coverage, crps, interval_width, predictive_quantiles

RNG = np.random.default_rng(0)
MEAN, SCALE = RNG.gamma(2.0, size=(30, 4)), RNG.uniform(0.2, 1.0, size=(30, 4))
LEVELS = np.array([0.05, 0.25, 0.5, 0.75, 0.95])
RESIDUALS = np.sort(RNG.normal(size=(4, 5)), axis=1)


def quantiles(wanted, **changed):
    about = {"mean": MEAN, "scale": SCALE, "residual_quantiles": RESIDUALS, "levels": LEVELS} | changed
    return predictive_quantiles(*about.values(), wanted)


def test_a_quantile_is_the_mean_plus_the_scaled_residual_one_and_not_negative():
    found = quantiles(LEVELS)
    assert found.shape == (5, 30, 4)
    for level, spot, gene in [(0, 3, 1), (2, 29, 0), (4, 11, 3)]:
        wanted = MEAN[spot, gene] + SCALE[spot, gene] * RESIDUALS[gene, level]
        assert found[level, spot, gene] == pytest.approx(max(0.0, wanted))
    low = quantiles([0.05], mean=np.zeros_like(MEAN))
    assert (low == 0).any()
    assert (low >= 0).all()


def test_levels_in_between_are_linear_and_beyond_the_last_they_stay():
    mean = np.full_like(MEAN, 9.0)  # far from the floor
    at = quantiles(LEVELS, mean=mean)
    np.testing.assert_allclose(quantiles([0.15], mean=mean)[0], (at[0] + at[1]) / 2)
    np.testing.assert_array_equal(quantiles([0.0, 0.01, 1.0], mean=mean), at[[0, 0, 4]])


def test_a_central_interval_leaves_the_same_on_both_sides():
    assert central_levels(0.9) == (pytest.approx(0.05), pytest.approx(0.95))
    for level in (0, 1, np.nan):
        with pytest.raises(OptionError, match="level must be between 0 and 1"):
            central_levels(level)


def test_coverage_counts_what_lies_inside_ends_included():
    measured = np.array([[0.0, 5.0], [1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    np.testing.assert_array_equal(coverage(measured, measured * 0 + 1, measured * 0 + 2), [0.5, 0.0])
    np.testing.assert_array_equal(coverage(measured, measured, measured), [1.0, 1.0])


def test_true_intervals_cover_their_level():
    truth = MEAN[0] + RNG.normal(size=(20_000, 4))
    lower, upper = (MEAN[0] + np.full_like(truth, norm.ppf(q)) for q in central_levels(0.8))
    np.testing.assert_allclose(coverage(truth, lower, upper), 0.8, atol=0.012)
    np.testing.assert_allclose(interval_width(lower, upper), 2 * norm.ppf(0.9))


def test_crps_of_a_gaussian_is_the_closed_form():
    levels = np.arange(0.5, 400) / 400
    measured = np.array([[-2.0], [0.3], [1.0], [4.0]])
    spread = np.array([[1.0], [0.5], [2.0], [1.5]])
    z = measured / spread
    closed = spread * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi))
    found = crps(measured, norm.ppf(levels)[:, None, None] * spread, levels)
    np.testing.assert_allclose(found, [closed.mean()], rtol=2e-3)


def test_crps_of_a_point_is_its_absolute_error():
    np.testing.assert_allclose(
        crps(MEAN, np.tile(SCALE, (3, 1, 1)), [0.1, 0.5, 0.9]), np.abs(MEAN - SCALE).mean(axis=0)
    )


def test_crps_is_best_for_the_true_distribution():
    truth = RNG.normal(size=(5000, 1))
    levels = np.arange(1, 40) / 40
    scores = {
        (shift, width): crps(truth, np.tile((shift + width * norm.ppf(levels))[:, None, None], (1, 5000, 1)), levels)[0]
        for shift in (-0.5, 0.0, 0.5)
        for width in (0.5, 1.0, 2.0)
    }
    assert min(scores, key=scores.get) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: quantiles([0.5], scale=SCALE[:, :3]), ShapeError, r"got \(30, 4\) and \(30, 3\)"),
        (lambda: quantiles([0.5], residual_quantiles=RESIDUALS.T), ShapeError, r"= \(4, 5\), got \(5, 4\)"),
        (lambda: quantiles([0.5], scale=SCALE - 0.5), OptionError, "scale must be above 0, but"),
        (lambda: quantiles([0.5], levels=LEVELS[::-1]), OptionError, "levels must increase between 0 and 1"),
        (lambda: quantiles([1.5]), OptionError, "wanted must be levels between 0 and 1"),
        (lambda: quantiles([0.5], mean=np.full_like(MEAN, np.nan)), NotFiniteError, "mean holds 120 NaN"),
        (lambda: coverage(MEAN, SCALE, MEAN[:3]), ShapeError, r"got \(30, 4\) and \(3, 4\)"),
        (lambda: coverage(MEAN[:3], MEAN, MEAN), ShapeError, r"measured has shape \(3, 4\)"),
        (lambda: interval_width([[1.0]], [[0.0]]), OptionError, "lower lies above upper in 1 of 1 intervals"),
        (lambda: interval_width(MEAN[:0], MEAN[:0]), ShapeError, "with at least one spot"),
        (lambda: crps(MEAN, [MEAN, MEAN], [0.5]), ShapeError, r"= \(1, \*\(30, 4\)\)"),
        (lambda: crps(MEAN, [MEAN], [1.0]), OptionError, "ends excluded, got \\[1.0\\]"),
    ],
)
def test_what_does_not_fit_is_told(call, error, text):
    with pytest.raises(error, match=text):
        call()
