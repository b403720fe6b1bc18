"""STPathZeroShot: genes in their columns, context spots, refusals, one folder without the original files."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from anndata import AnnData
from safetensors.torch import save_file
from tests import einops_stub  # noqa: F401  LazySlide's model needs einops
from tests.models.conftest import GENES, make_section
from tests.models.stpath_files import SMALL, TRUE, random_state, vocabulary, write_files

from histoflow import bench, models
from histoflow._errors import (
    CountsError,
    EncoderMismatchError,
    ModelFormatError,
    NotFittedError,
    OptionError,
    PanelMismatchError,
    WeightsError,
)
from histoflow._files import file_hash
from histoflow._keys import EMBEDDINGS, UNS
from histoflow.models.storage import MODEL_JSON, WEIGHTS, sealed

SECTION = make_section("S", seed=3)
STATED = {"organ": "breast"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("stpath"), GENES)


@pytest.fixture(scope="module")
def whole(weights):
    model = models.STPathZeroShot(weights, **STATED)
    return model.fit([], panel=model.all_genes())


def ready(weights, panel=GENES[:2], **options):
    return models.STPathZeroShot(weights, **STATED | options).fit([], panel=panel)


def test_chosen_genes_are_the_columns_of_all_in_the_order_asked_for(weights, whole):
    everything = whole.predict(SECTION)
    ids = vocabulary(GENES)
    assert list(everything.var_names) == sorted(set(ids.values())) == list(everything.var["gene_ids"])
    panel = [GENES[4], ids[GENES[1]], GENES[0], f"{GENES[0]}-ALIAS"]
    chosen = ready(weights, panel).predict(SECTION)
    assert list(chosen.var_names) == panel
    of_panel = [ids[GENES[4]], ids[GENES[1]], ids[GENES[0]], ids[GENES[0]]]
    assert list(chosen.var["gene_ids"]) == of_panel
    np.testing.assert_allclose(chosen.X, everything[:, of_panel].X, atol=1e-6)
    assert len(np.unique(everything.X.round(4), axis=1).T) == len(GENES)


def test_a_column_is_that_of_its_gene(weights, whole, tmp_path):
    """The bias of one gene's row in the file moves that gene, and no other."""
    state = torch.load(weights, weights_only=True)
    token = 2 + sorted(set(vocabulary(GENES).values())).index(vocabulary(GENES)["G3"])
    state["gene_exp_head.1.bias"][token] += 5.0
    shutil.copytree(weights.parent, tmp_path / "moved")
    torch.save(state, tmp_path / "moved" / "stfm.pth")
    before = ready(weights, GENES).predict(SECTION).to_df()
    after = ready(tmp_path / "moved" / "stfm.pth", GENES).predict(SECTION).to_df()
    np.testing.assert_allclose((after - before)["G3"], 5.0, rtol=1e-5)
    np.testing.assert_array_equal(after.drop(columns="G3"), before.drop(columns="G3"))


def test_every_way_of_saving_weights_is_read(weights, tmp_path):
    state = torch.load(weights, weights_only=True)
    save_file(state, tmp_path / "w.safetensors")
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "w.ckpt")
    named = {"vocabulary": weights.with_name("symbol2ensembl.json")}
    first = ready(weights).predict(SECTION).X
    for name in ("w.safetensors", "w.ckpt"):
        np.testing.assert_array_equal(ready(tmp_path / name, **named).predict(SECTION).X, first)


def test_organ_and_technology_reach_the_network_and_the_record(weights):
    first = ready(weights).predict(SECTION)
    assert (first.uns[UNS]["organ"], first.uns[UNS]["tech"]) == ("Breast", "Visium")
    assert first.uns[UNS]["embedding"] == ready(weights).embedding_ | {"version": "2", "licence": "BSD-3-Clause"}
    for changed in ({"organ": "Lung"}, {"organ": "unstated"}, {"tech": "Xenium"}):
        other = ready(weights, **changed).predict(SECTION)
        assert np.abs(other.X - first.X).max() > 0.01
        assert other.uns[UNS] | changed == other.uns[UNS]


