"""Every ridge of a training set: scikit-learn's in both shapes and precisions, few genes and many, constant columns."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from histoflow.models import linear
from histoflow.models.linear import LinearHead, RidgePath


def data(n_spots: int, n_features: int, seed: int = 0, n_targets: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(2, 3, (n_spots, n_features))
    return x, x[:, :3] @ rng.normal(size=(3, n_targets)) + rng.normal(size=(n_spots, n_targets)) + 5


@pytest.mark.parametrize("shape", [(40, 15), (15, 40), (20, 20)])
@pytest.mark.parametrize("n_targets", [1, 4, 90])
@pytest.mark.parametrize("alpha", [1.0, 300.0])
def test_a_head_is_scikit_learns_ridge(shape, n_targets, alpha):
    x, y = data(*shape, n_targets=n_targets)
    oracle = make_pipeline(StandardScaler(), Ridge(alpha)).fit(x, y)
    wanted = oracle.predict(x).reshape(y.shape)
    np.testing.assert_allclose(RidgePath(x, y).head(alpha).predict(x), wanted, rtol=1e-8)


def test_axes_are_multiplied_out_unless_that_is_more_to_keep():
    few, many = (RidgePath(*data(30, 10, n_targets=n)).head(1.0) for n in (10, 11))
    assert few.axes is None
    assert many.axes.shape == (10, 10)


def test_every_target_may_have_a_strength_of_its_own():
    x, y = data(40, 15)
    alphas = np.array([1.0, 10.0, 100.0, 1e4])
    found = RidgePath(x, y).head(alphas).predict(x)
    for target, alpha in enumerate(alphas):
        wanted = RidgePath(x, y[:, [target]]).head(alpha).predict(x)[:, 0]
        np.testing.assert_allclose(found[:, target], wanted, rtol=1e-10)


@pytest.mark.parametrize("shape", [(60, 25), (25, 60)])
def test_precision_is_that_of_the_features(shape):
    x, y = (values.astype(np.float32) for values in data(*shape))
    exact = RidgePath(x.astype(np.float64), y.astype(np.float64)).head(10.0).predict(x)
    head = RidgePath(x, y).head(10.0)
    single = head.predict(x)
    assert (head.coef.dtype, single.dtype, exact.dtype) == (np.float32, np.float32, np.float64)
    np.testing.assert_allclose(single, exact, atol=2e-5)


def test_features_far_from_zero_lose_nothing_in_single_precision():
    x, y = data(60, 12)
    far = (x + 3000).astype(np.float32)
    exact = RidgePath(far.astype(np.float64), y).head(10.0).predict(far.astype(np.float64))
    np.testing.assert_allclose(RidgePath(far, y.astype(np.float32)).head(10.0).predict(far), exact, atol=2e-5)


@pytest.mark.parametrize("shape", [(40, 15), (15, 40)])
def test_a_constant_feature_changes_nothing(shape):
    x, y = data(*shape)
    with_constant = np.hstack([x, np.full((len(x), 1), 0.1), np.full((len(x), 1), 1e7)])
    found = RidgePath(with_constant, y).head(3.0).predict(with_constant)
    np.testing.assert_allclose(found, RidgePath(x, y).head(3.0).predict(x), rtol=1e-8)


def test_targets_in_small_pieces_are_the_same(monkeypatch):
    x, y = data(40, 15, n_targets=23)
    whole = RidgePath(x, y).head(3.0).predict(x)
    monkeypatch.setattr(linear, "_FEWEST", 1)
    monkeypatch.setattr(linear, "_MOST", 5)
    monkeypatch.setattr(linear, "_BLOCK", 7)
    np.testing.assert_allclose(RidgePath(x, y).head(3.0).predict(x), whole, rtol=1e-10)


def test_pieces_are_smaller_with_more_spots():
    assert [part.stop for part in linear.chunks(5000, 4000)] == [2048, 4096, 6144]
    assert len(list(linear.chunks(5000, 1 << 16))) == 10
    assert len(list(linear.chunks(1, 1 << 30))) == 1


@pytest.mark.parametrize("n_targets", [4, 90])
def test_arrays_bring_a_head_back(n_targets):
    head = RidgePath(*data(20, 5, n_targets=n_targets)).head(3.0)
    x = data(7, 5, seed=1)[0]
    np.testing.assert_array_equal(LinearHead.of(head.arrays()).predict(x), head.predict(x))
