"""Embeddings taken back to the encoder's own numbers: raw ones as they are, standardisation undone."""

import numpy as np
import pytest
from tests.test_workflow import tiny_cohort

from histoflow import io
from histoflow._errors import OptionError
from histoflow._keys import EMBEDDINGS, UNS
from histoflow.pp import Embedder, Recipe, embedding_facts, get_encoder
from histoflow.pp import embed as embed_module
from histoflow.pp.raw import raw_field

COLOR = get_encoder("color")
RAW = Recipe(patch_um=(112.0,), context_um=(), standardize=False)


@pytest.fixture(scope="module")
def section(cache_folder):
    return io.read_cohort(tiny_cohort(cache_folder)).select(sections=["P1_A"])[0]


@pytest.fixture(scope="module")
def wsi(section):
    return io.open_section_slide(section)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    """Cache of what was encoded, which the recipes share."""
    return tmp_path_factory.mktemp("encoded")


def test_raw_embeddings_need_no_tissue_grid(section, wsi, tmp_path, monkeypatch):
    monkeypatch.delattr(embed_module, "statistics_grid")
    embedded = Embedder(COLOR, RAW, cache_dir=tmp_path).section(section.copy(), wsi)
    made = embedded.uns[UNS][EMBEDDINGS]["color"]
    assert made["standardize"] is False
    assert "grid_centre" not in made
    assert embedded.obsm["color"].shape == (section.n_obs, COLOR.n_features)


@pytest.mark.parametrize("patch_um", [(112.0, 224.0), (224.0, 113.0)])
@pytest.mark.parametrize("context_um", [(), (250.0, 500.0)])
def test_standardisation_is_undone(section, wsi, encoded, patch_um, context_um):
    recipe = Recipe(patch_um=patch_um, context_um=context_um, grid_um=224.0)
    side = min(patch_um)
    raw, _ = Embedder(COLOR, Recipe((side,), (), standardize=False), cache_dir=encoded).places(
        wsi, section.obsm["spatial"]
    )
    values, made = Embedder(COLOR, recipe, cache_dir=encoded).places(wsi, section.obsm["spatial"])
    undone = raw_field(values, made, patch_um=112.0, n_features=COLOR.n_features)
    np.testing.assert_allclose(undone, raw, atol=1e-5)
    assert np.abs(values[:, : COLOR.n_features] - raw).max() > 0.1


def test_the_choice_changes_no_id_that_is_stored():
    assert "standardize" not in embedding_facts(COLOR, Recipe())
    same_fields = Recipe(patch_um=(112.0,), context_um=())
    assert embedding_facts(COLOR, same_fields)["id"] != embedding_facts(COLOR, RAW)["id"]


def test_context_is_standardised_or_left_out():
    with pytest.raises(OptionError, match=r"has context, .*; give context_um=\(\)"):
        Recipe(standardize=False)


VALUES = np.arange(12, dtype=np.float32).reshape(2, 6)


def test_files_of_features_are_raw():
    for made in ({"patch_um": [112.0], "grid_um": 0.0}, {"patch_um": np.array([113.0]), "standardize": np.False_}):
        np.testing.assert_array_equal(raw_field(VALUES, made, patch_um=112.0, n_features=6), VALUES)


@pytest.mark.parametrize(
    "made",
    [
        {},
        {"patch_um": [56.0], "grid_um": 0.0},
        {"patch_um": [115.0], "grid_um": 0.0},
        {"patch_um": [112.0, 224.0, 448.0], "grid_um": 0.0},
        {"patch_um": [112.0], "context_um": [250.0], "grid_um": 0.0},
        {"patch_um": [112.0], "grid_um": 112.0},
        {"patch_um": [112.0]},
    ],
    ids=str,
)
def test_other_records_hold_no_such_field(made):
    assert raw_field(VALUES, made, patch_um=112.0, n_features=6) is None
