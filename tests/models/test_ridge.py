"""RidgeProbe: its options, what they do to a fit and a prediction, and that they survive a file."""

import numpy as np
import pytest
from tests.models.conftest import GENES, make_section

from histoflow import models
from histoflow._errors import OptionError, TrainingWarning
from histoflow.models import RidgeProbe
from histoflow.models.hest_recipe import ODDITIES
from histoflow.models.ridge_folds import ALPHAS
from histoflow.models.smoothing import WEIGHTS, Smoother
from histoflow.models.spots import spots_of
from histoflow.pp import Panel

PANEL = Panel(tuple(GENES))
SMOOTH_UM = 250.0


def fitted(sections, **options):
    return RidgeProbe(**options).fit(sections, panel=PANEL)


def patchwork(name, seed):
    """A section whose expression is smooth over neighbours and whose embeddings know it but for noise."""
    section = make_section(name, seed, n_spots=144)
    rng = np.random.default_rng(seed)
    smooth = np.sin(section.obsm["spatial_um"] / 400).sum(axis=1)
    section.X = rng.poisson(np.exp(2 + smooth[:, None] * np.linspace(-1, 1, len(GENES)))).astype(np.float32)
    section.obsm["scatter"] = (smooth[:, None] + rng.normal(0, 3, (144, 12))).astype(np.float32)
    return section


@pytest.fixture(scope="module")
def smooth_sections():
    return [patchwork(f"S{i}", i) for i in range(4)]


def test_strengths_tried_are_those_given(sections):
    model = fitted(sections, alphas=[3, 30.0, 300])
    assert model.training_["alphas"] == [3.0, 30.0, 300.0]
    assert model.training_["alpha"] in {3.0, 30.0, 300.0}
    assert fitted(sections).training_["alphas"] == ALPHAS.tolist()
    assert fitted(sections, alphas=(1e5,)).training_["alpha"] == 1e5


def test_a_strength_for_every_gene(sections):
    shared, own = fitted(sections), fitted(sections, per_gene_alpha=True)
    assert len(own.training_["alpha_by_target"]) == len(PANEL)
    assert len(set(own.training_["alpha_by_target"])) > 1
    assert own.training_["alpha"] == shared.training_["alpha"]
    assert not np.array_equal(own.predict(sections[0]).X, shared.predict(sections[0]).X)


def test_predictions_are_blended_with_the_weight_that_was_chosen(smooth_sections):
    *train, test = smooth_sections
    plain, smooth = fitted(train), fitted(train, smooth_um=SMOOTH_UM)
    weight = smooth.training_["smooth_weight"]
    assert weight > 0
    assert smooth.training_["smooth_weights"] == list(WEIGHTS)
    own = plain.predict(test).X
    wanted = Smoother.of([spots_of(test, "scatter")], SMOOTH_UM).blend(own, weight)
    np.testing.assert_allclose(smooth.predict(test).X, wanted, rtol=1e-5)


def test_a_lone_spot_keeps_its_own_prediction(smooth_sections):
    *train, test = smooth_sections
    alone = test[[0, 140]].copy()
    np.testing.assert_array_equal(fitted(train, smooth_um=SMOOTH_UM).predict(alone).X, fitted(train).predict(alone).X)


def test_pieces_of_tissue_are_not_mixed(smooth_sections):
    *train, test = smooth_sections
    split = test.copy()
    split.obs["tissue_id"] = np.arange(test.n_obs)
    np.testing.assert_array_equal(fitted(train, smooth_um=SMOOTH_UM).predict(split).X, fitted(train).predict(test).X)


OPTIONS = [
    {"alphas": [1.0, 100.0], "per_gene_alpha": True, "smooth_um": SMOOTH_UM},
    {"smooth_um": SMOOTH_UM},
    {"protocol": "hest", "normalize": "none"},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_options_survive_a_file(smooth_sections, options, tmp_path):
    *train, test = smooth_sections
    model = fitted(train, **options)
    model.save(tmp_path / "m")
    loaded = models.load(tmp_path / "m")
    assert loaded.options() == model.options()
    assert loaded.training_ == model.training_
    np.testing.assert_array_equal(loaded.predict(test).X, model.predict(test).X)
    assert loaded.clone(seed=1).options() == model.options() | {"seed": 1}


def test_order_of_spots_does_not_matter_to_smoothing(smooth_sections):
    *train, test = smooth_sections
    order = np.random.default_rng(0).permutation(test.n_obs)
    model = fitted(train, smooth_um=SMOOTH_UM)
    np.testing.assert_allclose(model.predict(test[order].copy()).X, model.predict(test).X[order], atol=1e-5)


def test_blocks_stand_in_for_sections_in_choosing_the_weight(smooth_sections):
    with pytest.warns(TrainingWarning, match="1 training section"):
        model = fitted(smooth_sections[:1], smooth_um=SMOOTH_UM)
    assert "spatial blocks" in model.training_["inner_folds"]
    assert model.training_["smooth_weight"] in WEIGHTS


def test_hest_tells_what_is_odd(sections):
    model = fitted(sections, protocol="hest", normalize="none")
    assert model.training_["oddities"] == list(ODDITIES)
    assert model.training_["differs"] == ["12 components for want of spots or features, the recipe's are 256"]
    assert "normalize='none'" in fitted(sections, protocol="hest").training_["differs"][1]
    assert abs(model.predict(sections[0]).X.mean()) < 1
    for word in ("no mean", "MSE and R²", 'normalize="none"', "docstring", "test included", "pools"):
        assert word in RidgeProbe.__doc__


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"protocol": "ridge"}, "protocol is 'ridge'; choose one of grouped-cv, hest"),
        ({"protocol": "hest", "alphas": [1.0]}, "protocol hest has a fixed strength and no smoothing"),
        ({"protocol": "hest", "per_gene_alpha": True}, "protocol hest has a fixed strength"),
        ({"protocol": "hest", "smooth_um": 100.0}, "protocol hest has a fixed strength"),
        ({"alphas": []}, "alphas is .*; give one strength or more"),
        ({"alphas": [1.0, 0.0]}, "each above 0"),
        ({"alphas": [float("nan")]}, "each above 0"),
        ({"smooth_um": 0.0}, "smooth_um is 0.0; give a radius in µm above 0"),
    ],
)
def test_options_that_are_not_offered(options, text):
    with pytest.raises(OptionError, match=text):
        RidgeProbe(**options)
