"""Strength on inner folds: scikit-learn's grid search, the plain way of predicting at every strength, hard cases."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_info, threadpool_limits

from histoflow.models import linear, ridge_folds
from histoflow.models.inner import InnerFolds
from histoflow.models.linear import RidgePath
from histoflow.models.ridge_folds import ALPHAS, DEFAULT_ALPHA, RidgeFolds, fit_grouped_ridge
from histoflow.models.side_by_side import side_by_side

SHAPES = [(60, 20, 5), (60, 90, 5), (45, 44, 70), (90, 20, 300)]
"""Spots, features, targets: more features than spots and fewer, in the folds too; more targets than features."""


def data(n_spots, n_features, n_targets, seed=0):
    """Features of very different strength, correlated, of sections that differ; a few of them tell the targets."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(n_spots, n_features)) * np.logspace(0, -2, n_features)
    x = mixed @ rng.normal(size=(n_features, n_features)) + rng.normal(size=(3, n_features))[np.arange(n_spots) % 3]
    known = mixed[:, :3]
    y = 0.4 * known @ rng.normal(size=(known.shape[1], n_targets)) + rng.normal(size=(n_spots, n_targets))
    return 5 * x + 40, y + rng.normal(size=n_targets) * 3


def thirds(n_spots):
    rows = np.arange(n_spots)
    return [(rows[rows % 3 != k], rows[rows % 3 == k]) for k in range(3)]


def buffered(n_spots):
    """Blocks with a buffer: some rows are on neither side."""
    rows = np.arange(n_spots)
    blocks = np.array_split(rows, 4)
    return [(rows[(rows < b[0] - 3) | (rows > b[-1] + 3)], b) for b in blocks]