def test_sections_are_checked_and_nothing_is_learned_of_them(weights):
    fitted = models.STPathZeroShot(weights, **STATED).fit([make_section("T", seed=8)], panel=GENES[:2])
    np.testing.assert_array_equal(fitted.predict(SECTION).X, ready(weights).predict(SECTION).X)
    assert fitted.predict(SECTION).uns[UNS]["trained_on"] == []
    assert fitted.embedding_ == ready(weights).embedding_
    bad = make_section("U", seed=1)
    bad.uns[UNS][EMBEDDINGS]["gigapath"]["name"] = "uni"
    with pytest.raises(EncoderMismatchError, match="section U was embedded with uni"):
        models.STPathZeroShot(weights, **STATED).fit([bad], panel=GENES[:2])


def test_embeddings_that_we_standardised_are_undone(weights):
    section, rng = SECTION.copy(), np.random.default_rng(0)
    raw = SECTION.obsm["gigapath"]
    mean, spread = rng.normal(size=3072).astype(np.float32), rng.uniform(0.5, 2, 3072).astype(np.float32)
    own = (np.concatenate([raw, raw * 0.5], axis=1) - mean) / spread
    section.obsm["gigapath"] = np.concatenate([own, own, own], axis=1)
    made = {"name": "gigapath", "id": "x", "patch_um": [112.0, 224.0], "context_um": [250.0, 500.0], "grid_um": 112.0}
    section.uns[UNS][EMBEDDINGS]["gigapath"] = made | {"grid_centre": mean, "grid_spread": spread}
    model = ready(weights)
    np.testing.assert_allclose(model.predict(section).X, model.predict(SECTION).X, atol=1e-4)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"name": "uni"}, "was embedded with uni"),
        ({"patch_um": [56.0]}, r"patch_um \[56.0\]"),
        ({"context_um": [250.0]}, "but stpath takes the 1536 numbers of gigapath for patches of 112 µm"),
        ({"standardize": True}, r"hf\.embed\(section, \"gigapath\"\) makes them"),
    ],
)
def test_embeddings_of_another_make_are_refused(weights, changed, told):
    section = SECTION.copy()
    section.uns[UNS][EMBEDDINGS]["gigapath"] = section.uns[UNS][EMBEDDINGS]["gigapath"] | changed
    with pytest.raises(EncoderMismatchError, match=told):
        ready(weights).predict(section)


def test_embeddings_of_another_width_are_refused(weights):
    section = SECTION.copy()
    section.obsm["gigapath"] = section.obsm["gigapath"][:, :384]
    with pytest.raises(EncoderMismatchError, match="384 numbers a spot, but stpath takes the 1536"):
        ready(weights).predict(section)
    del section.uns[UNS][EMBEDDINGS]["gigapath"]
    with pytest.raises(EncoderMismatchError, match="an encoder that it does not record"):
        ready(weights).predict(section)


def test_equal_to_lazyslides_model_on_a_file_of_the_published_shapes(tmp_path):
    from lazyslide_models.feature_prediction.stpath import STPath

    symbols = [f"SYMBOL{i}" for i in range(38_982)]
    path, genes = write_files(tmp_path, symbols, **TRUE), [symbols[i] for i in (38_000, 0, 12_345)]
    files = {"model_path": str(path), "gene_voc_path": str(tmp_path / "symbol2ensembl.json")}
    theirs = STPath(organ_type="Kidney", tech_type="Visium HD", genes=genes, **files)
    expected = theirs.predict(SECTION.obsm["gigapath"], SECTION.obsm["spatial"])
    predicted = ready(path, genes, organ="kidney", tech="visium hd").predict(SECTION)
    assert list(predicted.var_names) == list(expected) == genes
    np.testing.assert_allclose(predicted.X.T, np.stack(list(expected.values())), atol=1e-5)


def test_lazyslide_may_run_it_on_its_tiles(weights):
    model = ready(weights)
    wrapped = models.as_lazyslide_model(model, mpp=0.5, tile_px=224)
    got = wrapped.predict(SECTION.obsm["gigapath"], SECTION.obsm["spatial"] - 112)
    np.testing.assert_allclose(np.stack(list(got.values()), axis=1), model.predict(SECTION).X, atol=1e-5)


