"""Predictions that are written part by part: the same numbers as at once, whole or not at all."""

import anndata
import numpy as np
import pytest
from anndata import AnnData
from tests.models.conftest import GENES, make_section

from histoflow import models, workflow
from histoflow._errors import NotFiniteError, OptionError
from histoflow.models.parts import Reach, parts_of
from histoflow.models.spots import spots_of
from histoflow.workflow import streaming

SMALL = {
    "network": models.Network(hidden_dim=16, pairwise_dim=16, n_layers=2, n_heads=2, n_components=8),
    "training": models.Training(max_epochs=2, crops_per_section=2, n_members=2),
}
KINDS = {
    "stflow": lambda: models.STFlow(**SMALL, n_sample_steps=2),
    "stflow-paper": lambda: models.STFlow("paper", **SMALL, n_sample_steps=2),
    "hest_fm": models.RidgeProbe,
    "mean": models.MeanBaseline,
    "calibrated-stflow": lambda: models.Calibrated(models.STFlow(**SMALL, n_sample_steps=2)),
    "calibrated-hest_fm": lambda: models.Calibrated(models.RidgeProbe()),
}


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def fitted(request):
    sections = [make_section(f"S{i}", seed=i) for i in range(3)]
    return request.param().fit(sections, panel=GENES[:5])


@pytest.fixture(scope="module")
def tiles(tmp_path_factory) -> AnnData:
    """A section without genes, 20 × 15 tiles of two pieces in no order, its embeddings mapped from a file."""
    made = make_section("T", seed=9, n_spots=300)
    order = np.random.default_rng(0).permutation(300)
    section = AnnData(obs=made.obs.iloc[order], obsm={"spatial_um": made.obsm["spatial_um"][order]}, uns=made.uns)
    section.obs["tissue_id"] = np.where(section.obsm["spatial_um"][:, 0] < 3000, "a", "b")
    path = tmp_path_factory.mktemp("tiles") / "scatter.npy"
    np.save(path, made.obsm["scatter"][order])
    section.obsm["scatter"] = np.load(path, mmap_mode="r")
    return section


def check_equal(streamed: AnnData, whole: AnnData) -> None:
    np.testing.assert_allclose(streamed.X, whole.X, rtol=0, atol=1e-5)
    assert streamed.X.dtype == np.float32
    assert set(streamed.layers) == set(whole.layers)
    for name in whole.layers:
        np.testing.assert_allclose(streamed.layers[name], whole.layers[name], rtol=0, atol=1e-5)
    assert streamed.obs.equals(whole.obs)
    assert streamed.var.equals(whole.var)
    assert set(streamed.varm) == set(whole.varm)
    for slot in ("spatial_um", *([] if "spatial" not in whole.obsm else ["spatial"])):
        np.testing.assert_array_equal(streamed.obsm[slot], whole.obsm[slot])
    assert set(streamed.uns["histoflow"]) == set(whole.uns["histoflow"])


@pytest.mark.parametrize("n_places", [None, 60])
def test_parts_equal_the_whole(fitted, tiles, tmp_path, n_places):
    whole = fitted.predict(tiles, n_samples=3)
    shape = streaming.stream_zarr(fitted, tiles, tmp_path / "p.zarr", n_samples=3, n_places=n_places)
    assert shape == whole.shape
    check_equal(anndata.read_zarr(tmp_path / "p.zarr"), whole)
    assert [path.name for path in tmp_path.iterdir()] == ["p.zarr"]


def test_a_path_that_ends_in_zarr_streams(fitted, tiles, tmp_path, monkeypatch):
    monkeypatch.setattr(type(fitted), "predict", None)
    assert workflow.predict_to_file(fitted, tiles, tmp_path / "p.zarr", n_samples=2) == (300, 5)
    assert anndata.read_zarr(tmp_path / "p.zarr").shape == (300, 5)


def test_parts_hold_every_row_once_and_what_it_depends_on(tiles):
    places = spots_of(tiles, None)
    parts = list(parts_of(places, Reach(2, 8), 60))
    assert sorted(np.concatenate([part.own for part in parts])) == list(range(300))
    assert max(len(part.own) for part in parts) <= 60
    step = 200.0
    for part in parts:
        assert set(part.own) <= set(part.around)
        assert (part.around[part.kept] == part.own).all()
        for row in part.own:
            apart = np.abs(places.xy_um - places.xy_um[row]).max(axis=1)
            near = (apart <= 2 * step) & (places.tissue == places.tissue[row])
            inner = (apart <= step) & near
            assert set(np.flatnonzero(inner)) <= set(part.around)


def test_what_looks_at_the_whole_is_refused(tiles, tmp_path):
    smoothed = models.RidgeProbe(smooth_um=300.0).fit([make_section(f"S{i}", seed=i) for i in range(3)], panel=GENES)
    assert not smoothed.in_parts
    with pytest.raises(OptionError, match="as a whole"):
        streaming.stream_zarr(smoothed, tiles, tmp_path / "p.zarr")
    workflow.predict_to_file(smoothed, tiles, tmp_path / "p.zarr")
    check_equal(anndata.read_zarr(tmp_path / "p.zarr"), smoothed.predict(tiles))


def test_a_bad_part_leaves_nothing(tiles, tmp_path):
    model = models.RidgeProbe().fit([make_section(f"S{i}", seed=i) for i in range(3)], panel=GENES)
    bad = tiles.copy()
    bad.obsm["scatter"][299, 0] = np.nan
    (tmp_path / "p.zarr").mkdir()
    (tmp_path / "p.zarr" / "kept").touch()
    with pytest.raises(NotFiniteError):
        streaming.stream_zarr(model, bad, tmp_path / "p.zarr", n_places=100)
    assert [path.name for path in tmp_path.rglob("*")] == ["p.zarr", "kept"]


def test_noise_of_many_places_comes_in_blocks(tiles, tmp_path, monkeypatch):
    model = KINDS["stflow"]().fit([make_section(f"S{i}", seed=i) for i in range(3)], panel=GENES)
    monkeypatch.setattr("histoflow.models.noise._NUMBERS", 100 * len(GENES))
    streaming.stream_zarr(model, tiles, tmp_path / "p.zarr", n_samples=3, n_places=70)
    check_equal(anndata.read_zarr(tmp_path / "p.zarr"), model.predict(tiles, n_samples=3))