def overlapping(n_spots):
    """Held-out parts that share rows, not sorted, and rows that are in none."""
    rng = np.random.default_rng(3)
    picked = [rng.permutation(n_spots)[: n_spots // 3] for _ in range(3)]
    return [(np.setdiff1d(np.arange(n_spots), test), test) for test in picked]


def plain(x, y, folds, alphas=ALPHAS):
    """R² of each target at each strength, averaged over folds, by predicting: (n_alphas, n_targets)."""
    scores = np.zeros((len(alphas), y.shape[1]))
    for train, test in folds:
        for row, alpha in zip(scores, alphas, strict=True):
            model = make_pipeline(StandardScaler(), Ridge(alpha)).fit(x[train], y[train])
            row += r2_score(y[test], model.predict(x[test]).reshape(len(test), -1), multioutput="raw_values")
    return scores / len(folds)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", [thirds, buffered, overlapping])
def test_scores_are_those_of_predicting_at_every_strength(shape, kind):
    x, y = data(*shape)
    folds = kind(len(x))
    wanted = plain(x, y, folds)
    found = RidgeFolds(RidgePath(x, y), folds)
    np.testing.assert_allclose(found.scores(ALPHAS), wanted.mean(axis=1), rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(found.scores_by_target(ALPHAS), wanted, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("per_target", [False, True])
def test_single_precision_chooses_what_double_precision_does(shape, per_target):
    x, y = (values.astype(np.float32) for values in data(*shape))
    folds = InnerFolds("thirds", tuple(thirds(len(x))))
    _, exact = fit_grouped_ridge(x.astype(np.float64), y.astype(np.float64), folds)
    _, single = fit_grouped_ridge(x, y, folds, per_target=per_target)
    np.testing.assert_allclose(single["inner_r2"], exact["inner_r2"], rtol=2e-4, atol=2e-5)
    assert single["alpha"] == exact["alpha"]


@pytest.mark.parametrize("shape", SHAPES)
def test_alpha_is_the_one_that_grid_search_picks(shape):
    x, y = data(*shape)
    folds = thirds(len(x))
    head, report = fit_grouped_ridge(x, y, InnerFolds("thirds", tuple(folds)))
    search = GridSearchCV(make_pipeline(StandardScaler(), Ridge()), {"ridge__alpha": ALPHAS}, cv=folds).fit(x, y)
    assert report["alpha"] == search.best_params_["ridge__alpha"]
    np.testing.assert_allclose(report["inner_r2"], search.cv_results_["mean_test_score"], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(head.predict(x), search.predict(x), rtol=1e-7)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), n_spots=st.integers(12, 50), n_features=st.integers(1, 60))
def test_any_shape_agrees_with_grid_search(seed, n_spots, n_features):
    x, y = data(n_spots, n_features, 3, seed)
    folds, alphas = thirds(n_spots), np.logspace(0, 4, 5)
    found = RidgeFolds(RidgePath(x, y), folds).scores(alphas)
    np.testing.assert_allclose(found, plain(x, y, folds, alphas).mean(axis=1), rtol=1e-6, atol=1e-7)


def test_a_target_that_is_constant_in_a_held_out_part_counts_nothing_there():
    x, y = data(60, 20, 4)
    y[::3, 1] = y[0, 1]
    y[:, 2] = 0.1
    folds = RidgeFolds(RidgePath(x, y), thirds(60))
    per_target = folds.scores_by_target(ALPHAS)
    varying = [plain(x, y[:, [1]], [fold])[:, 0] for fold in thirds(60)[1:]]
    np.testing.assert_allclose(per_target[:, 1], np.sum(varying, axis=0) / 3, rtol=1e-8, atol=1e-10)
    assert not per_target[:, 2].any()
    np.testing.assert_allclose(folds.scores(ALPHAS), per_target.mean(axis=1), rtol=1e-8)


def test_a_feature_that_is_constant_in_a_training_part():
    x, y = data(60, 20, 4)
    x[np.arange(60) % 3 != 0, 5] = 7.25
    wanted = plain(x, y, thirds(60))
    np.testing.assert_allclose(RidgeFolds(RidgePath(x, y), thirds(60)).scores(ALPHAS), wanted.mean(axis=1), atol=1e-9)


def test_targets_in_small_pieces_score_the_same(monkeypatch):
    x, y = data(60, 20, 23)
    whole = RidgeFolds(RidgePath(x, y), buffered(60)).scores(ALPHAS)
    monkeypatch.setattr(linear, "_FEWEST", 1)
    monkeypatch.setattr(linear, "_MOST", 5)
    np.testing.assert_allclose(RidgeFolds(RidgePath(x, y), buffered(60)).scores(ALPHAS), whole, rtol=1e-10)


def test_each_target_gets_the_strength_that_is_best_for_it():
    x, y = data(90, 20, 6)
    y[:, 0] = x[:, 0]
    y[:, 1:3] = np.random.default_rng(9).normal(size=(90, 2))
    head, report = fit_grouped_ridge(x, y, InnerFolds("thirds", tuple(thirds(90))), per_target=True)
    wanted = ALPHAS[np.argmax(plain(x, y, thirds(90)), axis=0)]
    np.testing.assert_array_equal(report["alpha_by_target"], wanted)
    assert wanted[0] < report["alpha"] < max(wanted[1:3])
    for target in range(6):
        alone = RidgePath(x, y[:, [target]]).head(wanted[target]).predict(x)[:, 0]
        np.testing.assert_allclose(head.predict(x)[:, target], alone, rtol=1e-8)


def test_without_inner_folds_the_default_is_taken():
    x, y = data(30, 5, 2)
    head, report = fit_grouped_ridge(x, y, InnerFolds("nothing", ()))
    assert report == {"inner_folds": "nothing", "alpha": DEFAULT_ALPHA}
    np.testing.assert_array_equal(head.predict(x), RidgePath(x, y).head(DEFAULT_ALPHA).predict(x))


def n_blas_threads():
    return [lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"]


@pytest.mark.parametrize("options", [{}, {"per_target": True}])
def test_folds_beside_each_other_are_to_the_last_bit_the_same(monkeypatch, options):
    x, y = (values.astype(np.float32) for values in data(60, 20, 23))
    monkeypatch.setattr(linear, "_FEWEST", 1)
    monkeypatch.setattr(linear, "_MOST", 5)
    monkeypatch.setattr(ridge_folds, "_MANY_AXES", 1)
    found = []
    for n_threads in (1, 2):
        with threadpool_limits(n_threads, user_api="blas"):
            found.append(fit_grouped_ridge(x, y, InnerFolds("thirds", tuple(thirds(60))), **options))
    assert found[0][1] == found[1][1]
    np.testing.assert_array_equal(found[0][0].coef, found[1][0].coef)


@pytest.mark.parametrize("n_threads", [1, 2])
def test_calls_beside_each_other_keep_their_order_and_give_threads_back(n_threads):
    with threadpool_limits(n_threads, user_api="blas"):
        before = n_blas_threads()
        with side_by_side() as run:
            seen = list(run(lambda item: (item, max(n_blas_threads())), range(5)))
        assert n_blas_threads() == before
    assert seen == [(item, 1) for item in range(5)]


def test_small_calls_are_run_one_after_the_other():
    with threadpool_limits(2, user_api="blas"), side_by_side(worth_it=False) as run:
        assert run is map
        assert max(n_blas_threads()) == 2


def test_axes_on_which_no_training_spot_lies_have_no_say():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(180, 900)).astype(np.float32)
    y = (x[:, :5] @ rng.normal(size=(5, 8)) + rng.normal(size=(180, 8))).astype(np.float32)
    wide = x.astype(np.float64)
    rows, alphas = np.arange(180), np.array([1e-6, 1e-4, 1e-2, 1.0])
    folds = [(rows[rows % 3 != k], rows[rows % 3 == k]) for k in range(3)]
    with side_by_side(worth_it=False) as run:
        scores = RidgeFolds(RidgePath(x, y), folds, run).scores(alphas)
    expected = [
        np.mean(
            [
                r2_score(
                    y[test], make_pipeline(StandardScaler(), Ridge(a)).fit(wide[train], y[train]).predict(wide[test])
                )
                for train, test in folds
            ]
        )
        for a in alphas
    ]
    np.testing.assert_allclose(scores, expected, atol=1e-3)


def test_folds_find_their_axes_beside_each_other(monkeypatch):
    rng = np.random.default_rng(0)
    folds = RidgeFolds(RidgePath(rng.normal(size=(60, 5)), rng.normal(size=(60, 3))), thirds(60)[:2])
    both = threading.Barrier(2)
    monkeypatch.setattr(ridge_folds, "_OwnAxes", lambda fold, path: both.wait(timeout=30))
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda task: task(), folds._axes_tasks()))
    assert sorted(found) == [0, 1]