# spots of known expression


def test_measured_spots_are_context_for_all_others(weights):
    model = ready(weights)
    measured = SECTION[[4, 40, 11]].copy()
    given = model.predict_given_spots(SECTION, measured)
    alone = model.predict(SECTION)
    assert list(given.obs_names) == list(SECTION.obs_names)
    assert list(given.obs_names[given.obs["is_context"]]) == [SECTION.obs_names[i] for i in (4, 11, 40)]
    others = ~given.obs["is_context"].to_numpy()
    assert np.abs(given.X - alone.X)[others].max() > 1e-3
    np.testing.assert_array_equal(model.predict_given_spots(SECTION, measured[::-1].copy()).X, given.X)
    np.testing.assert_array_equal(model.predict(SECTION).X, alone.X)


def test_counts_of_context_count_and_those_of_the_section_do_not(weights):
    model, measured, more = ready(weights), SECTION[[4, 40]].copy(), SECTION[[4, 40]].copy()
    more.X = more.X * 3
    scrambled = SECTION.copy()
    scrambled.X = scrambled.X[::-1]
    given = model.predict_given_spots(SECTION, measured).X
    assert np.abs(model.predict_given_spots(SECTION, more).X - given).max() > 1e-3
    np.testing.assert_array_equal(model.predict_given_spots(scrambled, measured).X, given)


def test_names_of_context_genes_may_be_symbols_or_ids_and_add_up(weights):
    model, measured = ready(weights), SECTION[[4, 40]].copy()
    measured.X = np.asarray(measured.X.todense()) * 2
    given = model.predict_given_spots(SECTION, measured).X
    by_id = measured.copy()
    by_id.var_names = [vocabulary(GENES)[gene] for gene in GENES]
    np.testing.assert_allclose(model.predict_given_spots(SECTION, by_id[:, ::-1].copy()).X, given, atol=1e-6)
    counts = np.concatenate([measured.X, measured.X[:, :1]], axis=1)
    counts[:, [0, -1]] /= 2
    halves = AnnData(counts, obs=measured.obs)
    halves.var_names = [*GENES, f"{GENES[0]}-ALIAS"]
    np.testing.assert_allclose(model.predict_given_spots(SECTION, halves).X, given, atol=1e-6)
    halves.var_names = [*GENES, "unheard of"]
    assert np.abs(model.predict_given_spots(SECTION, halves).X - given).max() > 1e-4


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_context_that_means_nothing_is_refused(weights):
    model, measured = ready(weights), SECTION[[4, 40]].copy()
    with pytest.raises(OptionError, match="2 of 2 measured spots are not of section S"):
        model.predict_given_spots(SECTION, make_section("T", seed=1)[:2].copy())
    with pytest.raises(OptionError, match=r"0 of 2 measured spots .* each once"):
        model.predict_given_spots(SECTION, SECTION[[4, 4]].copy())
    with pytest.raises(OptionError, match="0 of 0 measured spots"):
        model.predict_given_spots(SECTION, SECTION[:0].copy())
    measured.X = measured.X * 0.5
    with pytest.raises(CountsError, match="of section S is not raw counts"):
        model.predict_given_spots(SECTION, measured)
    strangers = SECTION[[4]].copy()
    strangers.var_names = [f"Mm{i}" for i in range(len(GENES))]
    with pytest.raises(PanelMismatchError, match=r"knows none of the 6 genes .*such as Mm0"):
        model.predict_given_spots(SECTION, strangers)
    with pytest.raises(NotFittedError):
        model.clone().predict_given_spots(SECTION, measured)


# all genes


@pytest.mark.parametrize("n_genes", [1, 4, 100])
def test_streamed_columns_are_those_of_predict(whole, n_genes):
    frame, columns = whole.predict_streamed(SECTION, n_genes=n_genes)
    parts = list(columns)
    assert {part.shape[1] for part in parts[:-1]} <= {n_genes}
    predicted = whole.predict(SECTION)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), predicted.X, atol=1e-6)
    assert frame.X is None
    frame.X = predicted.X
    assert frame.to_df().equals(predicted.to_df())
    assert frame.uns[UNS] == predicted.uns[UNS]


