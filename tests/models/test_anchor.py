"""The anchor: patterns that genes share, similarity as dot products, the ridge against scikit-learn's."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.kernel_ridge import KernelRidge

from histoflow.models import anchor
from histoflow.models.anchor import ALPHAS, Anchor, Similarity, fit_anchor, held_out, low_rank
from histoflow.models.inner import InnerFolds
from histoflow.models.member import Projection
from histoflow.models.views import views_of

N_SPOTS, N_GENES = 90, 8
WHOLE = views_of({}, 6)
THREE = views_of({"patch_um": [112.0, 224.0]}, 6)


@pytest.fixture
def embedding():
    rng = np.random.default_rng(0)
    return (rng.normal(size=(N_SPOTS, 6)) * [5, 3, 2, 1, 1, 0.5]).astype(np.float32)


@pytest.fixture
def log1p(embedding):
    rng = np.random.default_rng(1)
    signal = np.tanh(embedding @ rng.normal(size=(6, N_GENES)) / 5)
    return (2 + signal + 0.3 * rng.normal(size=signal.shape)).astype(np.float32)


@pytest.fixture
def inner():
    rows = np.arange(N_SPOTS)
    return InnerFolds("thirds", tuple((rows[rows % 3 != k], rows[rows % 3 == k]) for k in range(3)))


def kernel(first, second):
    """The Laplacian kernel, written out: 1 / e at twice the root mean square distance of two training spots."""
    return np.exp(-cdist(first, second) / np.sqrt(8 * first.shape[1]))


def projected(embedding):
    projection = Projection.fit(embedding, 100, whitening=anchor.WHITENING)
    return projection, projection(embedding).numpy()


@pytest.mark.parametrize("n_factors", [1, 3, N_GENES])
def test_low_rank_is_the_best_approximation_of_its_rank_with_genes_of_one_spread(log1p, n_factors):
    log1p = log1p * np.geomspace(0.1, 10, N_GENES)
    told = low_rank(log1p, n_factors)
    mean, spread = log1p.mean(axis=0), log1p.std(axis=0)
    left, values, right = np.linalg.svd((log1p - mean) / spread, full_matrices=False)
    best = (left[:, :n_factors] * values[:n_factors]) @ right[:n_factors] * spread + mean
    np.testing.assert_allclose(told, best, atol=1e-5)
    assert np.linalg.matrix_rank(told - told.mean(axis=0), tol=1e-3) == n_factors


def test_all_factors_change_nothing(log1p):
    np.testing.assert_allclose(low_rank(log1p, N_GENES), log1p, atol=1e-5)
    np.testing.assert_allclose(low_rank(log1p, 100), log1p, atol=1e-5)


def test_patterns_are_those_of_the_rows_that_tell_them(log1p):
    rows = np.arange(60)
    other = log1p.copy()
    other[60:] = other[60:, ::-1] * 3
    np.testing.assert_array_equal(low_rank(log1p, 2, rows=rows)[:60], low_rank(other, 2, rows=rows)[:60])
    np.testing.assert_allclose(low_rank(log1p, 2, rows=rows)[:60], low_rank(log1p[:60], 2), atol=1e-5)
    assert not np.allclose(low_rank(log1p, 2)[:60], low_rank(other, 2)[:60], atol=1e-2)


def test_a_training_pair_is_as_far_apart_as_the_reach_says(embedding):
    _, components = projected(embedding)
    mean_square = (cdist(components, components) ** 2).sum() / (N_SPOTS * (N_SPOTS - 1))
    assert mean_square == pytest.approx(2 * components.shape[1], rel=0.02)


def test_dot_products_are_the_laplacian_kernel(embedding):
    _, components = projected(embedding)
    similarity = Similarity.fit(components, seed=0)
    coordinates = similarity(components)
    assert coordinates.dtype == np.float32
    np.testing.assert_allclose(coordinates @ coordinates.T, kernel(components, components), atol=1e-4)
    unseen = np.random.default_rng(3).normal(size=(20, components.shape[1])).astype(np.float32)
    np.testing.assert_allclose(similarity(unseen) @ coordinates.T, kernel(unseen, components), atol=1e-4)


def test_a_part_of_the_landmarks_comes_near(embedding, monkeypatch):
    _, components = projected(embedding)
    wanted = kernel(components, components)
    off = {}
    for n_landmarks in (10, 45):
        monkeypatch.setattr(anchor, "_MOST_LANDMARKS", n_landmarks)
        similarity = Similarity.fit(components, seed=0)
        assert similarity.landmarks.shape == (n_landmarks, components.shape[1])
        coordinates = similarity(components)
        off[n_landmarks] = np.abs(coordinates @ coordinates.T - wanted).mean()
        np.testing.assert_array_equal(Similarity.fit(components, seed=0).landmarks, similarity.landmarks)
    assert off[45] < 0.5 * off[10]
    assert off[45] < 0.05


def test_spots_in_one_place_do_no_harm(embedding):
    _, components = projected(np.repeat(embedding[:30], 3, axis=0))
    coordinates = Similarity.fit(components, seed=0)(components)
    assert coordinates.shape[1] <= 30
    np.testing.assert_allclose(coordinates @ coordinates.T, kernel(components, components), atol=1e-4)


def kernel_ridge(embedding, unseen, log1p, alpha):
    """Scikit-learn's kernel ridge with an intercept, which is the kernel centred in feature space."""
    projection, components = projected(embedding)
    across, within = kernel(projection(unseen).numpy(), components), kernel(components, components)
    inside = within - within.mean(axis=0) - within.mean(axis=1)[:, None] + within.mean()
    outside = across - within.mean(axis=0) - across.mean(axis=1)[:, None] + within.mean()
    oracle = KernelRidge(alpha=alpha, kernel="precomputed").fit(inside, log1p - log1p.mean(axis=0))
    return oracle.predict(outside) + log1p.mean(axis=0)


