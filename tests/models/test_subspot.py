"""SubspotRegressor: planted super-pixels are found from their sums, and a prediction is the sum it shows."""

import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

from histoflow import models
from histoflow._errors import NotFittedError, OptionError, ShapeError
from histoflow._keys import EMBEDDINGS, UNS
from histoflow.pp import Panel
from histoflow.stats import pearson

N_FEATURES, N_GENES = 6, 5
WEIGHTS = np.random.default_rng(5).normal(size=(N_FEATURES, N_GENES)) * 0.5
PANEL = Panel(tuple(f"G{i}" for i in range(N_GENES)))
FAST = models.Training(max_epochs=8, patience=3, n_members=3, n_searches=1, learning_rate=2e-3, batch_size=16)

pytestmark = pytest.mark.filterwarnings("ignore::histoflow._errors.TrainingWarning")


def rates(features):
    """Counts per 10,000 of a spot that is all like one super-pixel; a bend that no linear map has."""
    return np.exp(3 + features @ WEIGHTS + 0.3 * np.abs(features[..., :1]))


def section(name, seed, n_spots=120, n_superpixels=9):
    rng = np.random.default_rng(seed)
    bags = rng.normal(size=(n_spots, 1, N_FEATURES)) * 0.7 + rng.normal(size=(n_spots, n_superpixels, N_FEATURES)) * 0.7
    mean = rates(bags).mean(axis=1)
    rest = 10_000 - mean.sum(axis=1, keepdims=True)
    counts = rng.poisson(np.concatenate([mean, np.maximum(rest, 100)], axis=1))
    made = AnnData(sparse.csr_matrix(counts.astype(np.float32)))
    made.var_names = [*PANEL.genes, "REST"]
    made.obs_names = [f"{name}-{i}" for i in range(n_spots)]
    side = int(np.ceil(np.sqrt(n_spots)))
    xy = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2)[:n_spots] * 100.0
    made.obsm["spatial"], made.obsm["spatial_um"] = xy, xy
    made.obsm["scatter_dense"] = bags.reshape(n_spots, -1).astype(np.float32)
    facts = {"id": "a" * 12, "name": "scatter", "n_features": N_FEATURES, "licence": "BSD-3-Clause"}
    made.uns[UNS] = {"section": name, "slide_id": name, "pitch_um": 100.0, EMBEDDINGS: {"scatter_dense": facts}}
    return made


@pytest.fixture(scope="module")
def sections():
    return [section(f"S{i}", i, n_superpixels=9 if i < 2 else 16) for i in range(3)]


@pytest.fixture(scope="module")
def fitted(sections):
    return models.SubspotRegressor(training=FAST, hidden_dim=16, n_components=6).fit(sections, panel=PANEL)


def test_super_pixels_are_found_from_the_sums_of_spots(fitted):
    features = np.random.default_rng(9).normal(size=(2000, N_FEATURES)).astype(np.float32)
    members = fitted.superpixels(features)
    assert members.shape == (3, 2000, N_GENES)
    assert (members > 0).all()
    r = pearson(np.log1p(rates(features)), np.log1p(members.mean(axis=0)))
    assert r.min() > 0.9


def test_a_spot_is_the_sum_of_its_super_pixels(fitted):
    query = section("Q", 11, n_superpixels=4)
    predicted = fitted.predict(query, n_samples=1)
    bags = query.obsm["scatter_dense"].reshape(-1, N_FEATURES)
    shares = fitted.superpixels(bags).mean(axis=0).reshape(query.n_obs, 4, N_GENES) / 4
    np.testing.assert_allclose(predicted.X, np.log1p(shares.sum(axis=1)), rtol=1e-5)
    assert predicted.uns[UNS]["n_samples"] == 3
    assert (predicted.layers["std"] > 0).all()


def test_sections_may_have_spots_of_different_sizes(fitted):
    assert fitted.training_["n_superpixels"] == [9, 9, 16]
    assert fitted.n_superpixels_ == 9


def test_the_number_of_epochs_is_chosen_and_may_be_none(sections, fitted):
    assert 0 <= fitted.training_["n_epochs"] <= FAST.max_epochs
    assert len(fitted.history_["search"]) == 1
    unhelpful = models.Training(max_epochs=2, n_members=1, n_searches=1, learning_rate=10.0, batch_size=16)
    ridge = models.SubspotRegressor(training=unhelpful, hidden_dim=4, n_components=2).fit(sections, panel=PANEL)
    assert ridge.training_["n_epochs"] == 0
    assert ridge.history_["final"] == []
    fixed = models.Training(max_epochs=2, n_members=1, n_searches=0, batch_size=16)
    assert ridge.clone(training=fixed).fit(sections, panel=PANEL).training_["n_epochs"] == 2


def test_one_head_has_no_spread(sections):
    alone = models.Training(max_epochs=1, n_members=1, n_searches=0, batch_size=16)
    predicted = models.SubspotRegressor(training=alone).fit(sections[:1], panel=PANEL).predict(sections[1])
    assert "std" not in predicted.layers


def test_another_seed_is_another_ensemble(sections, fitted):
    other = fitted.clone(seed=1).fit(sections, panel=PANEL)
    assert not np.allclose(other.predict(sections[0]).X, fitted.predict(sections[0]).X, atol=1e-5)


def test_rows_that_are_no_bags_and_options_that_are_none(fitted, sections):
    torn = sections[0].copy()
    torn.obsm["scatter_dense"] = torn.obsm["scatter_dense"][:, :-1]
    with pytest.raises(ShapeError, match="53 numbers, not a multiple of the 6 of a super-pixel"):
        fitted.predict(torn)
    with pytest.raises(OptionError, match="hidden_dim is 0"):
        models.SubspotRegressor(hidden_dim=0)
    with pytest.raises(NotFittedError):
        fitted.clone().superpixels(np.zeros((1, N_FEATURES), np.float32))
    with pytest.raises(OptionError, match="istar looks at super-pixels, which LazySlide does not hand over"):
        models.as_lazyslide_model(fitted, mpp=0.5, tile_px=224)
