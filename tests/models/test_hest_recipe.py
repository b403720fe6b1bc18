"""The benchmark's recipe against scikit-learn, step by step, in the precision of its features."""

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from histoflow.models.hest_recipe import ODDITIES, HestHead, fit_hest_ridge


def data(n_spots, n_features, dtype):
    rng = np.random.default_rng(0)
    x = rng.normal(2, 3, (n_spots, n_features))
    return x.astype(dtype), (x[:, :3] @ rng.normal(size=(3, 4)) + rng.normal(size=(n_spots, 4)) + 5).astype(dtype)


@pytest.mark.parametrize(
    ("shape", "n_components"), [((50, 30), 30), ((30, 50), 30), ((400, 300), 256), ((600, 520), 256)]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_step_is_the_recipes(shape, n_components, dtype):
    x, y = data(*shape, dtype)
    head, report = fit_hest_ridge(x, y)
    scaled = StandardScaler().fit_transform(x)
    scores = PCA(n_components, random_state=1).fit(scaled).transform(scaled).astype(np.float32)
    alpha = 100 / (n_components * 4)
    ridge = Ridge(alpha, solver="lsqr", fit_intercept=False, max_iter=1000, random_state=1).fit(scores, y)
    assert (report["alpha"], report["n_components"]) == (alpha, n_components)
    assert bool(report["differs"]) == (n_components < 256)
    np.testing.assert_allclose(head.predict(x), ridge.predict(scores), atol=2e-5)


def test_predictions_have_no_mean():
    x, y = data(80, 20, np.float64)
    assert y.mean() > 4
    np.testing.assert_allclose(fit_hest_ridge(x, y)[0].predict(x).mean(axis=0), 0, atol=1e-5)


def test_one_gene_and_what_is_odd():
    x, y = data(40, 10, np.float32)
    head, report = fit_hest_ridge(x, y[:, :1])
    assert head.predict(x).shape == (40, 1)
    assert report["oddities"] == list(ODDITIES)
    words = " ".join(ODDITIES)
    assert all(word in words for word in ("R²", "library-normalised", "test included", "pools the spots"))


def test_arrays_bring_a_head_back():
    x, y = data(40, 10, np.float32)
    head = fit_hest_ridge(x, y)[0]
    np.testing.assert_array_equal(HestHead.of(head.arrays()).predict(x), head.predict(x))