@pytest.mark.parametrize("views", [WHOLE, THREE])
def test_it_is_the_mean_over_views_of_the_centred_kernel_ridge_of_scikit_learn(embedding, log1p, inner, views):
    fitted = fit_anchor(embedding, log1p, inner, views)
    unseen = np.random.default_rng(5).normal(size=(25, 6)).astype(np.float32) * 2
    assert all(view.alpha in ALPHAS for view in fitted.views)
    wanted = [
        kernel_ridge(embedding[:, columns], unseen[:, columns], log1p, view.alpha)
        for columns, view in zip(views, fitted.views, strict=True)
    ]
    np.testing.assert_allclose(fitted.predict(unseen), np.mean(wanted, axis=0), atol=2e-3)


def test_held_out_predictions_have_not_seen_their_fold(embedding, log1p, inner):
    fitted = fit_anchor(embedding, log1p, inner, THREE)

    def learned(expression):
        return lambda rows: low_rank(expression, 3, rows=rows)[rows]

    found = held_out(fitted, embedding, learned(log1p), inner)
    test = inner.folds[1][1]
    poisoned = log1p.copy()
    poisoned[test] = 100 * np.random.default_rng(2).random((len(test), N_GENES))
    again = held_out(fitted, embedding, learned(poisoned), inner)
    np.testing.assert_array_equal(again[test], found[test])
    assert not np.allclose(again, found)
    measured, predicted = log1p[test] - log1p.mean(axis=0), found[test] - log1p.mean(axis=0)
    assert np.corrcoef(measured.ravel(), predicted.ravel())[0, 1] > 0.5


def test_held_out_predictions_are_those_of_an_anchor_fitted_without_the_fold(embedding, log1p, inner):
    fitted = fit_anchor(embedding, log1p, inner, THREE)
    found = held_out(fitted, embedding, lambda rows: log1p[rows], inner)
    train, test = inner.folds[2]
    wanted = np.zeros((len(test), N_GENES))
    for view in fitted.views:
        coordinates = view.coordinates(embedding)
        centred = coordinates[train] - coordinates[train].mean(axis=0)
        ridge = np.linalg.solve(centred.T @ centred + view.alpha * np.eye(centred.shape[1]), centred.T @ log1p[train])
        wanted += (coordinates[test] - coordinates[train].mean(axis=0)) @ ridge + log1p[train].mean(axis=0)
    np.testing.assert_allclose(found[test], wanted / len(fitted.views), atol=2e-3)


def test_spots_of_no_fold_have_no_held_out_prediction(embedding, log1p, inner):
    fitted = fit_anchor(embedding, log1p, inner, WHOLE)
    one = InnerFolds("one", inner.folds[:1])
    found = held_out(fitted, embedding, lambda rows: log1p[rows], one)
    test = inner.folds[0][1]
    assert np.isfinite(found[test]).all()
    assert np.isnan(np.delete(found, test, axis=0)).all()


def test_arrays_give_it_back(embedding, log1p, inner):
    fitted = fit_anchor(embedding, log1p, inner, THREE)
    again = Anchor.of(fitted.arrays())
    assert len(again.views) == 3
    np.testing.assert_array_equal(again.predict(embedding), fitted.predict(embedding))
