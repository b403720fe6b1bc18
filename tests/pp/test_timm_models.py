"""timm's models from local checkpoints: the right numbers, nothing left at random, nothing fetched."""

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from histoflow._errors import OptionError, WeightsError
from histoflow.pp import available_encoders, get_encoder
from histoflow.pp.encoders import timm_models
from histoflow.pp.encoders.record import UNSTATED


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))


def patches(n: int, side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def random_model(name: str, **options) -> torch.nn.Module:
    """A model with weights nobody else has, batch statistics included."""
    torch.manual_seed(1)
    model = timm.create_model(name, pretrained=False, **options)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.add_(0.02 * torch.rand(value.shape))
    return model.eval()


def by_hand(model, images, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)) -> np.ndarray:
    scaled = (images / 255 - np.array(mean)) / np.array(std)
    with torch.inference_mode():
        features = model.forward_features(torch.tensor(scaled.transpose(0, 3, 1, 2), dtype=torch.float32))
        return model.forward_head(features, pre_logits=True).numpy()


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_resnet_is_what_timm_makes_of_its_checkpoint(tmp_path, suffix):
    model, path = random_model("resnet10t"), tmp_path / f"w.{suffix}"
    save_file(model.state_dict(), path) if suffix == "safetensors" else torch.save({"model": model.state_dict()}, path)
    encoder = get_encoder("timm:resnet10t", weights=path)
    assert (encoder.name, encoder.patch_px, encoder.n_features) == ("resnet10t", 176, 512)
    assert encoder.n_parameters == sum(p.numel() for name, p in model.named_parameters() if not name.startswith("fc."))
    images = patches(3, 176)
    np.testing.assert_allclose(encoder(images), by_hand(model, images), rtol=1e-4, atol=1e-5)
    alone = np.concatenate([encoder(images[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(encoder(images), alone, rtol=1e-4, atol=1e-5)


def test_a_vit_takes_its_own_mean_and_a_plain_name(tmp_path):
    model = random_model("vit_tiny_patch16_224", num_classes=0)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    encoder = get_encoder("vit_tiny_patch16_224", weights=tmp_path)
    expected = by_hand(model, patches(2, 224), (0.5,) * 3, (0.5,) * 3)
    stated = timm.get_pretrained_cfg("vit_tiny_patch16_224").license  # older timm states none
    assert (encoder.n_features, encoder.licence) == (192, stated or UNSTATED)
    assert encoder.facts()["mean"] == [0.5, 0.5, 0.5]
    np.testing.assert_allclose(encoder(patches(2, 224)), expected, rtol=1e-3, atol=1e-4)


def test_dinov2s_own_layout_is_translated():
    options = {"reg_tokens": 4, "no_embed_class": True, "img_size": 64, "num_classes": 0, "init_values": 1e-5}
    model = random_model("vit_tiny_patch16_224", **options)
    state = model.state_dict()
    place = torch.rand(1, 1, 192)
    state["pos_embed"] = torch.cat([place, state["pos_embed"]], 1)
    state["cls_token"] = state["cls_token"] - place
    state["register_tokens"], state["mask_token"] = state.pop("reg_token"), torch.zeros(1, 192)
    fresh = timm.create_model("vit_tiny_patch16_224", pretrained=False, **options)
    timm_models.fit(fresh, state, "head", "weights")
    for name, value in fresh.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name])


@pytest.mark.parametrize(
    ("of", "given"), [("resnet10t", "vit_tiny_patch16_224"), ("vit_tiny_patch16_224", "resnet10t")]
)
def test_the_checkpoint_of_another_model_is_refused(tmp_path, of, given):
    save_file(random_model(given).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"w\.safetensors"):
        get_encoder(of, weights=tmp_path / "w.safetensors")


def test_a_checkpoint_with_a_weight_missing_is_refused(tmp_path):
    state = random_model("resnet10t").state_dict()
    del state["layer1.0.conv1.weight"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"Missing key.*layer1\.0\.conv1\.weight"):
        get_encoder("resnet10t", weights=tmp_path / "w.safetensors")


def test_weights_that_are_not_here_are_asked_for(tmp_path):
    with pytest.raises(WeightsError) as told:
        get_encoder("resnet10t", cache_dir=tmp_path)
    for part in ("timm/resnet10t.c3_in1k", "model.safetensors", "weights=", "--weights", "HF_HOME", str(tmp_path)):
        assert part in str(told.value)


def test_weights_are_found_where_a_download_left_them(tmp_path):
    model = random_model("resnet10t")
    repository = tmp_path / "weights" / "models--timm--resnet10t.c3_in1k"
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    save_file(model.state_dict(), repository / "snapshots" / "abc" / "model.safetensors")
    encoder = get_encoder("resnet10t", cache_dir=tmp_path)
    np.testing.assert_allclose(encoder(patches(1, 176)), by_hand(model, patches(1, 176)), rtol=1e-4, atol=1e-5)
    infos = {info.name: info for info in available_encoders("timm:resnet10t*", cache_dir=tmp_path)}
    assert infos["timm:resnet10t.c3_in1k"].usable
    assert "HF_HUB_OFFLINE" in available_encoders("timm:resnet10t*")[0].why_not


def test_timms_models_are_listed_on_request_alone():
    names = [info.name for info in available_encoders("timm:vit_tiny*")]
    assert len(names) > 3
    assert all(name.startswith("timm:vit_tiny") for name in names)
    assert not [info for info in available_encoders("*") if info.name.startswith("timm:")]


def test_a_model_that_timm_lacks_is_told():
    with pytest.raises(OptionError, match="timm has no model 'resnet1'"):
        get_encoder("timm:resnet1")
