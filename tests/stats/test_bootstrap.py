"""Bootstrap of a mean: around it, wider where values differ more, the same for the same seed."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from histoflow._errors import NotFiniteError, OptionError, ShapeError
from histoflow.stats import bootstrap_mean

VALUES = np.random.default_rng(0).normal(0.4, 0.1, 12)


def test_it_is_scipys_percentile_interval():
    oracle = scipy_stats.bootstrap(
        (VALUES,),
        np.mean,
        confidence_level=0.8,
        n_resamples=20_000,
        method="percentile",
        random_state=np.random.default_rng(1),
    ).confidence_interval
    np.testing.assert_allclose(bootstrap_mean(VALUES, level=0.8, n_resamples=20_000), oracle, atol=2e-3)


def test_it_lies_around_the_mean_and_grows_with_the_spread():
    lower, upper = bootstrap_mean(VALUES)
    assert lower < VALUES.mean() < upper
    wide = bootstrap_mean(VALUES.mean() + 3 * (VALUES - VALUES.mean()))
    assert wide[1] - wide[0] == pytest.approx(3 * (upper - lower))
    assert bootstrap_mean([0.3] * 6) == (pytest.approx(0.3), pytest.approx(0.3))


def test_one_seed_is_one_interval():
    assert bootstrap_mean(VALUES, seed=3) == bootstrap_mean(VALUES, seed=3) != bootstrap_mean(VALUES, seed=4)


@pytest.mark.parametrize(
    ("values", "options", "error", "text"),
    [
        ([], {}, ShapeError, "at least one unit"),
        ([0.1, np.nan], {}, NotFiniteError, "holds 1 NaN or infinite of 2"),
        ([0.1], {"level": 1.0}, OptionError, "level must be between 0 and 1"),
        ([0.1], {"n_resamples": 0}, OptionError, "n_resamples is 0"),
    ],
)
def test_what_cannot_be_drawn_is_told(values, options, error, text):
    with pytest.raises(error, match=text):
        bootstrap_mean(values, **options)
