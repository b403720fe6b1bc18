"""LazySlide's models with weights the tests make; what is not here is asked for, and nothing is fetched."""

import json
import socket
from functools import partial

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
import transformers
from huggingface_hub.errors import GatedRepoError
from lazyslide_models import MODEL_REGISTRY
from safetensors.torch import save_file
from tests.pp.test_timm_models import patches, random_model
from tests.test_cli import check_error, histoflow

from histoflow._errors import MissingDependencyError, WeightsError
from histoflow.pp import available_encoders, get_encoder
from histoflow.pp.encoders import optional, zoo
from histoflow.pp.encoders.zoo_facts import ZOO_MODELS

IMAGES = {name: made for name, made in MODEL_REGISTRY.items() if hasattr(made, "encode_image")}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path):
    def refuse(*address, **more):
        raise AssertionError(f"the network was asked for {address}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))


@pytest.fixture
def weightless(monkeypatch):
    """Modules made within it hold no weights; older timm reads a few numbers of `linspace` while it makes one."""
    monkeypatch.setattr(torch, "linspace", partial(torch.linspace, device="cpu"))
    return torch.device("meta")


def repository(folder, architecture: str, **arguments) -> torch.nn.Module:
    """A hub repository of a timm model, as a folder."""
    model = random_model(architecture, num_classes=0, **arguments)
    folder.mkdir(parents=True, exist_ok=True)
    config = {"architecture": architecture, "model_args": arguments, "pretrained_cfg": {"input_size": [3, 224, 224]}}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "model.safetensors")
    return model


def transformed(name: str, model, images) -> np.ndarray:
    """Features of a timm model after the zoo's own transform, patch by patch."""
    made = IMAGES[name].__new__(IMAGES[name])
    made.img_size = (224, 224)
    with torch.inference_mode():
        return np.concatenate([model(made.get_transform()(image)[None]).numpy() for image in images])


# the table


def test_the_table_says_what_the_zoos_registry_says():
    assert set(ZOO_MODELS) == set(IMAGES)
    for name, made in IMAGES.items():
        row, theirs = ZOO_MODELS[name], zoo._row(name, made)
        assert (name, row.n_features, row.licence) == (name, theirs.n_features, theirs.licence)
        assert (name, row.gated, row.millions) == (name, theirs.gated, theirs.millions)
        if theirs.repository and name != "hibou-l":  # whose address there is that of hibou-b
            assert (name, row.repository.lower()) == (name, theirs.repository.lower())


def test_a_newer_zoo_adds_to_the_table(monkeypatch):
    monkeypatch.setitem(MODEL_REGISTRY._data, "brand-new", IMAGES["lunit-bt"])
    assert (zoo.known("brand-new"), zoo.models()["brand-new"].family) == (True, "timm")
    assert available_encoders("brand*")[0].n_features == 2048


@pytest.mark.parametrize("name", [n for n, m in ZOO_MODELS.items() if m.family == "timm" and m.architecture])
def test_an_architecture_has_as_many_weights_as_its_authors_say(name, monkeypatch, tmp_path, weightless):
    monkeypatch.setattr(zoo, "fit", lambda *given: None)
    monkeypatch.setattr(zoo, "read_state", lambda path: {})
    (tmp_path / "w.pth").touch()
    with weightless:
        made = zoo._from_timm(ZOO_MODELS[name], tmp_path / "w.pth", None)
    millions = sum(weights.numel() for weights in made.model.parameters()) / 1e6
    assert millions == pytest.approx(ZOO_MODELS[name].millions, rel=0.03)


# models that timm builds


def test_a_local_file_is_used_in_place_of_the_hub(tmp_path):
    model = random_model("vit_small_patch16_224", num_classes=0)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    encoder = get_encoder("lunit-dino-s16", weights=tmp_path / "w.safetensors")
    images = patches(2, 224)
    assert (encoder.patch_px, encoder.n_features, encoder.licence) == (224, 384, "lunit-non-commercial")
    assert encoder.facts()["source"] == "1aurent/vit_small_patch16_224.lunit_dino"
    assert encoder.facts()["mean"] == pytest.approx([0.703, 0.536, 0.661], abs=1e-3)
    np.testing.assert_allclose(encoder(images), transformed("lunit-dino-s16", model, images), rtol=1e-3, atol=1e-4)


