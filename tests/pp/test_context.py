"""Context of embeddings from elsewhere: means within a radius, the same however spots are ordered or chosen."""

import anndata
import numpy as np
import pytest
from tests.contracts.test_estimators import SMALL
from tests.models.conftest import GENES, make_section

from histoflow import models
from histoflow._errors import (
    EncoderMismatchError,
    MissingSlotError,
    NotFiniteError,
    OptionError,
    SlideMismatchError,
)
from histoflow._keys import EMBEDDINGS, TISSUE, UNS
from histoflow.pp import Panel
from histoflow.pp import context as context_module
from histoflow.pp.context import add_context, disc_mean

RADII = (250.0, 500.0)


def recorded(section):
    return section.uns[UNS][EMBEDDINGS]["scatter"]


def expected_mean(section, radius_um):
    """Means by brute force, in the order of the spots."""
    xy, features = section.obsm["spatial_um"], section.obsm["scatter"].astype(np.float64)
    near = np.linalg.norm(xy[:, None] - xy[None], axis=2) <= radius_um
    return near @ features / near.sum(axis=1, keepdims=True)


def test_rows_are_widened_by_means_within_each_radius():
    section, plain = make_section("S", seed=0), make_section("S", seed=0)
    assert add_context(section, "scatter", RADII) is section
    values = section.obsm["scatter"]
    assert (values.shape, values.dtype) == ((49, 36), np.float32)
    np.testing.assert_array_equal(values[:, :12], plain.obsm["scatter"])
    for block, radius in enumerate(RADII, start=1):
        np.testing.assert_allclose(values[:, 12 * block : 12 * (block + 1)], expected_mean(plain, radius), atol=1e-6)
    np.testing.assert_array_equal(section.obsm["color"], plain.obsm["color"])


def test_the_record_follows_the_recipe():
    ids = {}
    for radii in (RADII, (500.0, 250.0), (250.0,)):
        section = make_section("S", seed=0)
        before = recorded(section)
        add_context(section, "scatter", radii)
        made = recorded(section)
        assert (made["context_um"], made["n_context_patches"]) == (list(radii), 49)
        assert {key: made[key] for key in before if key not in ("id", "context_um")} == {
            key: before[key] for key in before if key not in ("id", "context_um")
        }
        ids[radii] = made["id"]
    assert len({*ids.values(), "a" * 12}) == 4
    again = recorded(add_context(make_section("T", seed=1), "scatter", RADII))
    assert again["id"] == ids[RADII]
    other = recorded(add_context(make_section("T", seed=1, embedding_id="b" * 12), "scatter", RADII))
    assert other["id"] != ids[RADII]


def test_the_record_of_another_section_is_left_alone():
    section = make_section("S", seed=0)
    twin = section.copy()
    twin.uns = dict(section.uns)
    twin.uns[UNS] = dict(section.uns[UNS])
    add_context(twin, "scatter", RADII)
    assert "context_um" not in recorded(section)
    assert section.obsm["scatter"].shape == (49, 12)


def test_order_and_company_do_not_change_a_row():
    whole = make_section("S", seed=0)
    reference = add_context(whole.copy(), "scatter", RADII).obsm["scatter"]
    order = np.random.default_rng(0).permutation(whole.n_obs)
    for rows in (order, np.arange(0, 49, 3), np.array([7])):
        part = add_context(whole[rows].copy(), "scatter", RADII, around=whole)
        np.testing.assert_allclose(part.obsm["scatter"], reference[rows], atol=1e-6)
        assert recorded(part)["n_context_patches"] == 49
    np.testing.assert_array_equal(whole.obsm["scatter"], make_section("S", seed=0).obsm["scatter"])


def test_blocks_change_nothing(monkeypatch):
    reference = add_context(make_section("S", seed=0), "scatter", RADII).obsm["scatter"]
    monkeypatch.setattr(context_module, "_BLOCK", 10)
    np.testing.assert_array_equal(add_context(make_section("S", seed=0), "scatter", RADII).obsm["scatter"], reference)


