"""Ridge by its normal equations, against scikit-learn's and against the one that turns features onto their axes."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from histoflow.models.inner import InnerFolds
from histoflow.models.linear import RidgePath
from histoflow.models.normal_equations import NormalEquations, fit_strength
from histoflow.models.ridge_folds import DEFAULT_ALPHA, fit_grouped_ridge

ALPHAS = np.logspace(-2, 3, 6)


@pytest.fixture(params=[(60, 9), (40, 70)], ids=["tall", "wide"])
def data(request):
    n_spots, n_features = request.param
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(n_spots, n_features)) * np.geomspace(3, 0.1, n_features) + 5).astype(np.float32)
    y = (x @ rng.normal(size=(n_features, 4)) + rng.normal(size=(n_spots, 4)) * 3).astype(np.float32)
    y[:, 3] = 2
    return x, y


def folds(n_spots, buffer=0):
    rows = np.arange(n_spots)
    kept = [rows[(rows % 3 != part) & ((rows + buffer) % 3 != part)] for part in range(3)]
    return InnerFolds("thirds", tuple((train, rows[rows % 3 == part]) for part, train in enumerate(kept)))


@pytest.mark.parametrize("alpha", [0.1, 30.0])
def test_a_head_is_the_ridge_of_scikit_learn(data, alpha):
    x, y = data
    (head,) = NormalEquations.of(x, y).heads([alpha])
    oracle = Ridge(alpha=alpha, solver="svd").fit(x.astype(float), y.astype(float))
    np.testing.assert_allclose(head.predict(x + 1), oracle.predict(x.astype(float) + 1), atol=2e-3)


def test_rows_taken_out_leave_what_the_others_give(data):
    x, y = data
    (head,) = NormalEquations.of(x, y).without(x[:7], y[:7]).heads([1.0])
    (wanted,) = NormalEquations.of(x[7:], y[7:]).heads([1.0])
    np.testing.assert_allclose(head.predict(x), wanted.predict(x), atol=1e-4)


@pytest.mark.parametrize("buffer", [0, 1])
def test_the_strength_is_the_one_that_the_ridge_on_axes_chooses(data, buffer):
    x, y = data
    inner = folds(len(x), buffer)
    head, alpha = fit_strength(x, y, inner, ALPHAS)
    wanted, told = fit_grouped_ridge(x, y, inner, alphas=ALPHAS, standardise=False)
    assert alpha == told["alpha"]
    assert ALPHAS[0] < alpha < ALPHAS[-1]
    np.testing.assert_allclose(head.predict(x), wanted.predict(x), atol=2e-3)


def test_without_folds_the_strength_is_the_default(data):
    x, y = data
    head, alpha = fit_strength(x, y, InnerFolds("nothing", ()), ALPHAS)
    assert alpha == DEFAULT_ALPHA
    np.testing.assert_allclose(
        head.predict(x), RidgePath(x, y, standardise=False).head(DEFAULT_ALPHA).predict(x), atol=2e-3
    )