def test_a_repositorys_config_tells_the_network_and_the_width_is_read(tmp_path):
    model = repository(tmp_path, "vit_tiny_patch16_224", init_values=1e-5)
    encoder = get_encoder("mstar", weights=tmp_path)
    assert (encoder.n_features, encoder.gated) == (192, True)
    np.testing.assert_allclose(
        encoder(patches(2, 224)), transformed("mstar", model, patches(2, 224)), rtol=1e-3, atol=1e-4
    )


def test_gigapath_gets_the_border_that_its_own_transform_crops(tmp_path):
    model = repository(tmp_path, "vit_tiny_patch16_224")
    encoder = get_encoder("gigapath", weights=tmp_path)
    images = patches(2, 256)
    changed = images.copy()
    changed[:, :16], changed[:, :, -16:] = 0, 0
    assert encoder.patch_px == 256
    np.testing.assert_allclose(encoder(images), transformed("gigapath", model, images), rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(encoder(images), encoder(changed))


def test_virchow_joins_the_class_token_and_the_mean_patch(tmp_path):
    arguments = {"reg_tokens": 4, "global_pool": "", "mlp_ratio": 4.0}
    swiglu = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU}
    repository(tmp_path, "vit_tiny_patch16_224", **arguments)
    model = random_model("vit_tiny_patch16_224", num_classes=0, **arguments, **swiglu)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    tokens = torch.tensor(transformed("virchow2", model, patches(1, 224)))
    encoder = get_encoder("virchow2", weights=tmp_path)
    expected = torch.cat([tokens[:, 0], tokens[:, 5:].mean(1)], 1).numpy()
    assert encoder.n_features == 2 * 192
    np.testing.assert_allclose(encoder(patches(1, 224)), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_class_that_takes_a_file_gets_it_read_safely(tmp_path, suffix):
    swiglu = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU, "mlp_ratio": 2048 / 384}
    model = random_model("vit_small_patch16_224", num_classes=0, init_values=1e-5, **swiglu)
    path = tmp_path / f"pytorch_model.{suffix}"
    save_file(model.state_dict(), path) if suffix == "safetensors" else torch.save(model.state_dict(), path)
    encoder = get_encoder("gigapath-flash", weights=path)
    images = patches(1, 256)
    np.testing.assert_allclose(encoder(images), transformed("gigapath-flash", model, images), rtol=1e-3, atol=1e-4)


def test_a_model_that_the_zoo_builds_around_a_download_is_built_here(tmp_path):
    model = repository(tmp_path, "vit_tiny_patch16_224")
    encoder = get_encoder("gpfm", weights=tmp_path / "model.safetensors")
    np.testing.assert_allclose(
        encoder(patches(1, 224)), transformed("gpfm", model, patches(1, 224)), rtol=1e-3, atol=1e-4
    )


def test_weights_in_the_hubs_cache_are_found_offline(tmp_path, monkeypatch):
    place = tmp_path / "hub" / "hub" / "models--1aurent--resnet50.lunit_bt"
    model = repository(place / "snapshots" / "abc", "resnet10t")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")
    encoder = get_encoder("lunit-bt")
    np.testing.assert_allclose(
        encoder(patches(1, 224)), transformed("lunit-bt", model, patches(1, 224)), rtol=1e-3, atol=1e-4
    )
    usable = {info.name: info.usable for info in available_encoders("lunit-*")}
    assert usable["lunit-bt"]
    assert not usable["lunit-swav"]


# whole networks, and folders of transformers


class Pooled(torch.nn.Module):
    def forward(self, images):
        return torch.cat([images.mean((2, 3)), images.amax((2, 3))], 1)


def exported(path):
    batch = torch.export.Dim("batch")
    program = torch.export.export(Pooled(), (torch.zeros(2, 3, 224, 224),), dynamic_shapes={"images": {0: batch}})
    torch.export.save(program, path)
    return path


def test_ctranspath_is_an_exported_file_that_needs_no_zoo(tmp_path, monkeypatch):
    path = exported(tmp_path / "CTransPath_exported.pt2")
    expected = transformed("ctranspath", Pooled(), patches(2, 224))
    monkeypatch.setattr(optional, "why_not", lambda library: "broken")
    monkeypatch.setattr(zoo, "why_not", lambda library: "broken")
    encoder = get_encoder("ctranspath", weights=path)
    assert (encoder.name, encoder.licence, encoder.n_features) == ("ctranspath", "GPL-3.0", 6)
    np.testing.assert_allclose(encoder(patches(2, 224)), expected, atol=1e-5)
    assert {info.name: info.why_not for info in available_encoders("*")}["uni2"] == "broken"


