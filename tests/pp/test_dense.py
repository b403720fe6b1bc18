"""The dense map: a function of slide and place alone, means over tissue, resumed, and tokens of networks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.test_workflow import tiny_cohort
from torch import nn
from torch.nn.functional import avg_pool2d

from histoflow import io
from histoflow._errors import EncoderMismatchError, ShapeError, SlideMismatchError
from histoflow._keys import EMBEDDINGS, UNS
from histoflow.pp import Dense, DenseEmbedder, Lattice, get_encoder
from histoflow.pp import dense as dense_module
from histoflow.pp.encoders.dense import TokenWindow, network_dense

WINDOW = TokenWindow(token_px=4, side=24, margin=2)
COLOR = get_encoder("color")


def colours(windows):
    """The mean colour of every token."""
    return avg_pool2d(windows.permute(0, 3, 1, 2).float() / 255, WINDOW.token_px).permute(0, 2, 3, 1)


def encoder(tokens=colours, widths=(1, 5)):
    return replace(COLOR, dense=Dense(tokens, WINDOW, n_channels=3, n_features=3 * len(widths), widths=widths))


@pytest.fixture(scope="module")
def section(cache_folder):
    return io.read_cohort(tiny_cohort(cache_folder)).select(sections=["P1_A"])[0]


@pytest.fixture(scope="module")
def wsi(section):
    return io.open_section_slide(section)


@pytest.fixture(scope="module")
def dense_map(wsi, tmp_path_factory):
    return DenseEmbedder(encoder(), cache_dir=tmp_path_factory.mktemp("dense")).map(wsi)


def test_rows_do_not_depend_on_order_company_or_batch(section, wsi, tmp_path):
    xy = section.obsm["spatial"]
    whole, _ = DenseEmbedder(encoder(), cache_dir=tmp_path).places(wsi, xy, 55.0)
    order = np.random.default_rng(0).permutation(len(xy))
    for number, rows in enumerate((order, np.arange(0, len(xy), 2), np.array([3]))):
        make = DenseEmbedder(encoder(), cache_dir=tmp_path / str(number), batch_size=3)
        np.testing.assert_array_equal(make.places(wsi, xy[rows], 55.0)[0], whole[rows])


def test_a_spot_is_the_bag_of_its_super_pixels(section, wsi, dense_map, tmp_path):
    embedded = DenseEmbedder(encoder(), cache_dir=tmp_path).section(section.copy(), wsi)
    bags = embedded.obsm["color_dense"].reshape(section.n_obs, 37, 6)
    made = embedded.uns[UNS][EMBEDDINGS]["color_dense"]
    assert (made["n_superpixels"], made["n_features"], made["around_um"]) == (37, 6, [8.0, 40.0])
    cells = dense_map.lattice.nearest(section.obsm["spatial"], 37)
    everything = dense_map.features((slice(0, dense_map.lattice.shape[0]), slice(0, dense_map.lattice.shape[1])))
    on_tissue = dense_map.tissue.ravel()[cells]
    np.testing.assert_allclose(bags[on_tissue], everything.reshape(-1, 6)[cells][on_tissue], atol=1e-4)


def test_means_are_over_the_tissue_around(dense_map):
    tokens = np.load(dense_map.folder / "tokens.npy").astype(np.float64)
    tissue = dense_map.tissue
    edge = np.argwhere(tissue)[:: max(1, tissue.sum() // 40)]
    window = (slice(0, tissue.shape[0]), slice(0, tissue.shape[1]))
    features = dense_map.features(window) * dense_map.spread + dense_map.mean
    for row, column in edge:
        near = (slice(max(row - 2, 0), row + 3), slice(max(column - 2, 0), column + 3))
        np.testing.assert_allclose(features[row, column, :3], tokens[row, column], atol=1e-4)
        np.testing.assert_allclose(features[row, column, 3:], tokens[near][tissue[near]].mean(axis=0), atol=1e-4)


def test_features_are_in_units_of_the_tissue(dense_map):
    shape = dense_map.lattice.shape
    features = dense_map.features((slice(0, shape[0]), slice(0, shape[1])))[dense_map.tissue]
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=0.1)
    np.testing.assert_allclose(features.std(axis=0), 1, atol=0.1)


def test_colours_lie_where_they_are_on_the_slide(wsi, dense_map):
    tokens = np.load(dense_map.folder / "tokens.npy").astype(np.float64)
    reader, lattice = wsi.reader, Lattice.of(wsi)
    for row, column in np.argwhere(dense_map.tissue)[100::700]:
        x, y = lattice.centres(row, column)
        side = 8 / lattice.mpp[0]
        region = reader.get_region(round(x - side / 2), round(y - side / 2), round(side), round(side), level=0)
        np.testing.assert_allclose(tokens[row, column], region[..., :3].mean((0, 1)) / 255, atol=0.08)


def test_a_killed_run_is_taken_up_and_a_second_one_encodes_nothing(wsi, tmp_path, monkeypatch):
    monkeypatch.setattr(dense_module, "_FLUSH", 1)
    calls = []

    def counted(windows):
        calls.append(len(windows))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return colours(windows)

    make = DenseEmbedder(encoder(counted), cache_dir=tmp_path, batch_size=4)
    with pytest.raises(KeyboardInterrupt):
        make.map(wsi)
    resumed = make.map(wsi)
    alone = []
    DenseEmbedder(encoder(lambda w: alone.append(len(w)) or colours(w)), tmp_path / "alone").map(wsi)
    assert sum(calls) - calls[2] == sum(alone)
    n_calls = len(calls)
    again = make.map(wsi)
    assert len(calls) == n_calls
    window = (slice(0, 40), slice(0, 40))
    np.testing.assert_array_equal(again.features(window), resumed.features(window))


def test_glass_is_not_encoded(dense_map):
    done = np.load(dense_map.folder / "done.npy")
    assert 0 < done.sum() < len(done)


def test_another_slide_and_an_encoder_of_patches_are_refused(section, wsi, tmp_path):
    other = section.copy()
    other.uns[UNS] = section.uns[UNS] | {"slide_id": "another"}
    with pytest.raises(SlideMismatchError, match="read with another slide"):
        DenseEmbedder(encoder(), cache_dir=tmp_path).section(other, wsi)
    with pytest.raises(EncoderMismatchError, match="color describes whole patches only"):
        DenseEmbedder(COLOR)
    with pytest.raises(ShapeError, match="n_places, 2"):
        DenseEmbedder(encoder(), cache_dir=tmp_path).places(wsi, np.zeros((0, 2)), 55.0)
    with pytest.raises(ShapeError, match="it promised"):
        DenseEmbedder(encoder(lambda windows: colours(windows)[..., :2]), cache_dir=tmp_path).map(wsi)


class Patches(nn.Module):
    """What a vision transformer of timm is to us: a mean colour per 16 × 16 pixels, after a token for all."""

    num_prefix_tokens = 1
    __module__ = "timm.models.vision_transformer"

    def forward_features(self, images):
        tokens = avg_pool2d(images, 16).flatten(2).movedim(1, 2)
        return torch.cat([tokens.mean(1, keepdim=True) + 100, tokens], dim=1)


class Maps(nn.Module):
    """What a convolutional network of timm is to us."""

    __module__ = "timm.models.resnet"

    def forward_features(self, images):
        return avg_pool2d(images, 32)


@pytest.mark.parametrize(("module", "token_px", "side", "margin"), [(Patches(), 16, 14, 2), (Maps(), 32, 7, 1)])
def test_tokens_of_a_network_keep_their_places(module, token_px, side, margin):
    dense = network_dense(module, lambda windows: windows.permute(0, 3, 1, 2) / 255, 224)
    assert dense.window == TokenWindow(token_px, side, margin)
    assert (dense.n_channels, dense.n_features) == (3, 9)
    windows = torch.zeros(2, 224, 224, 3, dtype=torch.uint8)
    windows[1, :token_px, 2 * token_px : 3 * token_px] = 255
    tokens = dense.tokens(windows)
    assert tokens.shape == (2, side, side, 3)
    assert tokens[1, 0, 2].tolist() == [1, 1, 1]
    assert tokens.sum() == 3


def test_a_network_that_is_not_timms_has_no_tokens():
    class Other(Patches):
        __module__ = "somebody.else"

    assert network_dense(Other(), lambda windows: windows, 224) is None
    assert network_dense(Patches(), None, 224) is None
