"""The pretrained model from paths to results: the commands, `predict_expression`, predictions streamed to zarr."""

import anndata
import numpy as np
import pandas as pd
import pytest
import zarr
from anndata import AnnData
from scipy import sparse
from tests.io.test_features import write
from tests.models.conftest import make_section
from tests.models.stpath_files import vocabulary, write_files
from tests.test_cli import check_error, histoflow
from tests.test_workflow import tiny_cohort

import histoflow as hf
from histoflow import io, models, workflow
from histoflow._errors import EncoderMismatchError, OptionError, WeightsError
from histoflow._keys import EMBEDDINGS, UNS
from histoflow.pp import Encoder
from histoflow.workflow import zeroshot

GENES = [f"G{i}" for i in range(6)]
N_SPOTS = 36
PROJECTION = np.random.default_rng(0).normal(size=(48, 1536)).astype(np.float32)


def small_gigapath(name: str = "gigapath") -> Encoder:
    """Something with GigaPath's name and width: colours of sixteen parts of a patch, projected."""

    def encode(images):
        parts = images.unflatten(3, (4, -1)).unflatten(2, (4, -1)).mean((3, 5)).flatten(1)
        return parts @ parts.new_tensor(PROJECTION)

    return Encoder.from_callable(encode, name=name, patch_px=32)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("stpath"), GENES)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Manifest of three sections that are files of GigaPath features and counts, the last one held out."""
    folder, side = tmp_path_factory.mktemp("cohort"), int(N_SPOTS**0.5)
    rows = []
    corners = np.stack(np.divmod(np.arange(N_SPOTS), side), axis=1) * 200 + 1000
    for seed, section in enumerate(("A", "B", "C")):
        features = np.random.default_rng(seed).normal(size=(N_SPOTS, 1536)).astype(np.float32)
        path = write(folder / f"{section}.h5", "hest", features=features, corners=corners)
        counts = AnnData(sparse.csr_matrix(np.random.default_rng(seed).poisson(3.0, (N_SPOTS, 6)).astype(np.float32)))
        counts.obs_names = [f"AAAC{i:04d}-1" for i in range(N_SPOTS)]
        counts.var_names = GENES
        counts.write_h5ad(folder / f"{section}.h5ad")
        role = "held_out" if section == "C" else "reference"
        rows.append((section, "features", path.name, f"{section}.h5ad", "gigapath", 0.5, 112, role))
    columns = ["section", "kind", "slide", "counts", "encoder", "mpp", "patch_um", "role"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "cohort.csv", index=False)
    return folder / "cohort.csv"


@pytest.fixture(scope="module")
def slide(cache_folder):
    return tiny_cohort(cache_folder).parent / "P2_C" / "HE.tif"


@pytest.fixture
def gigapath(monkeypatch):
    """Whoever asks for GigaPath by name gets the small one."""
    asked = []

    def get(name, **where):
        asked.append((name, where))
        return small_gigapath(name)

    monkeypatch.setattr(workflow.cohorts, "get_encoder", get)
    monkeypatch.setattr(workflow.slides, "get_encoder", get)
    return asked


def stpath(weights, *arguments):
    return histoflow("predict", "--model", "stpath", "--weights", weights, *arguments)


# predict --model stpath


def test_every_gene_at_the_spots_of_a_section(weights, cohort, tmp_path, caplog):
    done = stpath(weights, "--organ", "Breast", cohort, "--out", tmp_path / "p.h5ad", "--json")
    assert done.code == 0
    assert done.json == {"prediction": str(tmp_path / "p.h5ad"), "n_spots": N_SPOTS, "n_genes": len(GENES)}
    assert caplog.text.count("licence of the weights: none stated") == 1
    predicted = anndata.read_h5ad(tmp_path / "p.h5ad")
    model = workflow.zero_shot(weights, organ="Breast")
    section = io.read_cohort(cohort).select(sections=["C"])[0]
    np.testing.assert_array_equal(predicted.X, model.predict(section).X)
    assert list(predicted.var_names) == sorted(set(vocabulary(GENES).values()))
    assert predicted.uns[UNS]["section"] == "C"


def test_options_of_the_command_reach_the_model(weights, cohort, tmp_path):
    elsewhere = tmp_path / "names.json"
    elsewhere.write_bytes(weights.with_name("symbol2ensembl.json").read_bytes())
    named = tmp_path / "genes.txt"
    named.write_text("G4\n\nG0\n")
    where = [cohort, "--section", "A", "--out", tmp_path / "p.h5ad", "--vocabulary", elsewhere]
    for genes in ("G4,G0", named):
        done = stpath(weights, *where, "--organ", "lung", "--tech", "visium-hd", "--genes", genes)
        assert done.out == f"predicted 2 genes at {N_SPOTS} places; they are in {tmp_path / 'p.h5ad'}\n"
        predicted = anndata.read_h5ad(tmp_path / "p.h5ad")
        assert list(predicted.var_names) == ["G4", "G0"]
        assert (predicted.uns[UNS]["organ"], predicted.uns[UNS]["tech"]) == ("Lung", "Visium HD")
        assert predicted.uns[UNS]["section"] == "A"


def test_tiles_of_a_slide_streamed_to_zarr(weights, slide, gigapath, tmp_path):
    out = tmp_path / "p.zarr"
    done = stpath(weights, "--organ", "Breast", slide, "--out", out, "--encoder-weights", "tile.bin")
    assert done.code == 0
    assert [(name, str(where["weights"])) for name, where in gigapath] == [("gigapath", "tile.bin")]
    predicted = anndata.read_zarr(out)
    assert predicted.n_vars == len(GENES)
    model = workflow.zero_shot(weights, organ="Breast")
    tiles = workflow.embed_tiles_for(model, io.open_wsi(slide))
    assert tiles.uns[UNS][EMBEDDINGS]["gigapath"]["patch_um"] == [112.0]
    np.testing.assert_allclose(predicted.X, model.predict(tiles).X, atol=1e-6)
    assert list(predicted.obs_names) == list(tiles.obs_names)


def test_a_saved_model_is_predicted_with_like_any_other(weights, cohort, tmp_path):
    workflow.zero_shot(weights, organ="Breast", genes=GENES[:2]).save(tmp_path / "model")
    done = histoflow("predict", tmp_path / "model", cohort, "--out", tmp_path / "p.h5ad", "--json")
    assert done.json["n_genes"] == 2
    check_error(
        histoflow("predict", tmp_path / "model", cohort, "--out", tmp_path / "p.h5ad", "--organ", "Lung"),
        2,
        "--organ: meant for --model stpath, not for the saved model",
    )


@pytest.mark.parametrize("arguments", [[], ["a.tif", "b.tif"], ["--model", "magic", "a.tif"]], ids=str)
def test_a_pretrained_model_takes_one_target(weights, tmp_path, arguments):
    done = stpath(weights, "--organ", "Breast", *arguments, "--out", tmp_path / "p.h5ad")
    assert (done.code, done.told[-1].startswith("Error: ")) == (2, True)


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        ([], 2, "stpath needs the organ; give organ= (--organ), one of Spinal cord"),
        (["--organ", "Brest"], 2, "did you mean 'Breast'?"),
        (["--organ", "Breast", "--tech", "CosMx"], 2, "tech is 'CosMx'"),
        (["--organ", "Breast", "--genes", "G0,G77"], 1, "lacks 1 of the 2 genes asked for: G77"),
        (["--organ", "Breast", "--genes", "none.txt"], 2, "--genes none.txt does not exist"),
        (["--organ", "Breast", "--vocabulary", "none.json"], 1, "gene vocabulary none.json does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_stpath_cannot_take_is_one_line(weights, cohort, tmp_path, options, code, text):
    check_error(stpath(weights, cohort, "--out", tmp_path / "p.h5ad", *options), code, text)
    assert list(tmp_path.iterdir()) == []


def test_missing_weights_are_one_line(cohort, tmp_path):
    target = [cohort, "--organ", "Breast", "--out", tmp_path / "p.h5ad"]
    check_error(histoflow("predict", "--model", "stpath", *target), 1, "stpath needs the file of its weights")
    check_error(stpath("none.pth", *target), 1, "stpath's weights none.pth do not exist")


# evaluate, fit


def test_it_is_evaluated_beside_others(weights, cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(workflow.evaluation, "draw_evaluation", lambda *_: None)
    asked = ["evaluate", cohort, "--out", tmp_path, "--models", "mean,stpath", "--panel", "3", "--json"]
    of_stpath = ["--stpath-weights", weights, "--organ", "Breast"]
    done = histoflow(*asked, "--normalize", "none", *of_stpath)
    assert done.code == 0
    assert set(done.json["mean"]) == {"location", "mean", "stpath"}
    assert np.isfinite(done.json["mean"]["stpath"]["pearson"])
    check_error(histoflow(*asked, *of_stpath), 2, "stpath predicts log1p of raw counts, but normalize is 'library'")
    check_error(histoflow(*asked, "--normalize", "none"), 2, "stpath needs the organ")
    mean = ["evaluate", cohort, "--out", tmp_path, "--models", "mean", "--organ", "Breast"]
    check_error(histoflow(*mean), 2, "organ: meant for stpath, which is not among the models")


def test_there_is_nothing_to_fit(cohort, tmp_path):
    done = histoflow("fit", cohort, "--out", tmp_path / "m", "--model", "stpath")
    check_error(done, 2, "model stpath is pretrained: nothing is fitted; use histoflow predict --model stpath")


def test_sections_are_embedded_once_for_pretrained_and_learning_models(slide, weights, gigapath):
    manifest = slide.parents[1] / "cohort.csv"
    alone, both = (io.read_cohort(manifest).select(sections=["P1_A"])[0].copy() for _ in range(2))
    pretrained = models.STPathZeroShot(weights, organ="Breast")
    workflow.embed_for([alone], [pretrained])
    workflow.embed_for([both], [pretrained, models.RidgeProbe(encoder="gigapath")])
    assert alone.uns[UNS][EMBEDDINGS]["gigapath"]["standardize"] is False
    assert alone.obsm["gigapath"].shape[1] == 1536
    assert both.obsm["gigapath"].shape[1] == 1536 * 2 * 5
    fitted = workflow.zero_shot(weights, organ="Breast")
    np.testing.assert_allclose(fitted.predict(both).X, fitted.predict(alone).X, atol=1e-4)


# predict_expression


def test_tiles_of_an_opened_slide(weights, slide, gigapath):
    wsi = hf.tile(io.open_wsi(slide))
    options = {"method": "stpath", "organ": "Breast", "weight_path": weights, "genes": ["G3", "G0"]}
    predicted = hf.predict_expression(wsi, **options, fm_weight_path="tile.bin")
    assert [(name, where["weights"]) for name, where in gigapath] == [("gigapath", "tile.bin")]
    assert list(predicted.var_names) == ["G3", "G0"]
    assert list(predicted.var["gene_ids"]) == [vocabulary(GENES)[gene] for gene in ("G3", "G0")]
    assert predicted.uns["histo"]["method"] == "stpath"
    assert predicted.uns["histo"]["fm_backbone"] == "gigapath"
    assert wsi.tables["stpath_tiles"] is not None
    everything = hf.predict_expression(wsi, **options | {"genes": None}, fm_backbone=small_gigapath())
    of_panel = everything[:, predicted.var["gene_ids"]]
    np.testing.assert_allclose(of_panel.X, predicted.X, atol=1e-6)


def test_calls_that_mean_nothing(weights, slide):
    wsi = hf.tile(io.open_wsi(slide))
    options = {"method": "stpath", "organ": "Breast", "weight_path": weights}
    with pytest.raises(OptionError, match="learns nothing of a reference"):
        hf.predict_expression(wsi, **options, reference=make_section("R", seed=0))
    with pytest.raises(OptionError, match="looks through gigapath alone, but fm_backbone or feature_key names uni"):
        hf.predict_expression(wsi, **options, fm_backbone="uni")
    with pytest.raises(OptionError, match="stpath needs the organ"):
        hf.predict_expression(wsi, **options | {"organ": None})
    with pytest.raises(WeightsError, match="stpath needs the file of its weights"):
        hf.predict_expression(wsi, **options | {"weight_path": None})
    with pytest.raises(OptionError, match="organ= and weight_path= mean nothing for method hest_fm"):
        hf.predict_expression(wsi, **options | {"method": "hest_fm"})


# files


def test_a_stream_is_cut_by_genes(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(zeroshot, "_CHUNK", 2 * 49)
    monkeypatch.setattr(zeroshot, "_GENES_AT_ONCE", 3)
    section, model = make_section("S", seed=0), workflow.zero_shot(weights, organ="Breast")
    assert workflow.predict_to_file(model, section, tmp_path / "p.zarr") == (49, 6)
    stored = zarr.open_group(str(tmp_path / "p.zarr"), mode="r")["X"]
    assert (stored.chunks, stored.dtype) == ((49, 2), np.float32)
    written, predicted = anndata.read_zarr(tmp_path / "p.zarr"), model.predict(section)
    np.testing.assert_allclose(written.X, predicted.X, atol=1e-6)
    assert list(written.var["gene_ids"]) == list(predicted.var["gene_ids"])
    np.testing.assert_array_equal(written.obsm["spatial"], section.obsm["spatial"])
    assert written.uns[UNS]["weights_hash"] == model.training_["weights_hash"]


def test_other_models_write_either_kind(tmp_path):
    section = make_section("S", seed=0)
    model = models.MeanBaseline().fit([section], panel=GENES[:2])
    for name, read in (("p.zarr", anndata.read_zarr), ("p.h5ad", anndata.read_h5ad)):
        assert workflow.predict_to_file(model, section, tmp_path / name) == (49, 2)
        np.testing.assert_array_equal(read(tmp_path / name).X, model.predict(section).X)


def test_a_stream_that_is_refused_leaves_nothing(weights, tmp_path):
    section = make_section("S", seed=0)
    section.uns[UNS][EMBEDDINGS]["gigapath"]["patch_um"] = [56.0]
    with pytest.raises(EncoderMismatchError):
        workflow.predict_to_file(workflow.zero_shot(weights, organ="Breast"), section, tmp_path / "p.zarr")
    assert list(tmp_path.iterdir()) == []