def test_any_model_takes_its_export_with_its_own_transform(tmp_path):
    encoder = get_encoder("h-optimus-0", weights=exported(tmp_path / "w.pt2"))
    expected = transformed("h-optimus-0", Pooled(), patches(2, 224))
    np.testing.assert_allclose(encoder(patches(2, 224)), expected, atol=1e-5)
    with pytest.raises(WeightsError, match=r"how images are prepared for phikon; use Encoder\.from_file"):
        get_encoder("phikon", weights=tmp_path / "w.pt2")


def small_vit(folder):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=224), add_pooling_layer=False).eval()
    model.save_pretrained(folder)
    transformers.ViTImageProcessor(image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.2, 0.3]).save_pretrained(folder)
    return model


def test_phikon_is_prepared_for_by_its_own_processor(tmp_path):
    model = small_vit(tmp_path)
    encoder = get_encoder("phikon", weights=tmp_path)
    scaled = (patches(2, 224) / 255 - [0.4, 0.5, 0.6]) / [0.2, 0.2, 0.3]
    with torch.inference_mode():
        images = torch.tensor(scaled.transpose(0, 3, 1, 2), dtype=torch.float32)
        expected = model(images).last_hidden_state[:, 0].numpy()
    assert (encoder.n_features, encoder.patch_px) == (32, 224)
    np.testing.assert_allclose(encoder(patches(2, 224)), expected, rtol=1e-3, atol=1e-4)


def test_a_transformers_model_without_its_config_is_refused(tmp_path):
    small_vit(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"phikon needs the config\.json of owkin/phikon"):
        get_encoder("phikon", weights=tmp_path / "model.safetensors")


# what is wrong or not here


@pytest.mark.parametrize("name", ["lunit-bt", "virchow2", "uni", "gpfm", "path_orchestra", "ctranspath", "keep"])
def test_a_wrong_file_is_refused(tmp_path, name, weightless):
    save_file({"head.weight": torch.zeros(3, 3)}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"w\.safetensors|keep takes no state dict"), weightless:
        get_encoder(name, weights=tmp_path / "w.safetensors")


@pytest.mark.parametrize("name", ["uni2", "ctranspath", "titan"])
def test_weights_that_are_not_here_are_asked_for(name):
    with pytest.raises(WeightsError) as told:
        get_encoder(name)
    repository = ZOO_MODELS[name].repository
    for part in (f"https://huggingface.co/{repository}", "weights=", "--weights", "HF_HOME", "token", "HF_HUB_OFFLINE"):
        assert part in str(told.value)
    assert ("ask for access" in str(told.value)) == (name != "ctranspath")


def test_a_refused_download_says_that_access_is_granted_by_the_authors(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    local = huggingface_hub.snapshot_download

    def refused(repository, *, local_files_only, token, **more):
        if local_files_only:
            return local(repository, local_files_only=True, **more)
        assert token == "mine"
        raise GatedRepoError.__new__(GatedRepoError)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refused)
    with pytest.raises(WeightsError, match="the hub refuses access without a token that was granted it"):
        get_encoder("uni2", token="mine")


def test_an_unreachable_hub_is_told(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    local = huggingface_hub.snapshot_download

    def unreachable(repository, *, local_files_only, **more):
        if local_files_only:
            return local(repository, local_files_only=True, **more)
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(WeightsError, match="the hub cannot be reached"):
        get_encoder("h-optimus-0")


def test_a_package_that_is_not_installed_is_named():
    with pytest.raises(MissingDependencyError, match="biomedclip cannot be used here: it needs open_clip"):
        get_encoder("biomedclip")
    assert "open_clip" in available_encoders("biomedclip")[0].why_not


def test_the_command_line_says_it_in_one_line(cache_folder):
    from tests.test_workflow import tiny_cohort

    done = histoflow(
        "fit", tiny_cohort(cache_folder), "--out", cache_folder / "m", "--encoder", "uni2", "--model", "hest_fm"
    )
    check_error(done, 1, "Download pytorch_model.bin of MahmoodLab/UNI2-h")


def test_the_command_line_lists_licence_and_access():
    listed = {line.split()[0]: line for line in histoflow("encoders", "*uni*").out.splitlines()}
    assert "CC-BY-NC-ND-4.0" in listed["uni2"]
    assert "gated" in listed["uni2"]
    assert "HF_HUB_OFFLINE is set" in listed["uni2"]
    assert "open" in listed["lunit-bt"].split()
