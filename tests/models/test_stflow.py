"""The flow: its recipes, its share beside the anchor, and draws that look like tissue."""

import warnings

import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse
from scipy.spatial.distance import cdist
from tests.models.conftest import GENES, WEIGHTS, make_section

from histoflow import models
from histoflow._errors import OptionError
from histoflow._keys import STD, UNS
from histoflow.models import anchor, stflow
from histoflow.models.recipes import RECIPES
from histoflow.models.stflow import STFlow
from histoflow.pp import Panel, panel_log1p
from histoflow.pp.graph import neighbors
from histoflow.stats.metrics import moran

PANEL = Panel(tuple(GENES))
SIZES = {"hidden_dim": 16, "pairwise_dim": 16, "n_layers": 2, "n_heads": 2, "n_components": 8}
SMALL = {"network": models.Network(**SIZES), "training": models.Training(max_epochs=3, crops_per_section=2)}
QUERY = make_section("Q", seed=9)


def sections(n_sections: int = 3) -> list[AnnData]:
    return [make_section(f"S{i}", seed=i) for i in range(n_sections)]


@pytest.fixture(scope="module")
def fitted() -> STFlow:
    return STFlow(**SMALL).fit(sections(), panel=PANEL)


def test_a_recipe_gives_sizes_and_steps_unless_they_are_given():
    assert (STFlow().network, STFlow().training) == (RECIPES["default"].network, RECIPES["default"].training)
    assert STFlow("paper").network == models.Network()
    assert STFlow("paper").training == models.Training(n_members=1)
    assert STFlow("paper", **SMALL).network == SMALL["network"]
    with pytest.raises(OptionError, match="recipe is 'best'; choose one of default, paper"):
        STFlow("best")
    with pytest.raises(OptionError, match="prior"):
        STFlow(network=models.Network(prior="uniform"))


def test_the_published_recipe_has_no_anchor_and_no_departures():
    published = STFlow("paper", **SMALL).fit(sections(), panel=PANEL)
    assert not [name for name in published._state() if name.startswith(("anchor/", "departure/"))]
    assert "flow_share" not in published.training_
    assert (published.predict(QUERY, n_samples=3, return_samples=True).uns[UNS]["samples"] >= 0).all()


def test_the_share_is_the_best_one_on_the_inner_folds(fitted):
    by_share = fitted.training_["error_by_share"]
    assert list(by_share) == [f"{share:.1f}" for share in np.linspace(0, 1, 11)]
    assert by_share[f"{fitted.training_['flow_share']:.1f}"] == min(by_share.values())


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_prediction_is_between_the_flow_and_the_anchor(fitted, share, monkeypatch):
    monkeypatch.setattr(fitted, "_share", share)
    predicted = fitted.predict(QUERY, n_samples=4).X
    if share == 0:
        wanted = np.maximum(fitted._anchor.predict(QUERY.obsm["scatter"]), 0)
    else:
        monkeypatch.setattr(fitted, "_anchor", None)
        wanted = fitted.predict(QUERY, n_samples=4).X
    np.testing.assert_allclose(predicted, wanted, atol=1e-5)


def test_an_expectation_is_never_below_zero(fitted):
    far = QUERY.copy()
    far.obsm["scatter"] = far.obsm["scatter"] * 50
    assert (fitted.predict(far, n_samples=4).X > -1e-5).all()


@pytest.mark.parametrize("n_searches", [0, 3])
def test_training_spots_are_expected_without_having_been_seen(n_searches, monkeypatch):
    # What is chosen on all folds together, and the epoch on a fold itself, is held fast.
    monkeypatch.setattr(anchor, "ALPHAS", np.array([1.0]))
    monkeypatch.setattr(stflow, "_SHARES", np.array([0.5]))
    training = models.Training(max_epochs=1, crops_per_section=2, n_searches=n_searches, n_members=1)
    model = STFlow(network=SMALL["network"], training=training)
    poisoned = sections()
    poisoned[2].X = sparse.csr_matrix(np.random.default_rng(0).poisson(5, size=poisoned[2].shape).astype(np.float32))
    clean, again = (model.clone().fit(own, panel=PANEL)._held_out() for own in (sections(), poisoned))
    assert clean.shape == (3 * 49, len(GENES))
    np.testing.assert_array_equal(again[98:], clean[98:])
    assert not np.allclose(again[:98], clean[:98])


def test_a_second_fit_keeps_nothing_of_the_first():
    model = STFlow(**SMALL).fit(sections(), panel=PANEL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit([make_section("few", seed=3, n_spots=9)], panel=PANEL)
    assert not [name for name in model._state() if name.startswith("departure/")]


def test_draws_of_the_zero_prior_depart_too():
    model = STFlow(network=models.Network(**SIZES, prior="zero"), training=SMALL["training"])
    model.fit(sections(), panel=PANEL)
    predicted = model.predict(QUERY, n_samples=6, return_samples=True)
    assert len(predicted.uns[UNS]["samples"]) == 6
    assert (predicted.layers[STD] > 0).all()


# Draws that look like tissue

SIDE, PITCH = 16, 200.0


def tissue(name: str, seed: int) -> AnnData:
    """A section whose genes share two smooth fields that its image does not show."""
    section = make_section(name, seed=seed, n_spots=SIDE**2)
    rng = np.random.default_rng(seed)
    spatial = np.exp(-cdist(section.obsm["spatial_um"], section.obsm["spatial_um"]) / PITCH / 4)
    fields = np.linalg.cholesky(spatial + 1e-9 * np.eye(SIDE**2)) @ rng.normal(size=(SIDE**2, 2))
    loads = np.array([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, -1]]) * 0.5
    seen = 0.15 * section.obsm["scatter"] @ WEIGHTS / 2
    section.X = sparse.csr_matrix(rng.poisson(np.exp(3 + seen + fields @ loads)).astype(np.float32))
    return section


def structure(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Moran's I of every gene, and the correlations between genes, of a section (n_spots, n_genes)."""
    graph = neighbors(tissue("any", 0).obsm["spatial_um"], 4)
    return moran(values, graph.index, graph.mask), np.corrcoef(values.T)[np.triu_indices(values.shape[1], 1)]


def test_a_draw_has_the_structure_of_tissue_and_a_mean_has_not():
    *train, test = [tissue(f"T{i}", seed=20 + i) for i in range(5)]
    predicted = STFlow(**SMALL, normalize="none").fit(train, panel=PANEL).predict(test, return_samples=True)
    draws = predicted.uns[UNS]["samples"]
    mean = np.asarray(predicted.X)
    alone = mean + np.random.default_rng(0).normal(size=draws.shape) * predicted.layers[STD]
    measured = [structure(panel_log1p(s, PANEL, "none")) for s in [*train, test]]
    wanted = [np.mean([own[kind] for own in measured], axis=0) for kind in (0, 1)]
    off = {
        name: [np.abs(np.mean([structure(one)[kind] for one in many], axis=0) - wanted[kind]).mean() for kind in (0, 1)]
        for name, many in {"draw": draws, "mean": [mean], "noise": alone}.items()
    }
    for kind in (0, 1):
        assert off["draw"][kind] < 0.6 * off["mean"][kind], off
        assert off["draw"][kind] < 0.6 * off["noise"][kind], off
    spread = np.asarray(predicted.layers[STD]).mean() / np.std(panel_log1p(test, PANEL, "none") - mean)
    assert 0.6 < spread < 1.5
