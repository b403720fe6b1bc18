"""Embeddings: a function of slide and place alone, cached by content, resumed block by block."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tests.test_workflow import tiny_cohort

from histoflow import _files, io
from histoflow._errors import OptionError, OutputError, ShapeError, SlideMismatchError
from histoflow._keys import EMBEDDINGS, TISSUE, UNS
from histoflow.pp import Embedder, Recipe, blocks, get_encoder
from histoflow.pp.tiles import read_patches, statistics_grid

COLOR = get_encoder("color")
RECIPE = Recipe(patch_um=(112.0,), context_um=(250.0,), grid_um=224.0)


@pytest.fixture(scope="module")
def section(cache_folder):
    return io.read_cohort(tiny_cohort(cache_folder)).select(sections=["P1_A"])[0]


@pytest.fixture(scope="module")
def wsi(section):
    return io.open_section_slide(section)


def embedder(folder, **changes) -> Embedder:
    return Embedder(COLOR, RECIPE, cache_dir=folder, **changes)


def test_blocks_that_a_killed_run_left_beside_the_whole_go(section, wsi, tmp_path):
    xy = section.obsm["spatial"][:3]
    embedder(tmp_path).places(wsi, xy)
    left = [path.with_suffix(".parts") for path in (tmp_path / "features").glob("*.npy")]
    for folder in left:
        folder.mkdir()
        (folder / "000000.npy").touch()
    embedder(tmp_path).places(wsi, xy)
    assert left
    assert not any(folder.exists() for folder in left)


def test_rows_do_not_depend_on_order_company_or_batch(section, wsi, tmp_path):
    xy = section.obsm["spatial"]
    whole, _ = embedder(tmp_path).places(wsi, xy)
    order = np.random.default_rng(0).permutation(len(xy))
    for rows, batch_size in ((order, 32), (np.arange(0, len(xy), 2), 7), (np.array([3]), 1)):
        part, _ = embedder(tmp_path, batch_size=batch_size).places(wsi, xy[rows])
        np.testing.assert_array_equal(part, whole[rows])


def test_section_gets_embeddings_and_their_recipe(section, wsi, tmp_path):
    embedded = embedder(tmp_path).section(section.copy(), wsi)
    assert embedded.obsm["color"].shape == (section.n_obs, COLOR.n_features * 2)
    assert embedded.obsm["color"].dtype == np.float32
    made = embedded.uns[UNS][EMBEDDINGS]["color"]
    assert (made["patch_um"], made["licence"], made["slide_id"]) == (
        [112.0],
        "BSD-3-Clause",
        section.uns[UNS]["slide_id"],
    )


def test_context_never_crosses_from_one_piece_of_tissue_to_the_next(tmp_path):
    image = np.full((900, 1800, 3), 244, dtype=np.uint8)
    noise = np.random.default_rng(0).integers(-12, 12, image.shape)
    for columns, colour in ((slice(150, 850), (170, 90, 160)), (slice(950, 1650), (225, 130, 170))):
        image[150:750, columns] = np.clip(np.array(colour) + noise[150:750, columns], 0, 255)
    Image.fromarray(image).save(tmp_path / "two.png")
    wsi = io.open_wsi(tmp_path / "two.png", mpp=1.0)
    at_the_gap = np.array([[790.0, 450.0], [1010.0, 450.0]])
    values, made = embedder(tmp_path).places(wsi, at_the_gap)
    own, context = values[:, : COLOR.n_features], values[:, COLOR.n_features :]
    assert len(set(made["tissue_id"])) == 2
    apart = np.linalg.norm(own[0] - own[1])
    assert (np.linalg.norm(own - context, axis=1) < 0.1 * apart).all()


def test_section_is_told_its_pieces_of_tissue_unless_it_knows_them(section, wsi, tmp_path):
    told = embedder(tmp_path).section(section.copy(), wsi)
    np.testing.assert_array_equal(told.obs[TISSUE], statistics_grid(wsi, 224.0).piece_of(section.obsm["spatial"]))
    known = section.copy()
    known.obs[TISSUE] = np.arange(known.n_obs) % 2
    assert list(embedder(tmp_path).section(known, wsi).obs[TISSUE]) == list(np.arange(known.n_obs) % 2)


def test_a_second_run_encodes_nothing_and_a_killed_one_is_taken_up(section, wsi, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 10)
    xy, calls = section.obsm["spatial"], []

    def counted(patches):
        calls.append(len(patches))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return COLOR.encode(patches)

    make = Embedder(replace(COLOR, encode=counted), RECIPE, cache_dir=tmp_path, batch_size=10)
    with pytest.raises(KeyboardInterrupt):
        make.places(wsi, xy)
    resumed, _ = make.places(wsi, xy)
    n_encoded = sum(calls) - calls[3]
    assert n_encoded == len(xy) + len(statistics_grid(wsi, RECIPE.grid_um).xy)
    again, _ = make.places(wsi, xy)
    assert sum(calls) - calls[3] == n_encoded
    np.testing.assert_array_equal(again, resumed)
    np.testing.assert_array_equal(resumed, embedder(tmp_path / "fresh").places(wsi, xy)[0])


@pytest.mark.parametrize("recipe", [RECIPE, Recipe((112.0, 224.0), (), standardize=False)])
def test_large_embeddings_are_mapped_from_files_and_are_the_same(section, wsi, tmp_path, monkeypatch, recipe):
    make = replace(embedder(tmp_path), recipe=recipe)
    expected, made = make.places(wsi, section.obsm["spatial"])
    assert not isinstance(expected, np.memmap)
    for module in (_files, blocks):
        monkeypatch.setattr(module, "IN_MEMORY", 100)
    for folder in (tmp_path, tmp_path / "fresh"):
        values, told = replace(make, cache_dir=folder).places(wsi, section.obsm["spatial"])
        assert isinstance(values, np.memmap)
        np.testing.assert_array_equal(values, expected)
        assert set(told) == set(made)
        assert all(np.array_equal(told[key], made[key]) for key in made)
        assert {path.suffix for path in (folder / "features").iterdir()} <= {".npy", ".lock"}


def test_what_is_let_go_of_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(_files, "IN_MEMORY", 10)
    array = _files.roomy_array((300, 20), tmp_path)
    array[:] = np.arange(6000).reshape(300, 20)
    _files.let_go(array)
    np.testing.assert_array_equal(array.ravel(), np.arange(6000))
    own = np.load(stored(tmp_path, array), mmap_mode="c")
    own += 1
    _files.let_go(own)
    np.testing.assert_array_equal(own.ravel(), np.arange(1, 6001))


def stored(folder, array):
    np.save(folder / "array.npy", array)
    return folder / "array.npy"


def test_room_that_cannot_be_made_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(_files, "IN_MEMORY", 10)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="HISTOFLOW_CACHE to a folder with more room"):
        _files.roomy_array((11,), tmp_path / "file")


def test_patches_at_the_slides_own_scale_are_its_pixels(wsi):
    mpp = float(wsi.attrs[UNS]["mpp_x"])
    assert mpp == float(wsi.attrs[UNS]["mpp_y"])
    exact = read_patches(wsi, [[400.0, 500.0]], side_um=64 * mpp, patch_px=64)[0]
    np.testing.assert_array_equal(exact, wsi.reader.get_region(368, 468, 64, 64, level=0)[..., :3])
    filtered = read_patches(wsi, [[400.0, 500.0]], side_um=64 * mpp * (1 + 1e-9), patch_px=64)[0]
    np.testing.assert_array_equal(filtered, exact)


def test_a_slide_is_embedded_on_a_grid(wsi, tmp_path):
    tiles = embedder(tmp_path).tiles(wsi, 100.0)
    assert tiles.n_obs == len(wsi.tables["color_tiles"]) > 20
    assert {"tile_id", "tissue_id"} <= set(tiles.obs)
    np.testing.assert_allclose(np.diff(np.unique(tiles.obsm["spatial_um"][:, 0])).min(), 100, rtol=0.02)


def test_the_statistics_grid_leaves_the_slide_as_it_was(wsi):
    before = set(wsi.shapes)
    statistics_grid(wsi, 224.0)
    assert set(wsi.shapes) == before


def test_patches_repeat_the_edge_and_keep_their_size(wsi):
    corner, inside = read_patches(wsi, [[0.0, 0.0], [900.0, 900.0]], side_um=112.0, patch_px=64)
    assert corner.shape == inside.shape == (64, 64, 3)
    assert np.ptp(corner[:32, :32].reshape(-1, 3).astype(int), axis=0).max() < 30  # glass, repeated


@pytest.mark.parametrize("xy", [np.zeros((0, 2)), np.zeros((3, 3))])
def test_wrong_places_are_refused(wsi, tmp_path, xy):
    with pytest.raises(ShapeError, match="n_places, 2"):
        embedder(tmp_path).places(wsi, xy)


def test_another_slide_is_refused(section, wsi, tmp_path):
    other = section.copy()
    other.uns[UNS] = section.uns[UNS] | {"slide_id": "another"}
    with pytest.raises(SlideMismatchError, match="read with another slide"):
        embedder(tmp_path).section(other, wsi)


def test_a_recipe_without_patches_is_refused():
    with pytest.raises(OptionError, match="give µm"):
        Recipe(patch_um=())


def counted(folder, calls):
    """An embedder that writes down how many patches it encodes."""

    def encode(patches):
        calls.append(len(patches))
        return COLOR.encode(patches)

    return Embedder(replace(COLOR, encode=encode), RECIPE, cache_dir=folder)


def test_flipped_bytes_are_noticed_and_encoded_again(section, wsi, tmp_path):
    xy = section.obsm["spatial"][:20]
    first, _ = embedder(tmp_path).places(wsi, xy)
    for path in (tmp_path / "features").glob("*.npy"):
        content = bytearray(path.read_bytes())
        content[200] ^= 0xFF  # inside the numbers: shape and type stay as they were
        path.write_bytes(content)
    calls = []
    again, _ = counted(tmp_path, calls).places(wsi, xy)
    np.testing.assert_array_equal(again, first)
    assert sum(calls) > len(xy)
    counted(tmp_path, calls := []).places(wsi, xy)
    assert calls == []


def test_two_at_once_share_the_work(section, tmp_path):
    xy = section.obsm["spatial"]
    calls = []
    with ThreadPoolExecutor(2) as pool:
        slides = [io.open_section_slide(section) for _ in range(2)]
        first, second = pool.map(lambda slide: counted(tmp_path, calls).places(slide, xy)[0], slides)
    np.testing.assert_array_equal(first, second)
    alone = []
    counted(tmp_path / "alone", alone).places(slides[0], xy)
    assert sum(calls) == sum(alone)


def test_one_name_in_two_folders_is_two_slides(section, tmp_path):
    others = []
    for seed in (0, 1):
        image = np.random.default_rng(seed).integers(0, 255, (300, 300, 3), dtype=np.uint8)
        image[:60] = image[-60:] = 240
        path = tmp_path / str(seed) / "slide.png"
        path.parent.mkdir()
        Image.fromarray(image).save(path)
        others.append(io.open_wsi(path, mpp=2.0))
    features = [embedder(tmp_path)._fields(slide, np.array([[150.0, 150.0]]), "places") for slide in others]
    assert not np.array_equal(features[0][0], features[1][0])
