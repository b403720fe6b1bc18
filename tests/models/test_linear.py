"""Ridge: scikit-learn's in both shapes, strength as GridSearchCV picks it, the benchmark's recipe step by step."""

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from histoflow.models.inner import InnerFolds
from histoflow.models.linear import ALPHAS, LinearHead, RidgePath, fit_grouped_ridge, fit_hest_ridge


def data(n_spots: int, n_features: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(2, 3, (n_spots, n_features))
    return x, x[:, :3] @ rng.normal(size=(3, 4)) + rng.normal(size=(n_spots, 4)) + 5


@pytest.mark.parametrize("shape", [(40, 15), (15, 40)])
@pytest.mark.parametrize("alpha", [1.0, 300.0])
def test_a_head_is_scikit_learns_ridge(shape, alpha):
    x, y = data(*shape)
    oracle = make_pipeline(StandardScaler(), Ridge(alpha)).fit(x, y)
    np.testing.assert_allclose(RidgePath(x, y).head(alpha).predict(x), oracle.predict(x), rtol=1e-8)
    np.testing.assert_allclose(RidgePath(x, y).predictions(x, [alpha])[0], oracle.predict(x), rtol=1e-8)


def test_alpha_is_the_one_that_grid_search_picks():
    x, y = data(60, 20)
    rows = np.arange(60)
    folds = tuple((rows[rows % 3 != k], rows[rows % 3 == k]) for k in range(3))
    _, report = fit_grouped_ridge(x, y, InnerFolds("thirds", folds))
    search = GridSearchCV(make_pipeline(StandardScaler(), Ridge()), {"ridge__alpha": ALPHAS}, cv=list(folds)).fit(x, y)
    assert report["alpha"] == search.best_params_["ridge__alpha"]
    np.testing.assert_allclose(report["inner_r2"], search.cv_results_["mean_test_score"], rtol=1e-6, atol=1e-9)


def test_hest_recipe_step_by_step():
    x, y = data(50, 30)
    head, report = fit_hest_ridge(x, y)
    scaled = StandardScaler().fit_transform(x)
    scores = PCA(30, random_state=1).fit(scaled).transform(scaled).astype(np.float32)
    ridge = Ridge(100 / (30 * 4), solver="lsqr", fit_intercept=False, max_iter=1000, random_state=1).fit(scores, y)
    assert report == {"alpha": 100 / 120, "n_components": 30}
    np.testing.assert_allclose(head.predict(x), ridge.predict(scores), atol=1e-3)


def test_arrays_bring_a_head_back():
    head = RidgePath(*data(20, 5)).head(3.0)
    x = data(7, 5, seed=1)[0]
    np.testing.assert_array_equal(LinearHead.of(head.arrays()).predict(x), head.predict(x))
