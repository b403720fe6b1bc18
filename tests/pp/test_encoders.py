"""Encoders: the registry, networks of one's own, files that hold a whole network, half precision."""

import warnings
from dataclasses import replace

import anndata
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.test_workflow import tiny_cohort
from torch import nn

from histoflow import io, pp
from histoflow._errors import HistoflowWarning, MissingDependencyError, OptionError, ShapeError, WeightsError
from histoflow._keys import EMBEDDINGS, UNS
from histoflow.pp import Embedder, Encoder, Recipe, available_encoders, embedding_facts, get_encoder, load_weights
from histoflow.pp.encoders import network, optional, weights
from histoflow.pp.encoders.weights import read_state, weights_file

MEAN, STD = (0.7, 0.5, 0.6), (0.2, 0.25, 0.1)


class Tiny(nn.Module):
    """A network with all that a mode or a batch could change: dropout and batch statistics."""

    def __init__(self, width: int = 6):
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, width, 3, stride=2), nn.BatchNorm2d(width), nn.Dropout(0.5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.drop(torch.relu(self.norm(self.conv(images)))).mean((2, 3))


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    module = Tiny()
    module(torch.randn(8, 3, 32, 32))  # moves the batch statistics off their start
    return module


def patches(n: int = 5, side: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def by_hand(module, images, mean=MEAN, std=STD) -> np.ndarray:
    """Features of a module, normalised in numpy."""
    scaled = (images / 255 - np.array(mean)) / np.array(std)
    with torch.no_grad():
        return module.eval()(torch.tensor(scaled.transpose(0, 3, 1, 2), dtype=torch.float32)).numpy()


def script(module: nn.Module, side: int, path) -> None:
    """Save a module as TorchScript, which torch calls deprecated but people have."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)
        torch.jit.trace(module.eval(), torch.zeros(1, 3, side, side)).save(path)


# the registry


@pytest.mark.parametrize(
    ("name", "version", "width", "identity"),
    [("scatter", "3", 99, "6941cf53bfc9"), ("color", "2", 15, "b5ca5ad27f10")],
)
def test_facts_of_our_own_encoders_stay_what_caches_and_models_hold(name, version, width, identity):
    encoder = get_encoder(name)
    assert encoder.facts() == {
        "name": name,
        "version": version,
        "n_features": width,
        "patch_px": 128,
        "licence": "BSD-3-Clause",
        "weights_hash": "none",
    }
    assert embedding_facts(encoder, Recipe())["id"] == identity


def test_an_unknown_name_lists_what_is_offered():
    with pytest.raises(OptionError, match=r"'uni3'; choose one of scatter, color, .*uni2, .*timm"):
        get_encoder("uni3")


def test_weights_for_an_encoder_without_any_are_refused(tmp_path):
    with pytest.raises(OptionError, match="scatter has no weights"):
        get_encoder("scatter", weights=tmp_path)


def test_half_precision_is_asked_for_by_name_and_refused_where_there_is_no_network(tiny, tmp_path):
    script(tiny, 224, tmp_path / "tiny.pt")
    assert get_encoder("mine", weights=tmp_path / "tiny.pt", amp=True).facts()["amp"] is True
    assert "amp" not in get_encoder("mine", weights=tmp_path / "tiny.pt").facts()
    with pytest.raises(OptionError, match="scatter is no network"):
        get_encoder("scatter", amp=True)


def test_a_list_tells_licence_access_size_and_use():
    infos = {info.name: info for info in available_encoders()}
    assert list(infos)[:2] == ["scatter", "color"]
    assert infos["scatter"].usable
    assert (infos["uni2"].gated, infos["uni2"].licence, infos["uni2"].n_features) == (True, "CC-BY-NC-ND-4.0", 1536)
    assert (infos["h-optimus-0"].gated, infos["h-optimus-0"].mpp) == (False, 0.5)
    assert infos["uni2"].n_parameters == pytest.approx(681e6, rel=0.01)
    assert {info.name for info in available_encoders("*uni*")} >= {"uni", "uni2"}
    assert available_encoders("nothing*") == []


def test_a_library_that_cannot_be_imported_is_told_and_the_rest_works(monkeypatch):
    def fail(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    with monkeypatch.context() as patch:
        patch.setattr(optional, "import_module", fail)
        optional.why_not.cache_clear()
        assert set(pp.unavailable()) == {"LazySlide's model zoo", "timm"}
        assert all("does not fit torch" in reason for reason in pp.unavailable().values())
        infos = {info.name: info for info in available_encoders()}
        assert infos["scatter"].usable
        assert "does not fit torch" in infos["uni2"].why_not
        with pytest.raises(MissingDependencyError, match=r"'resnet50', which is none of scatter.*does not fit torch"):
            get_encoder("resnet50")
    optional.why_not.cache_clear()
    assert pp.unavailable() == {}


def test_another_fault_of_a_library_is_not_hidden(monkeypatch):
    def fail(name):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(optional, "import_module", fail)
        optional.why_not.cache_clear()
        with pytest.raises(RuntimeError, match="out of memory"):
            available_encoders()
    optional.why_not.cache_clear()


def test_a_library_that_is_absent_is_told_with_the_remedy(monkeypatch):
    monkeypatch.setattr(optional, "TIMM", "no_such_library")
    assert "pip install 'histoflow[encoders]'" in optional.why_not("no_such_library")


# networks given in Python


def test_a_module_is_normalised_run_in_eval_mode_and_left_alone(tiny):
    encoder = Encoder.from_callable(tiny, name="tiny", patch_px=32, mean=MEAN, std=STD, mpp=0.5, licence="MIT")
    assert tiny.training
    assert encoder.n_features == 6
    np.testing.assert_allclose(encoder(patches()), by_hand(tiny, patches()), atol=1e-5)
    facts = encoder.facts()
    assert (facts["mpp"], facts["licence"], facts["n_parameters"]) == (0.5, "MIT", 180)
    assert (facts["mean"], facts["gated"]) == (list(MEAN), False)


def test_a_row_depends_on_its_patch_alone(tiny):
    encoder = Encoder.from_callable(tiny, name="tiny", patch_px=32)
    whole = encoder(patches())
    alone = np.concatenate([encoder(patches()[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(whole, alone, rtol=1e-5, atol=1e-6)


def test_a_function_whose_rows_depend_on_each_other_is_refused():
    with pytest.raises(OptionError, match="another row when another patch lies beside it"):
        Encoder.from_callable(lambda x: x.mean((2, 3)) - x.mean(), name="centred", patch_px=16)


def test_a_module_in_training_mode_inside_a_function_is_refused(tiny):
    with pytest.raises(OptionError, match="eval mode"):
        Encoder.from_callable(lambda x: tiny.train()(x), name="dropped", patch_px=32)


def test_a_function_may_take_the_patches_themselves():
    encoder = Encoder.from_callable(lambda p: p[:, 0, 0].float(), name="corner", patch_px=16, mean=None, std=None)
    np.testing.assert_array_equal(encoder(patches(side=16)), patches(side=16)[:, 0, 0])
    assert encoder.weights_hash == "none"
    assert "mean" not in encoder.facts()


def test_half_a_normalisation_is_refused():
    with pytest.raises(OptionError, match="give both, or None for both"):
        Encoder.from_callable(lambda x: x, name="x", patch_px=16, mean=None)
    with pytest.raises(OptionError, match="three numbers each"):
        Encoder.from_callable(lambda x: x, name="x", patch_px=16, mean=(0.5,), std=(0.5,))


@pytest.mark.parametrize("name", ["my net", "a/b", "timm:x", ""])
def test_a_name_that_cannot_name_a_slot_is_refused(name):
    with pytest.raises(OptionError, match="use letters, digits"):
        Encoder.from_callable(lambda x: x.mean((2, 3)), name=name, patch_px=16)


def test_embeddings_of_a_network_and_their_facts_survive_a_file(tiny, tmp_path, cache_folder):
    section = io.read_cohort(tiny_cohort(cache_folder)).select(sections=["P1_A"])[0]
    encoder = Encoder.from_callable(tiny, name="tiny", patch_px=32, mean=MEAN, std=STD, mpp=0.5)
    recipe = Recipe(patch_um=(112.0,), context_um=(), grid_um=224.0)
    Embedder(encoder, recipe, cache_dir=tmp_path).section(section, io.open_section_slide(section))
    section.write_h5ad(tmp_path / "s.h5ad")
    read = anndata.read_h5ad(tmp_path / "s.h5ad")
    assert read.obsm["tiny"].shape == (section.n_obs, 6)
    made = read.uns[UNS][EMBEDDINGS]["tiny"]
    assert made["id"] == embedding_facts(encoder, recipe)["id"]
    np.testing.assert_allclose(made["mean"], MEAN)


def test_maps_instead_of_rows_are_refused():
    with pytest.raises(ShapeError, match=r"returned shape \(1, 3, 16, 16\) for 1 patches"):
        Encoder.from_callable(lambda x: x, name="map", patch_px=16)


def test_weights_and_normalisation_make_the_identity(tiny):
    def made(module, **more):
        encoder = Encoder.from_callable(module, name="tiny", patch_px=32, **more)
        return embedding_facts(encoder, Recipe())["id"]

    other = Tiny()
    other.load_state_dict(tiny.state_dict())
    assert made(tiny) == made(other)
    with torch.no_grad():
        other.conv.bias[0] += 1
    assert made(tiny) != made(other)
    assert made(tiny) != made(tiny, mean=MEAN, std=STD)


# files


def test_a_scripted_network_is_read_by_path_or_by_name(tiny, tmp_path):
    path = tmp_path / "my-net.pt"
    script(tiny, 224, path)
    encoder = get_encoder(str(path))
    expected = by_hand(tiny, patches(2, 224), network.IMAGENET_MEAN, network.IMAGENET_STD)
    assert (encoder.name, encoder.patch_px, encoder.n_features) == ("my-net", 224, 6)
    assert len(encoder.weights_hash) == 64
    np.testing.assert_allclose(encoder(patches(2, 224)), expected, atol=1e-5)
    named = get_encoder("mine", weights=path)
    assert (named.name, named.weights_hash) == ("mine", encoder.weights_hash)
    np.testing.assert_array_equal(named(patches(2, 224)), encoder(patches(2, 224)))


@pytest.mark.parametrize("size", [None, 1, 4])
def test_an_exported_network_takes_any_number_of_patches(tiny, tmp_path, size):
    batch = torch.export.Dim("batch") if size is None else None
    shapes = {"images": {0: batch}} if batch else None
    program = torch.export.export(tiny.eval(), (torch.zeros(size or 2, 3, 32, 32),), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "net.pt2")
    encoder = Encoder.from_file(tmp_path / "net.pt2", patch_px=32, mean=MEAN, std=STD, licence="MIT")
    np.testing.assert_allclose(encoder(patches()), by_hand(tiny, patches()), atol=1e-5)
    assert encoder.facts()["licence"] == "MIT"


@pytest.mark.parametrize("kind", ["safetensors", "plain", "nested", "parallel"])
def test_weights_are_read_from_every_usual_form(tiny, tmp_path, kind):
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    state = tiny.state_dict()
    if kind == "safetensors":
        save_file(state, path)
    else:
        forms = {"plain": state, "nested": {"epoch": 3, "state_dict": state}}
        torch.save(forms.get(kind, {f"module.{name}": value for name, value in state.items()}), path)
    loaded = load_weights(Tiny(), tmp_path)
    for name, value in loaded.state_dict().items():
        torch.testing.assert_close(value, state[name])


def test_weights_of_another_network_are_refused(tiny, tmp_path):
    save_file(tiny.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"w\.safetensors do not fit the network"):
        load_weights(Tiny(width=7), tmp_path / "w.safetensors")


class Trap:
    def __reduce__(self):
        return (print, ("run",))


def test_nothing_that_is_pickled_is_run(tmp_path, capsys):
    torch.save({"weight": Trap()}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="cannot be read"):
        read_state(tmp_path / "w.pth")
    assert capsys.readouterr().out == ""


def test_what_is_no_file_of_weights_is_told(tmp_path):
    with pytest.raises(WeightsError, match=r"do not exist; give a \.safetensors file"):
        read_state(tmp_path / "none.pth")
    (tmp_path / "w.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{nothing")
    (tmp_path / "w.pth").write_text("hello")
    for name in ("w.safetensors", "w.pth"):
        with pytest.raises(WeightsError, match=f"{name} cannot be read"):
            read_state(tmp_path / name)
    with pytest.raises(WeightsError, match="holds 2 files of weights"):
        weights_file(tmp_path)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(WeightsError, match="hold list rather than tensors by name"):
        read_state(tmp_path / "list.pt")


def test_a_network_and_its_weights_are_not_confused(tiny, tmp_path):
    save_file(tiny.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="which needs a network"):
        Encoder.from_file(tmp_path / "w.safetensors")
    script(tiny, 32, tmp_path / "net.pt")
    with pytest.raises(WeightsError, match="TorchScript program, but a state dict"):
        read_state(tmp_path / "net.pt")


def test_a_network_of_another_patch_size_says_so(tmp_path):
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3 * 16 * 16, 4)

        def forward(self, images):
            return self.head(images.flatten(1))

    script(Flat(), 16, tmp_path / "flat.pt")
    with pytest.raises(ShapeError, match=r"cannot take patches of 224 px .*give the patch_px"):
        Encoder.from_file(tmp_path / "flat.pt")
    assert Encoder.from_file(tmp_path / "flat.pt", patch_px=16).n_features == 4


# companies of patches


def test_a_networks_rows_do_not_depend_on_how_many_patches_there_are(tiny):
    encoder = Encoder.from_callable(tiny, name="tiny", patch_px=32)
    many = patches(21)
    whole = encoder(many)
    for n_patches in (1, 5, 8, 9):
        np.testing.assert_array_equal(encoder(many[:n_patches]), whole[:n_patches])
    np.testing.assert_array_equal(encoder(many[::-1].copy())[::-1], whole)
    np.testing.assert_array_equal(encoder.encode_images(torch.from_numpy(many)).numpy(), whole)


def test_a_network_gets_eight_patches_at_a_time_and_a_function_gets_all(tiny):
    seen = []
    encoder = Encoder.from_callable(tiny, name="tiny", patch_px=32)
    encoder.encode.owner.conv.register_forward_hook(lambda module, images, out: seen.append(len(out)))
    encoder(patches(21))
    assert seen == [8, 8, 8]
    function = Encoder.from_callable(
        lambda images: seen.append(len(images)) or images.mean((2, 3)), name="f", patch_px=32
    )
    seen.clear()
    function(patches(21))
    assert seen == [21]


# half precision


def test_half_precision_is_used_once_the_first_batch_agrees(tiny, monkeypatch):
    seen = []
    tiny.conv.register_forward_hook(lambda module, images, out: seen.append(out.dtype))
    monkeypatch.setattr(network, "bfloat16_is_faster", lambda device: True)
    full = Encoder.from_callable(tiny, name="tiny", patch_px=32)
    half = replace(full, amp=True)
    seen.clear()
    result = half(patches())
    assert seen[:2] == [torch.float32, torch.bfloat16]
    seen.clear()
    np.testing.assert_array_equal(half(patches()), result)
    assert seen == [torch.bfloat16]
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, full(patches()), rtol=0.05, atol=0.01)
    assert half.facts() == full.facts() | {"amp": True}


def test_half_precision_is_given_up_with_a_warning_where_it_disagrees(monkeypatch):
    monkeypatch.setattr(network, "bfloat16_is_faster", lambda device: True)
    weight = torch.ones(3 * 16 * 16, 2)
    weight[::2] = -1  # a small difference of large numbers

    def difference(images):
        return (images.flatten(1) + 1e4) @ weight

    full = Encoder.from_callable(difference, name="difference", patch_px=16)
    half = replace(full, amp=True)
    with pytest.warns(HistoflowWarning, match=r"difference in bfloat16 agrees .*float32 is used"):
        first = half(patches(side=16))
    np.testing.assert_array_equal(first, full(patches(side=16)))
    np.testing.assert_array_equal(half(patches(side=16)), first)


def test_half_precision_is_left_where_it_is_not_faster(tiny, monkeypatch):
    monkeypatch.setattr(network, "bfloat16_is_faster", lambda device: False)
    full = Encoder.from_callable(tiny, name="tiny", patch_px=32)
    np.testing.assert_array_equal(replace(full, amp=True)(patches()), full(patches()))


def test_hardware_is_asked_and_other_devices_are_not_guessed():
    assert network.bfloat16_is_faster("cpu") in (True, False)
    assert network.bfloat16_is_faster("meta") is False


# the real pretrained encoder


class Fire(nn.Module):
    """SqueezeNet's module: a narrow 1 × 1 layer, then 1 × 1 and 3 × 3 layers side by side (Iandola et al. 2016)."""

    def __init__(self, n_in, n_squeezed, n_out):
        super().__init__()
        self.squeeze = nn.Conv2d(n_in, n_squeezed, 1)
        self.expand1x1 = nn.Conv2d(n_squeezed, n_out, 1)
        self.expand3x3 = nn.Conv2d(n_squeezed, n_out, 3, padding=1)

    def forward(self, x):
        x = torch.relu(self.squeeze(x))
        return torch.cat([torch.relu(self.expand1x1(x)), torch.relu(self.expand3x3(x))], 1)


class SqueezeNetFeatures(nn.Module):
    """SqueezeNet 1.0 without its classifier, pooled over the patch: 512 numbers."""

    def __init__(self):
        super().__init__()
        sizes = [(96, 16, 64), (128, 16, 64), (128, 32, 128), None, (256, 32, 128), (256, 48, 192), (384, 48, 192)]
        sizes += [(384, 64, 256), None, (512, 64, 256)]
        fires = [nn.MaxPool2d(3, 2, ceil_mode=True) if size is None else Fire(*size) for size in sizes]
        first = [nn.Conv2d(3, 96, 7, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True)]
        self.features = nn.Sequential(*first, *fires)

    def forward(self, images):
        return self.features(images).mean((2, 3))


@pytest.mark.data
def test_the_real_encoder_is_the_same_as_a_program_and_as_weights(data_folder):
    files = data_folder / "encoders"
    licence = "BSD-2-Clause"
    scripted = Encoder.from_file(files / "squeezenet1_0_imagenet_features.torchscript.pt", licence=licence)
    module = load_weights(SqueezeNetFeatures(), files / "squeezenet1_0_imagenet_features.safetensors")
    given = Encoder.from_callable(module, name="squeezenet", patch_px=224, licence=licence)
    assert (scripted.n_features, given.n_features) == (512, 512)
    assert (
        scripted.n_parameters
        == given.n_parameters
        == sum(value.numel() for value in load_file(files / "squeezenet1_0_imagenet_features.safetensors").values())
    )
    np.testing.assert_allclose(scripted(patches(3, 224)), given(patches(3, 224)), atol=1e-5)
    assert scripted(patches(3, 224)).std() > 0.1
    assert weights.kind_of(files / "squeezenet1_0_imagenet_features.safetensors") == "safetensors"
