"""Calibrated: what a prediction carries, that it holds its level, and what is refused."""

import warnings

import numpy as np
import pytest
from scipy.stats import binom
from tests.models.conftest import GENES, make_section

from histoflow import models
from histoflow._errors import NotFittedError, OptionError, SplitError, TrainingWarning
from histoflow._keys import (
    LOWER,
    QUANTILE_LEVELS,
    RESIDUAL_QUANTILES,
    SCALE,
    STD,
    UNFAMILIAR,
    UNS,
    UPPER,
)
from histoflow.models import Calibrated
from histoflow.models.residuals import LEVELS
from histoflow.pp import Panel, panel_log1p
from histoflow.stats.intervals import central_levels, coverage, predictive_quantiles

PANEL = Panel(tuple(GENES))
QUERY = make_section("Q", seed=9)
SMALL_FLOW = models.STFlow(
    network=models.Network(hidden_dim=16, pairwise_dim=16, n_layers=2, n_heads=2, n_components=8),
    training=models.Training(max_epochs=2, crops_per_section=2),
)


def sections(n_sections: int = 4, n_spots: int = 49) -> list:
    return [make_section(f"S{i}", seed=i, n_spots=n_spots) for i in range(n_sections)]


@pytest.fixture(scope="module")
def ridge() -> Calibrated:
    return Calibrated(models.RidgeProbe()).fit(sections(), panel=PANEL)


@pytest.fixture(scope="module")
def flow() -> Calibrated:
    return Calibrated(SMALL_FLOW).fit(sections(), panel=PANEL)


def test_a_prediction_carries_what_makes_its_intervals(ridge):
    predicted = ridge.predict(QUERY)
    facts = predicted.uns[UNS]
    assert (facts["method"], facts["level"], facts["calibrated_on"]) == ("hest_fm", 0.9, "4 folds of whole sections")
    np.testing.assert_array_equal(facts[QUANTILE_LEVELS], LEVELS)
    assert predicted.varm[RESIDUAL_QUANTILES].shape == (len(GENES), len(LEVELS))
    assert {layer: predicted.layers[layer].dtype for layer in (LOWER, UPPER, SCALE)} == dict.fromkeys(
        (LOWER, UPPER, SCALE), np.float32
    )
    assert predicted.obs[UNFAMILIAR].dtype == bool
    ends = predictive_quantiles(
        predicted.X, predicted.layers[SCALE], predicted.varm[RESIDUAL_QUANTILES], LEVELS, central_levels(0.9)
    )
    np.testing.assert_allclose([predicted.layers[LOWER], predicted.layers[UPPER]], ends, atol=1e-6)
    assert set(predicted.var["held_out_r"].between(0.1, 1)) == {True}


def test_the_expectation_lies_inside(ridge):
    predicted = ridge.predict(QUERY)
    inside = (predicted.layers[LOWER] <= predicted.X) & (predicted.layers[UPPER] >= predicted.X)
    assert inside.all()
    assert (predicted.layers[LOWER] >= 0).all()


def test_the_estimator_itself_predicts(ridge):
    alone = models.RidgeProbe().fit(sections(), panel=PANEL)
    np.testing.assert_array_equal(ridge.predict(QUERY).X, alone.predict(QUERY).X)
    assert ridge.method == ridge.inside.name == "hest_fm"
    assert Calibrated(models.MeanBaseline()).inside.panel_ is None


def test_the_level_changes_the_ends_only(ridge):
    half = Calibrated(models.RidgeProbe(), level=0.5).fit(sections(), panel=PANEL)
    wide, narrow = ridge.predict(QUERY), half.predict(QUERY)
    np.testing.assert_array_equal(narrow.X, wide.X)
    np.testing.assert_array_equal(narrow.layers[SCALE], wide.layers[SCALE])
    np.testing.assert_array_equal(narrow.varm[RESIDUAL_QUANTILES], wide.varm[RESIDUAL_QUANTILES])
    assert (narrow.layers[LOWER] >= wide.layers[LOWER]).all()
    assert (narrow.layers[UPPER] < wide.layers[UPPER]).all()


@pytest.mark.parametrize("kind", ["ridge", "flow"])
def test_a_saved_model_says_the_same(kind, request, tmp_path):
    fitted = request.getfixturevalue(kind)
    fitted.save(tmp_path / "model")
    loaded = models.load(tmp_path / "model")
    wanted, found = (model.predict(QUERY, n_samples=3) for model in (fitted, loaded))
    for layer in wanted.layers:
        np.testing.assert_array_equal(found.layers[layer], wanted.layers[layer])
    np.testing.assert_array_equal(found.obs[UNFAMILIAR], wanted.obs[UNFAMILIAR])
    np.testing.assert_array_equal(found.varm[RESIDUAL_QUANTILES], wanted.varm[RESIDUAL_QUANTILES])
    assert loaded.training_["held_out_r"] == fitted.training_["held_out_r"]
    assert (loaded.level, loaded.method) == (fitted.level, fitted.method)


def test_exchangeable_spots_are_covered():
    fitted = Calibrated(models.RidgeProbe(alphas=[100.0])).fit(sections(5, n_spots=400), panel=PANEL)
    new = [make_section(f"N{i}", seed=100 + i, n_spots=400) for i in range(5)]
    predicted = [fitted.predict(section) for section in new]
    inside = np.concatenate(
        [
            (p.layers[LOWER] <= m) & (m <= p.layers[UPPER])
            for p, m in zip(predicted, (panel_log1p(s, PANEL, "library") for s in new), strict=True)
        ]
    )
    # As many spots were calibrated on: two binomial errors, together that of half as many spots.
    half = len(inside) // 2
    least, most = binom.ppf([1e-4, 1 - 1e-4], half, 0.9) / half
    assert (inside.mean(axis=0) >= least).all()
    assert (inside.mean(axis=0) <= most).all()