def test_a_stream_of_no_genes_is_refused(whole):
    with pytest.raises(OptionError, match="n_genes is 0"):
        whole.predict_streamed(SECTION, n_genes=0)


# files


def test_a_saved_model_needs_no_other_file(tmp_path):
    weights = write_files(tmp_path / "brought", GENES)
    model = ready(weights, GENES[:3])
    model.save(tmp_path / "model")
    before = model.predict_given_spots(SECTION, SECTION[:5].copy()).X
    shutil.rmtree(weights.parent)
    loaded = models.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict_given_spots(SECTION, SECTION[:5].copy()).X, before)
    text = (tmp_path / "model" / "model.json").read_text()
    assert str(tmp_path) not in text
    training = json.loads(text)["training"]
    assert training["weights_licence"].startswith("none stated for the public weights")
    assert len(training["weights_hash"]) == 64
    with pytest.raises(WeightsError, match="stpath needs the file of its weights"):
        loaded.clone().fit([], panel=GENES[:1])


def seal(folder):
    """Make the hashes of a changed model right."""
    described = json.loads((folder / MODEL_JSON).read_text())
    (folder / MODEL_JSON).write_text(json.dumps(sealed(described, file_hash(folder / WEIGHTS))))


def test_a_saved_model_whose_parts_do_not_belong_together_is_refused(weights, tmp_path):
    ready(weights, GENES[:3]).save(tmp_path / "a")
    ready(weights, GENES[:2]).save(tmp_path / "b")
    shutil.copy(tmp_path / "a" / WEIGHTS, tmp_path / "b" / WEIGHTS)
    seal(tmp_path / "b")
    with pytest.raises(ModelFormatError, match="3 outputs for 2 genes"):
        models.load(tmp_path / "b")
    save_file({"x": torch.zeros(1)}, tmp_path / "b" / WEIGHTS)
    seal(tmp_path / "b")
    with pytest.raises(ModelFormatError, match="do not fit together"):
        models.load(tmp_path / "b")


class Evil:
    """Runs something when it is unpickled."""

    def __reduce__(self):
        return print, ("pickled code ran",)


def test_pickled_code_is_refused_and_not_run(weights, tmp_path, capsys):
    path = tmp_path / "stfm.pth"
    torch.save(torch.load(weights, weights_only=True) | {"more": Evil()}, path)
    shutil.copy(weights.with_name("symbol2ensembl.json"), tmp_path)
    with pytest.raises(WeightsError, match=r"stfm\.pth cannot be read .*safetensors file, a state dict"):
        ready(path)
    assert "pickled code ran" not in capsys.readouterr().out


def test_weights_and_vocabulary_that_do_not_belong_together_are_refused(weights, tmp_path):
    other = tmp_path / "v.json"
    other.write_text(json.dumps(vocabulary(GENES[:5])))
    with pytest.raises(WeightsError, match=r"holds 5 Ensembl ids.*stfm\.pth have 8.*the name of another gene"):
        ready(weights, vocabulary=other)
    narrow = random_state(8, **SMALL)
    narrow["input_encoder.image_embed.weight"] = torch.zeros(32, 1024)
    torch.save(narrow, tmp_path / "narrow.pth")
    with pytest.raises(WeightsError, match=r"narrow\.pth take 1024 numbers of a spot, but GigaPath makes 1536"):
        ready(tmp_path / "narrow.pth", vocabulary=weights.with_name("symbol2ensembl.json"))


