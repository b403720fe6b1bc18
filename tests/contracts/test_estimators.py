"""What every estimator promises: order, names, input, seed, files, refusals, one spot."""

import json

import numpy as np
import pytest
from tests.models.conftest import GENES, make_section
from tests.models.stpath_files import write_files

from histoflow import models
from histoflow._errors import (
    EncoderMismatchError,
    MissingSlotError,
    ModelFormatError,
    NotFittedError,
    PanelMismatchError,
    ReadError,
)
from histoflow._keys import EMBEDDINGS, UNS
from histoflow.bench import shuffle_counts
from histoflow.pp import Panel, panel_log1p
from histoflow.stats import pearson

SMALL = {
    "network": models.Network(hidden_dim=16, pairwise_dim=16, n_layers=2, n_heads=2, n_components=8),
    "training": models.Training(max_epochs=2, crops_per_section=2),
}
KINDS = [
    models.MeanBaseline(),
    models.LibrarySizeBaseline(),
    models.ColorBaseline(),
    models.RidgeProbe(),
    models.RidgeProbe(protocol="hest"),
    models.RidgeProbe(smooth_um=450.0, per_gene_alpha=True, alphas=[1.0, 10.0, 100.0]),
    models.STFlow(**SMALL),
    models.STFlow("paper", **SMALL),
    models.STPathZeroShot(organ="Breast"),
    models.SubspotRegressor(
        training=models.Training(max_epochs=2, n_members=2, n_searches=1, batch_size=32), hidden_dim=8, n_components=4
    ),
    models.Calibrated(models.RidgeProbe()),
    models.Calibrated(models.STFlow(**SMALL)),
]
DRAW = ("stflow", "istar")
PANEL = Panel(tuple(GENES[:5]))


@pytest.fixture(scope="module")
def stpath_weights(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("stpath"), GENES)


@pytest.fixture(
    params=KINDS,
    ids=lambda e: (
        f"{e.name}-{e.method}-{getattr(e, 'protocol', getattr(e, 'recipe', ''))}-{getattr(e, 'smooth_um', None)}"
    ),
    scope="module",
)
def fitted(request, stpath_weights):
    brought = {} if request.param.learns else {"weights": str(stpath_weights)}
    return request.param.clone(**brought).fit([make_section(f"S{i}", seed=i) for i in range(3)], panel=PANEL)


QUERY = make_section("Q", seed=9)


def test_names_shape_and_facts(fitted):
    predicted = fitted.predict(QUERY, n_samples=3)
    assert list(predicted.obs_names) == list(QUERY.obs_names)
    assert list(predicted.var_names) == list(PANEL.genes)
    assert predicted.X.dtype == np.float32
    assert np.isfinite(predicted.X).all()
    facts = predicted.uns[UNS]
    assert (facts["method"], facts["panel_hash"]) == (fitted.method, PANEL.hash)
    assert facts["normalize"] == fitted.normalize == ("library" if fitted.learns else "none")
    assert ("std" in predicted.layers) == (fitted.method in DRAW)


def test_order_of_spots_does_not_matter(fitted):
    order = np.random.default_rng(0).permutation(QUERY.n_obs)
    straight, shuffled = fitted.predict(QUERY).X, fitted.predict(QUERY[order].copy()).X
    np.testing.assert_allclose(shuffled, straight[order], atol=1e-5)


def test_counts_are_never_read(fitted):
    scrambled = QUERY.copy()
    scrambled.X = scrambled.X[::-1] * 3
    np.testing.assert_array_equal(fitted.predict(scrambled).X, fitted.predict(QUERY).X)


def test_input_is_not_changed(fitted):
    query = QUERY.copy()
    fitted.predict(query)
    for slot in QUERY.obsm:
        np.testing.assert_array_equal(query.obsm[slot], QUERY.obsm[slot])
    assert query.uns.keys() == QUERY.uns.keys()


def test_same_seed_same_answer(fitted):
    again = fitted.clone().fit([make_section(f"S{i}", seed=i) for i in range(3)], panel=PANEL)
    np.testing.assert_array_equal(again.predict(QUERY).X, fitted.predict(QUERY).X)


def test_save_load_predict(fitted, tmp_path):
    fitted.save(tmp_path / "model")
    loaded = models.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict(QUERY).X, fitted.predict(QUERY).X)
    assert loaded.options() == fitted.options() | dict.fromkeys(fitted.local_options)
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"model.json", "weights.safetensors"}


def test_turned_mirrored_shifted_places_change_nothing(fitted):
    turned = QUERY.copy()
    xy = QUERY.obsm["spatial_um"]
    turned.obsm["spatial_um"] = np.array([70_000.0, 90_000.0]) - xy[:, ::-1]
    np.testing.assert_allclose(fitted.predict(turned).X, fitted.predict(QUERY).X, atol=1e-4)


@pytest.mark.parametrize("n_spots", [1, 2, 9])
def test_few_spots_work(fitted, n_spots):
    assert fitted.predict(QUERY[:n_spots].copy()).shape == (n_spots, len(PANEL))


def test_other_embedding_is_refused(fitted):
    if fitted.encoder is None:
        return
    other = make_section("O", seed=1, embedding_id="b" * 12)
    other.uns[UNS][EMBEDDINGS][fitted.encoder]["patch_um"] = [56.0]
    with pytest.raises(EncoderMismatchError, match="section O was embedded with"):
        fitted.predict(other)
    del other.obsm[fitted.slot]
    with pytest.raises(MissingSlotError, match=r"hf\.embed"):
        fitted.predict(other)


def test_panel_gene_missing_from_a_training_section(fitted):
    lacking = make_section("L", seed=2)[:, GENES[1:]].copy()
    with pytest.raises(PanelMismatchError, match="section L lacks 1"):
        fitted.clone().fit([make_section("S", seed=0), lacking], panel=PANEL)


def test_not_fitted(fitted):
    with pytest.raises(NotFittedError, match="call fit first"):
        fitted.clone().predict(QUERY)


def test_damaged_models_are_refused(fitted, tmp_path):
    folder = tmp_path / "model"
    fitted.save(folder)
    weights = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ModelFormatError, match="damaged"):
        models.load(folder)
    described = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(described | {"format": 99}))
    with pytest.raises(ModelFormatError, match="format 99"):
        models.load(folder)
    with pytest.raises(ReadError):
        models.load(tmp_path / "nowhere")


LEARNING = models.STFlow(
    network=models.Network(hidden_dim=32, pairwise_dim=32, n_layers=2, n_heads=2, n_components=12),
    training=models.Training(max_epochs=12, n_members=1, n_searches=0, learning_rate=3e-3),
)
QUICK = models.Training(max_epochs=10, n_members=2, learning_rate=1e-3, batch_size=32)


@pytest.mark.parametrize(
    "estimator",
    [models.RidgeProbe(), models.RidgeProbe("hest"), LEARNING, models.SubspotRegressor(training=QUICK)],
    ids=["grouped-cv", "hest", "stflow", "istar"],
)
def test_signal_is_found_and_shuffled_counts_hold_none(estimator):
    *train, test = [make_section(f"S{i}", seed=i, n_spots=100) for i in range(4)]
    panel = Panel(tuple(GENES))
    measured = panel_log1p(test, panel, "library")
    r = {}
    for name, sections in {"real": train, "shuffled": [shuffle_counts(s, seed=1) for s in train]}.items():
        predicted = estimator.clone().fit(sections, panel=panel).predict(test)
        r[name] = np.nan_to_num(pearson(measured, predicted.X)).mean()
    assert r["real"] > 0.5
    assert abs(r["shuffled"]) < 0.15
