"""Super-resolution from paths to results: sums agree, the factor counts, slides without counts, the command."""

import anndata
import numpy as np
import pandas as pd
import pytest
from tests.test_cli import histoflow
from tests.test_workflow import tiny_cohort

import histoflow as hf
from histoflow import io, models, workflow
from histoflow._errors import EncoderMismatchError, OptionError, PanelMismatchError
from histoflow._keys import UNS
from histoflow.pp import Panel, panel_log1p
from histoflow.pp.lattice import Lattice
from histoflow.stats import pearson
from histoflow.workflow import subspot as module

GENES = ["TEX01", "COL01", "COL02", "TEX02"]
PANEL = Panel(tuple(GENES))
SMALL = models.Training(max_epochs=2, n_members=2, n_searches=1, batch_size=32)

pytestmark = [
    pytest.mark.filterwarnings("ignore::histoflow._errors.TrainingWarning"),
    pytest.mark.filterwarnings("ignore:Call to deprecated class Scaler:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def manifest(cache_folder):
    return tiny_cohort(cache_folder)


@pytest.fixture(scope="module")
def cohort(manifest):
    return io.read_cohort(manifest)


@pytest.fixture(scope="module")
def references(cohort):
    embedded = [section.copy() for section in cohort.select(role="reference")]
    workflow.embed_for(embedded, [models.SubspotRegressor()])
    return embedded


@pytest.fixture(scope="module")
def model(references):
    return models.SubspotRegressor(training=SMALL, hidden_dim=8, n_components=4).fit(references, panel=PANEL)


@pytest.fixture(scope="module")
def section(cohort):
    return cohort.select(sections=["P2_B"])[0]


@pytest.fixture(scope="module")
def measured(section, model):
    return hf.super_resolve(section, model=model)


def sums(cells):
    """Sum over the super-pixels of every spot."""
    return pd.DataFrame(cells.X.astype(float)).groupby(cells.obs["spot"].to_numpy()).sum()


def test_sums_over_spots_are_what_was_measured(section, measured):
    wanted = np.expm1(panel_log1p(section, PANEL, "library").astype(float))
    found = sums(measured).loc[list(section.obs_names)].to_numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)
    assert measured.uns[UNS]["agrees_with"] == "measured spots"
    assert (measured.obs["spot"].value_counts() == 37).all()


def test_without_counts_sums_over_spots_are_the_prediction(section, model):
    blank = section[:, :0].copy()
    cells = hf.super_resolve(blank, model=model)
    workflow.embed_for([blank], [model])
    wanted = np.expm1(model.predict(blank).X.astype(float))
    np.testing.assert_allclose(sums(cells).loc[list(section.obs_names)].to_numpy(), wanted, rtol=1e-3)
    assert cells.uns[UNS]["agrees_with"] == "prediction"
    assert (cells.layers["std"] > 0).any()


def test_planted_detail_is_seen_within_spots(measured, manifest):
    truth = hf.datasets.toy_truth(manifest.parent)
    rate = truth.log_rate("P2_B")
    rows, columns = np.array([name.split("x") for name in measured.obs_names], dtype=int).T
    within = (rows < rate.shape[1]) & (columns < rate.shape[2])
    genes = [list(truth.drivers.index).index(gene) for gene in GENES]
    share = np.exp(rate - np.log(np.exp(rate).sum(axis=0)))[genes][:, rows[within], columns[within]].T
    assert pearson(share, measured.X[within]).mean() > 0.5


def test_the_factor_changes_the_output_and_shares_add_up(section, model, tmp_path):
    fine = hf.super_resolve(section, model=model, out=tmp_path / "8.zarr", genes=GENES[:2])
    for factor, step in ((4, 2), (1, 8)):
        coarse = hf.super_resolve(section, model=model, factor=factor, out=tmp_path / f"{factor}.zarr", genes=GENES[:2])
        assert coarse.facts["superpixel_um"] == 64 / factor
        small, large = (s.spatialdata().images["mean"].to_numpy() for s in (fine, coarse))
        assert large.shape == (2, -(-small.shape[1] // step), -(-small.shape[2] // step))
        padded = np.zeros((2, large.shape[1] * step, large.shape[2] * step))
        padded[:, : small.shape[1], : small.shape[2]] = small
        blocks = padded.reshape(2, large.shape[1], step, large.shape[2], step).sum(axis=(2, 4))
        np.testing.assert_allclose(large, blocks, rtol=1e-4, atol=1e-5)
        assert len(coarse.anndata()) < len(fine.anndata()) / step


def test_a_slide_without_counts(cohort, model):
    wsi = io.open_wsi(cohort.queries[0].slide)
    cells = hf.super_resolve(wsi, model=model, genes=["COL01"])
    assert list(cells.var_names) == ["COL01"]
    width, height = wsi.attrs[UNS]["slide_size_px"]
    assert (cells.obsm["spatial"] >= 0).all()
    assert cells.obsm["spatial"][:, 0].max() < width + 8
    assert cells.obsm["spatial"][:, 1].max() < height + 8
    assert cells.uns[UNS]["scale"] == "counts per 10,000 of a spot, per super-pixel"
    assert cells.uns[UNS]["n_superpixels"] == 37
    assert "spot" not in cells.obs


def test_windows_change_nothing(section, model, monkeypatch, measured):
    monkeypatch.setattr(module, "WINDOW", 64)
    again = hf.super_resolve(section, model=model)
    assert list(again.obs_names) == list(measured.obs_names)
    np.testing.assert_allclose(again.X, measured.X, rtol=1e-4, atol=1e-4)


def test_a_section_alone_is_fitted_on_itself(section, tmp_path):
    section.write_h5ad(tmp_path / "section.h5ad")
    section = anndata.read_h5ad(tmp_path / "section.h5ad")  # what is known of it comes back as numpy's types
    untrained = models.SubspotRegressor(training=SMALL, hidden_dim=4, n_components=2)
    cells = hf.super_resolve(section, model=untrained, genes=GENES[:2])
    assert untrained.panel_ is None
    assert cells.uns[UNS]["trained_on"] == ["P2_B"]
    assert "scatter_dense" not in section.obsm


def test_drawn_tissue_is_what_is_resolved(cohort, model):
    wsi = io.open_wsi(cohort.queries[0].slide)
    hf.tile(wsi)
    everything = hf.super_resolve(wsi, model=model, genes=GENES[:1])
    x0, y0, x1, y1 = wsi.shapes["tissues"].total_bounds
    shapes = wsi.shapes["tissues"].copy()
    shapes["geometry"] = shapes.geometry.clip_by_rect(x0, y0, (x0 + x1) / 2, y1)
    wsi.shapes["tissues"] = shapes
    half = hf.super_resolve(wsi, model=model, genes=GENES[:1])
    assert half.obsm["spatial"][:, 0].max() <= (x0 + x1) / 2
    kept = everything[half.obs_names]
    np.testing.assert_allclose(half.X, kept.X, rtol=1e-4)


def test_what_cannot_be_resolved_is_refused(section, cohort, model, monkeypatch):
    wsi = io.open_wsi(cohort.queries[0].slide)
    cases = [
        (lambda: hf.super_resolve(section, method="magic"), OptionError, "method must be istar"),
        (lambda: hf.super_resolve(wsi), OptionError, "needs model="),
        (lambda: hf.super_resolve(section, model=models.RidgeProbe()), OptionError, "model is hest_fm, which knows no"),
        (
            lambda: hf.super_resolve(section, model=model, factor=3),
            OptionError,
            "factor is 3; choose one of 1, 2, 4, 8",
        ),
        (lambda: hf.super_resolve(section, model=model, genes=["XIST"]), PanelMismatchError, "the model knows no XIST"),
    ]
    for call, error, text in cases:
        with pytest.raises(error, match=text):
            call()
    monkeypatch.setattr(io.superpixels, "BUDGET_BYTES", 1000)
    with pytest.raises(OptionError, match="give fewer genes="):
        hf.super_resolve(wsi, model=model)


def test_other_super_pixels_than_the_models_are_refused(section, model):
    other = model.clone()
    other.panel_, other.embedding_ = model.panel_, model.embedding_ | {"id": "b" * 12, "dense_version": "0"}
    with pytest.raises(EncoderMismatchError, match="dense_version 1, the model 0"):
        hf.super_resolve(section, model=other)


def test_tiles_are_predicted_by_the_method_that_is_named(cohort, section):
    wsi = hf.tile(io.open_wsi(cohort.queries[0].slide), tile_px=400, mpp=0.5)
    predicted = hf.predict_expression(
        wsi, method="istar", reference=section, fm_backbone="scatter", genes=GENES, n_epochs=1
    )
    assert predicted.shape == (len(wsi.shapes["tiles"]), 4)
    assert predicted.uns["histo"]["method"] == "istar"
    assert predicted.uns["histo"]["n_epochs"] == 1
    assert wsi.tables["istar_tiles"] is predicted


def test_the_command_fits_resolves_and_tells_the_scale(manifest, model, section, tmp_path):
    model.save(tmp_path / "model")
    done = histoflow(
        *("super-resolve", tmp_path / "model", manifest, "--section", "P2_B", "--with-counts", "--json"),
        *("--out", tmp_path / "cells.h5ad", "--genes", "TEX01,COL01"),
    )
    assert done.code == 0, done.err
    assert done.json["scale"] == "counts per 10,000 of a spot, per super-pixel"
    cells = anndata.read_h5ad(tmp_path / "cells.h5ad")
    wanted = np.expm1(panel_log1p(section, Panel(("TEX01", "COL01")), "library").astype(float))
    np.testing.assert_allclose(sums(cells).loc[list(section.obs_names)].to_numpy(), wanted, rtol=1e-3, atol=1e-3)
    assert done.json["n_genes"] == 2


def test_a_model_with_intervals_resolves_as_the_one_inside(references, section, model, measured):
    calibrated = models.Calibrated(model.clone()).fit(references, panel=PANEL)
    cells = hf.super_resolve(section, model=calibrated)
    np.testing.assert_array_equal(cells.X, measured.X)
    assert cells.uns[UNS]["method"] == "istar"


def test_the_command_on_a_slide_and_its_refusals(manifest, cohort, model, tmp_path):
    model.save(tmp_path / "model")
    genes = tmp_path / "genes.txt"
    genes.write_text("COL02\n\nTEX02\n")
    slide = cohort.queries[0].slide
    done = histoflow(
        "super-resolve", tmp_path / "model", slide, "--out", tmp_path / "c.zarr", "--genes", genes, "--factor", 4
    )
    assert done.code == 0, done.err
    assert "squares of 16 µm" in done.out
    assert io.SuperPixels(tmp_path / "c.zarr").genes == ("COL02", "TEX02")
    for arguments, text in (
        ((slide, "--out", tmp_path / "c.csv"), "--out is"),
        ((slide, "--out", tmp_path / "d.zarr", "--with-counts"), "need a cohort manifest"),
        ((manifest, "--out", tmp_path / "d.zarr"), "--section is None; choose one of P1_A"),
        ((manifest, "--out", tmp_path / "d.zarr", "--section", "P2_C", "--with-counts"), "has no counts"),
        ((manifest, "--out", tmp_path / "d.zarr", "--section", "P2_C", "--mpp", "1"), "--mpp means nothing"),
    ):
        done = histoflow("super-resolve", tmp_path / "model", *arguments)
        assert (done.code, text in done.err) == (2, True), done.err
    assert not (tmp_path / "d.zarr").exists()
    assert Lattice.of(io.open_wsi(slide)).shape[0] > 50


def test_a_model_without_superpixels_is_refused(cohort, tmp_path):
    wsi = io.open_section_slide(cohort.select(sections=["P2_B"])[0])
    with pytest.raises(OptionError, match="model is hest_fm, which knows no super-pixels; fit istar"):
        workflow.resolve(models.RidgeProbe(), wsi, tmp_path / "cells.zarr")