def test_no_patch_of_another_piece_of_tissue_counts():
    section, plain = make_section("S", seed=0), make_section("S", seed=0)
    section.obs[TISSUE] = np.where(section.obsm["spatial_um"][:, 0] < 1500, "left", "right")
    left = (section.obs[TISSUE] == "left").to_numpy()
    values = add_context(section, "scatter", RADII).obsm["scatter"]
    for part in (left, ~left):
        for block, radius in enumerate(RADII, start=1):
            columns = values[part, 12 * block : 12 * (block + 1)]
            np.testing.assert_allclose(columns, expected_mean(plain[part], radius), atol=1e-6)
    whole = add_context(plain, "scatter", RADII).obsm["scatter"]
    assert np.abs(whole - values).max() > 0.1


def test_a_place_without_patches_around_has_its_own_features():
    xy = np.array([[0.0, 0.0], [1000.0, 0.0]])
    own, around = np.array([[1.0], [2.0]], np.float32), np.array([[5.0], [7.0]], np.float32)
    mean = disc_mean(own, xy, around, np.array([[0.0, 100.0], [100.0, 0.0]]), 100.0)
    np.testing.assert_array_equal(mean, [[6.0], [2.0]])


@pytest.mark.parametrize("radii", [(), (0.0,), (250.0, -1.0), (np.nan,), (np.inf,)])
def test_radii_that_are_none_are_refused(radii):
    with pytest.raises(OptionError, match="context_um is"):
        add_context(make_section("S", seed=0), "scatter", radii)


def test_a_second_context_is_refused():
    section = add_context(make_section("S", seed=0), "scatter", RADII)
    with pytest.raises(OptionError, match="already have a context of 250, 500 µm"):
        add_context(section, "scatter", (100.0,))


def test_missing_slots_are_named():
    section = make_section("S", seed=0)
    with pytest.raises(MissingSlotError, match=r'obsm\["uni"\]'):
        add_context(section, "uni")
    section.obsm["uni"] = section.obsm["scatter"]
    with pytest.raises(MissingSlotError, match="does not record"):
        add_context(section, "uni")
    del section.obsm["spatial_um"]
    with pytest.raises(MissingSlotError, match="spatial_um"):
        add_context(section, "scatter")


def test_an_embedding_that_is_no_number_is_refused():
    section = make_section("S", seed=0)
    section.obsm["scatter"][[2, 5], 3] = np.nan
    with pytest.raises(NotFiniteError, match="2 of 49 scatter embeddings"):
        add_context(section, "scatter")


def test_patches_of_another_slide_or_encoder_are_refused():
    section = make_section("S", seed=0)
    with pytest.raises(SlideMismatchError, match=r"around \(T\) is of another slide than section S"):
        add_context(section, "scatter", around=make_section("T", seed=1))
    with pytest.raises(EncoderMismatchError, match=r"around \(S\) holds embeddings of another encoder"):
        add_context(section, "scatter", around=make_section("S", seed=1, embedding_id="b" * 12))


@pytest.mark.parametrize("estimator", [models.RidgeProbe(), models.STFlow(**SMALL)], ids=["ridge", "stflow"])
def test_models_fit_on_context_and_refuse_its_absence(estimator, tmp_path):
    train = [add_context(make_section(f"S{i}", seed=i), "scatter", RADII) for i in range(3)]
    model = estimator.clone().fit(train, panel=Panel(tuple(GENES)))
    query = add_context(make_section("Q", seed=9), "scatter", RADII)
    query.write_h5ad(tmp_path / "q.h5ad")
    again = anndata.read_h5ad(tmp_path / "q.h5ad")
    np.testing.assert_array_equal(model.predict(again, n_samples=2).X, model.predict(query, n_samples=2).X)
    for other in (make_section("Q", seed=9), add_context(make_section("Q", seed=9), "scatter", (250.0,))):
        with pytest.raises(EncoderMismatchError, match="context_um"):
            model.predict(other)