def test_a_place_unlike_the_training_tissue_is_flagged(ridge):
    odd = QUERY.copy()
    odd.obsm["scatter"][:7] += 40
    flagged = ridge.predict(odd).obs[UNFAMILIAR].to_numpy()
    assert flagged[:7].all()
    np.testing.assert_array_equal(flagged[7:], ridge.predict(QUERY).obs[UNFAMILIAR][7:])


def test_without_an_image_nothing_is_unfamiliar():
    fitted = Calibrated(models.MeanBaseline()).fit(sections(), panel=PANEL)
    assert UNFAMILIAR not in fitted.predict(QUERY).obs


def test_superpixels_are_judged_by_their_mean():
    regressor = models.SubspotRegressor(
        training=models.Training(max_epochs=1, n_members=1, n_searches=1, batch_size=32), hidden_dim=8, n_components=4
    )
    fitted = Calibrated(regressor).fit(sections(3), panel=PANEL)
    turned, odd = QUERY.copy(), QUERY.copy()
    bags = QUERY.obsm["scatter_dense"].reshape(QUERY.n_obs, 4, -1)
    turned.obsm["scatter_dense"] = bags[:, ::-1].reshape(QUERY.n_obs, -1)
    np.testing.assert_array_equal(fitted.predict(turned).obs[UNFAMILIAR], fitted.predict(QUERY).obs[UNFAMILIAR])
    odd.obsm["scatter_dense"] = QUERY.obsm["scatter_dense"] + 40
    assert fitted.predict(odd).obs[UNFAMILIAR].all()


def test_intervals_are_around_the_expectation_whatever_the_number_of_draws(flow):
    one, many = flow.predict(QUERY, n_samples=1), flow.predict(QUERY, n_samples=16)
    assert np.abs(one.X - many.X).mean() < 0.5 * many.layers[STD].mean()
    np.testing.assert_allclose(one.layers[SCALE], many.layers[SCALE], rtol=0.5)


def test_the_flow_is_calibrated_on_its_own_inner_folds(flow, monkeypatch):
    monkeypatch.setattr(models.calibrated, "cross_fit", lambda *_: pytest.fail("fitted anew"))
    again = Calibrated(SMALL_FLOW.clone()).fit(sections(), panel=PANEL)
    assert again.training_["n_calibrated_on"] == 4 * 49
    np.testing.assert_array_equal(again.predict(QUERY).layers[UPPER], flow.predict(QUERY).layers[UPPER])


def test_the_published_flow_is_cross_fitted():
    published = SMALL_FLOW.clone(recipe="paper", training=models.Training(max_epochs=1, crops_per_section=1))
    fitted = Calibrated(published).fit(sections(3), panel=PANEL)
    assert fitted.training_["n_calibrated_on"] == 3 * 49


def test_left_out_spots_are_told(ridge):
    limit = int(np.median(np.asarray(sections(1)[0].X.sum(axis=1))))
    told = ridge.clone().fit(sections(), panel=PANEL, min_counts=limit).training_
    assert (told["min_counts"], told["n_spots_left_out"]) == (limit, 4 * 49 - sum(told["n_spots"]))
    assert told["n_calibrated_on"] == sum(told["n_spots"]) < 4 * 49


def test_few_sections_are_warned_of_once():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted = Calibrated(models.RidgeProbe()).fit(sections(2, n_spots=100), panel=PANEL)
    assert [w.category for w in caught] == [TrainingWarning]
    assert fitted.training_["calibrated_on"].startswith("4 spatial blocks")


@pytest.mark.filterwarnings("ignore::histoflow._errors.TrainingWarning")
def test_too_few_spots_are_refused():
    with pytest.raises(
        SplitError, match=r"intervals need held-out spots, .* give more spots, or no level \(--level off\)"
    ):
        Calibrated(models.RidgeProbe()).fit(sections(1, n_spots=9), panel=PANEL)


@pytest.mark.parametrize("level", [0, 1, -0.5, 0.999, float("nan")])
def test_a_level_that_no_interval_can_hold_is_refused(level):
    with pytest.raises(OptionError, match=r"level is .*; give a part above 0 and up to 0\.99"):
        Calibrated(models.MeanBaseline(), level=level)


@pytest.mark.parametrize("estimator", [Calibrated(models.MeanBaseline()), models.STPathZeroShot(organ="Breast")])
def test_what_cannot_be_calibrated_is_refused(estimator):
    with pytest.raises(OptionError, match=f"{estimator.name} cannot be calibrated"):
        Calibrated(estimator)


def test_before_fit_there_is_nothing():
    with pytest.raises(NotFittedError, match="call fit first"):
        Calibrated(models.MeanBaseline()).predict(QUERY)


def test_options_make_it_again():
    made = Calibrated(models.RidgeProbe(smooth_um=300.0, seed=5), level=0.8)
    again = models.from_options("calibrated", made.options())
    assert again.options() == made.options()
    assert (again.seed, again.encoder, again.clone(seed=6).estimator.seed) == (5, "scatter", 6)
    assert made.identity() != Calibrated(models.RidgeProbe(smooth_um=300.0, seed=5), level=0.9).identity()


def test_coverage_by_the_metric_agrees(ridge):
    predicted = ridge.predict(QUERY)
    share = coverage(panel_log1p(QUERY, PANEL, "library"), predicted.layers[LOWER], predicted.layers[UPPER])
    assert (share > 0.75).all()