def test_what_is_missing_is_named_with_where_it_comes_from(tmp_path):
    where = r"never downloaded by it.*huggingface\.co/tlhuang/STPath, which states no licence; give yours with weights="
    with pytest.raises(WeightsError, match=f"stpath needs the file of its weights; .*{where}"):
        ready(None)
    with pytest.raises(WeightsError, match=rf"none\.pth do not exist; .*{where}"):
        ready(tmp_path / "none.pth")
    torch.save(random_state(8, **SMALL), tmp_path / "stfm.pth")
    with pytest.raises(WeightsError, match=r"symbol2ensembl\.json does not exist; .*put it beside them"):
        ready(tmp_path / "stfm.pth")
    with pytest.raises(OptionError, match=r"stpath needs the organ; .*Spinal cord, .*Others, or \"unstated\""):
        models.STPathZeroShot(tmp_path / "stfm.pth").fit([], panel=GENES)


def test_unknown_words_and_genes_are_refused(weights):
    with pytest.raises(OptionError, match=r"organ is 'Brest'.* did you mean 'Breast'\?"):
        models.STPathZeroShot(weights, organ="Brest")
    with pytest.raises(OptionError, match=r"tech is 'Visiom'.* did you mean 'Visium'\?"):
        models.STPathZeroShot(weights, organ="Breast", tech="Visiom")
    with pytest.raises(PanelMismatchError, match=r"lacks 1 of the 2 genes asked for: G00 \(nearest: G0\)"):
        ready(weights, ["G1", "G00"])
    with pytest.raises(OptionError, match=r"normalize is 'library'; give normalize='none' \(--normalize none\)"):
        models.STPathZeroShot(weights, normalize="library")


def test_a_fit_that_is_refused_leaves_nothing_fitted(weights):
    model = ready(weights, ["G0", "G1"])
    with pytest.raises(PanelMismatchError):
        model.fit([], panel=["G2", "unheard of"])
    with pytest.raises(NotFittedError):
        model.predict(SECTION)


def test_the_missing_licence_is_shown_before_use(weights, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="histoflow"):
        model = ready(weights)
        assert "stpath: licence of the weights: none stated" in caplog.text
        model.save(tmp_path / "model")
        caplog.clear()
        models.load(tmp_path / "model")
        assert "none stated" in caplog.text
    assert "none stated" in model.predict(SECTION).uns[UNS]["weights_licence"]


# in a table with others


def test_it_stands_in_the_table_on_its_own_scale(weights, tmp_path):
    sections = [make_section(f"S{i}", seed=i) for i in range(3)]
    estimators = {"mean": models.MeanBaseline(), "stpath": models.STPathZeroShot(weights, **STATED)}
    table = bench.run(sections, models=estimators, panel=3, normalize="none", out=tmp_path)
    scored = table[(table["model"] == "stpath") & (table["metric"] == "pearson")]
    assert np.isfinite(scored["value"]).all()
    assert len(scored) == 9
    kept = models.load(bench.model_path(tmp_path, fold="S0", model="stpath"))
    predicted = bench.read_prediction(tmp_path, fold="S0", section="S0", model="stpath")
    np.testing.assert_array_equal(kept.predict(sections[0]).X, predicted.X)
    with pytest.raises(OptionError, match="for every model that is compared with it"):
        bench.run(sections, models=estimators, panel=3)


def test_other_weights_under_the_same_name_are_scored_anew(tmp_path):
    sections = [make_section(f"S{i}", seed=i) for i in range(2)]
    weights = write_files(tmp_path / "w", GENES)
    how = {"models": {"stpath": models.STPathZeroShot(weights, **STATED)}, "panel": 3, "normalize": "none"}
    first = bench.run(sections, **how, out=tmp_path / "o")
    torch.save(random_state(8, **SMALL, seed=1), weights)
    again = bench.run(sections, **how, out=tmp_path / "o")
    assert not np.allclose(first["value"], again["value"])
    moved = write_files(tmp_path / "moved", GENES, seed=1)
    assert models.STPathZeroShot(moved, **STATED).identity() == models.STPathZeroShot(weights, **STATED).identity()


def test_it_is_made_by_name_on_its_scale_and_keeps_its_encoder():
    made = models.from_name("stpath", encoder="scatter", normalize="none", seed=2)
    assert (made.encoder, made.normalize, made.seed) == ("gigapath", "none", 2)
    with pytest.raises(OptionError, match="log1p of raw counts"):
        models.from_name("stpath")
