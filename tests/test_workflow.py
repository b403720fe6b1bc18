"""From paths to results: embed, fit, predict, evaluate, on a toy cohort of a square millimetre per section."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tests.contracts.test_estimators import SMALL

from histoflow import bench, io, models, workflow
from histoflow._errors import (
    EncoderMismatchError,
    GeneNamesWarning,
    OptionError,
    PanelMismatchError,
    SplitError,
    TrainingWarning,
)
from histoflow._files import locked
from histoflow._keys import EMBEDDINGS, UNS
from histoflow.bench import read_prediction
from histoflow.datasets import planted
from histoflow.io import Cohort
from histoflow.pp import Panel, Recipe

PANEL = Panel(("TEX01", "COL01", "NIL01", "COL02", "TEX02"))


def tiny_cohort(cache_folder: Path) -> Path:
    """Manifest of a small toy cohort, written once into the cache that the workers of a test run share."""
    folder = cache_folder / "tiny"
    with locked(folder), pytest.MonkeyPatch.context() as patch:
        if not folder.exists():
            small = tuple(replace(plan, size_um=(960, 880), radius_um=400) for plan in planted._PLANS)
            patch.setattr(planted, "_PLANS", small)
            planted.write_toy(folder)
    return folder / "cohort.csv"


@pytest.fixture(scope="session")
def manifest(cache_folder):
    return tiny_cohort(cache_folder)


@pytest.fixture(scope="module")
def shared(manifest):
    """Read once; tests that write into sections take `cohort`."""
    return io.read_cohort(manifest)


@pytest.fixture
def cohort(shared):
    copies = {section.uns[UNS]["section"]: section.copy() for section in shared}
    return Cohort(shared.rows, name=shared.name, sections=copies)


@pytest.fixture(scope="module")
def probe(shared):
    """A linear probe on colours, fitted on the three references."""
    references = Cohort(shared.rows, sections={s.uns[UNS]["section"]: s.copy() for s in shared})
    return workflow.fit(references, model="hest_fm", encoder="color", panel=PANEL)


def section_of(cohort, name):
    return cohort.select(sections=[name])[0]


def test_embedding_a_cohort_writes_one_slot_into_every_section(cohort):
    assert workflow.embed(cohort, "color") is cohort
    widths = {section.obsm["color"].shape[1] for section in cohort}
    assert len(widths) == 1
    for section in cohort:
        assert section.obsm["color"].shape[0] == section.n_obs
        assert section.obsm["color"].dtype == np.float32
        assert list(section.uns[UNS][EMBEDDINGS]) == ["color"]
    alone = section_of(cohort, "P1_B").copy()
    del alone.obsm["color"]
    assert workflow.embed(alone, "color") is alone
    np.testing.assert_array_equal(alone.obsm["color"], section_of(cohort, "P1_B").obsm["color"])


def test_embedding_a_slide_makes_a_table_of_tiles(shared):
    wsi = io.open_wsi(shared.queries[0].slide)
    assert workflow.embed(wsi, "color") is wsi
    table = wsi.tables["color_tiles"]
    step = np.diff(np.unique(table.obsm["spatial_um"][:, 0])).min()
    assert (table.n_obs > 5, step) == (True, pytest.approx(112, rel=0.01))


def test_sections_are_embedded_for_the_models_that_look_at_an_image(cohort):
    sections = [section_of(cohort, "P1_A")]
    workflow.embed_for(sections, [models.MeanBaseline()])
    assert "color" not in sections[0].obsm
    workflow.embed_for(sections, [models.MeanBaseline(), models.ColorBaseline()])
    assert [slot for slot in sections[0].obsm if slot in ("color", "scatter")] == ["color"]


def test_a_model_is_fitted_on_the_references_and_its_panel_chosen_from_them(cohort, monkeypatch):
    monkeypatch.setattr(cohort, "_sections", {k: v for k, v in cohort._sections.items() if k != "P2_B"})
    monkeypatch.setitem(io.manifest._READERS, "visium", lambda *_: pytest.fail("the held-out section was read"))
    totals = [np.asarray(section.X.sum(axis=1)).ravel() for section in cohort.select(role="reference")]
    limit = int(np.median(totals[0]))
    model = workflow.fit(cohort, model="mean", panel=7, normalize="none", min_counts=limit, seed=4)
    assert (model.method, model.normalize, model.seed) == ("mean", "none", 4)
    assert (len(model.panel_), model.panel_.rule) == (7, "variance")
    told = model.training_
    assert told["sections"] == ["P1_A", "P1_B", "P2_A"]
    assert told["n_spots"] == [(total >= limit).sum() for total in totals]
    assert told["n_spots_left_out"] == sum((total < limit).sum() for total in totals) > 0


def test_without_a_reference_nothing_is_fitted(cohort):
    with pytest.raises(OptionError, match="cohort cohort has no reference section with counts"):
        workflow.fit(cohort.select(role="held_out"), model="mean")


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"model": "magic"}, OptionError, "model is 'magic'; choose one of mean, "),
        ({"model": "hest_fm", "encoder": "magic"}, OptionError, "encoder is 'magic'; choose one of scatter, color"),
        ({"model": "mean", "panel": Panel(("TEX01", "XIST"))}, PanelMismatchError, "section P1_A lacks 1 .*XIST"),
        ({"model": "mean", "panel": 5000}, PanelMismatchError, "5000 genes were asked for, but only"),
        ({"model": "mean", "panel": 5, "normalize": "log"}, OptionError, "normalize='log' is not offered"),
    ],
)
def test_what_cannot_be_fitted_says_why(cohort, options, error, text):
    with pytest.raises(error, match=text):
        workflow.fit(cohort, **options)


def test_a_section_is_predicted_without_a_look_at_its_counts(cohort, probe):
    section = section_of(cohort, "P2_B")
    predicted = workflow.predict_section(probe, section.copy())
    scrambled = section.copy()
    scrambled.X = scrambled.X[::-1] * 7
    np.testing.assert_array_equal(workflow.predict_section(probe, scrambled).X, predicted.X)
    bare = section[:, :0].copy()
    np.testing.assert_array_equal(workflow.predict_section(probe, bare).X, predicted.X)
    assert list(predicted.obs_names) == list(section.obs_names)
    assert list(predicted.var_names) == list(PANEL.genes)
    assert (predicted.X.std(axis=0) > 0).all()


def test_a_model_without_an_image_predicts_a_section_unembedded(cohort):
    model = workflow.fit(cohort, model="mean", panel=PANEL)
    section = section_of(cohort, "P2_B")
    predicted = workflow.predict_section(model, section)
    assert predicted.shape == (section.n_obs, len(PANEL))
    assert "color" not in section.obsm


def test_a_section_is_embedded_the_way_of_the_model(cohort, probe):
    recipe = Recipe(patch_um=(150.0,), context_um=(), grid_um=224.0)
    make = replace(workflow.embedder("color"), recipe=recipe)
    reference, section = section_of(cohort, "P1_A"), section_of(cohort, "P2_B")
    for each in (reference, section):
        make.section(each, io.open_section_slide(each))
    model = models.RidgeProbe("hest", encoder="color").fit([reference], panel=PANEL)
    with pytest.raises(EncoderMismatchError, match=r"P2_B was embedded with patch_um \[150\.0\], grid_um 224\.0, but"):
        probe.predict(section)
    expected = model.predict(section).X
    workflow.embed(section, "color")
    with pytest.raises(EncoderMismatchError, match=r"but the model with patch_um \[150\.0\]"):
        model.predict(section)
    np.testing.assert_array_equal(workflow.predict_section(model, section).X, expected)


def test_a_slide_is_predicted_on_a_grid_of_the_training_pitch(shared, probe):
    wsi = io.open_wsi(shared.queries[0].slide)
    predicted = workflow.predict_slide(probe, wsi)
    assert wsi.tables["hest_fm_tiles"].shape == predicted.shape
    assert probe.pitch_um_ == 100
    for axis in (0, 1):
        assert np.diff(np.unique(predicted.obsm["spatial_um"][:, axis])).min() == pytest.approx(100, rel=0.01)
    assert list(predicted.var_names) == list(PANEL.genes)
    assert np.isfinite(predicted.X).all()
    assert wsi.tables["color_tiles"].n_obs == predicted.n_obs


def test_a_file_of_weights_is_for_the_encoder_that_is_no_baseline():
    told = {name: models.from_name(name, level=0.9) for name in ("mean", "color", "hest_fm")}
    assert workflow.again._encoder(told) == "scatter"


def test_a_spot_and_a_tile_at_one_place_are_predicted_alike(cohort, probe):
    section = section_of(cohort, "P2_B")
    tiles = workflow.predict_slide(probe, io.open_section_slide(section))
    section = section[: tiles.n_obs].copy()
    tiles = tiles[: section.n_obs]
    section.obsm["spatial"] = tiles.obsm["spatial"]
    np.testing.assert_allclose(workflow.predict_section(probe, section).X, tiles.X, atol=1e-5)


@pytest.mark.parametrize("model", [models.MeanBaseline(), models.LocationBaseline()], ids=lambda m: m.name)
def test_a_model_without_an_image_is_refused_for_slides(cohort, model):
    fitted = model.clone().fit(list(cohort.select(role="reference")), panel=PANEL)
    wsi = io.open_wsi(cohort.queries[0].slide)
    with pytest.raises(OptionError, match=f"model {model.name} looks at no image and cannot predict a slide"):
        workflow.predict_slide(fitted, wsi)
    assert not wsi.tables


def check_pictures(folder, names):
    """Each named picture is a whole png with something drawn on it, and there is no other file."""
    assert {path.name for path in folder.iterdir()} == {f"{name}.png" for name in names}
    for path in folder.iterdir():
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert min(picture.size) > 100
            assert len(np.unique(np.asarray(picture.convert("L")))) > 10


def test_an_evaluation_leaves_table_predictions_and_figures(cohort, tmp_path):
    flow = models.STFlow(encoder="color", **SMALL)
    chosen = {"mean": models.MeanBaseline(), "color": models.ColorBaseline(), "flow": flow}
    table = workflow.evaluate(cohort, tmp_path, estimators=chosen, panel=PANEL)
    added = ["library_size", "library_size (oracle: true totals)", "location"]
    assert list(table["model"].unique()) == [*added, "mean", "color", "flow", "(ceiling)"]
    assert list(table["fold"].unique()) == ["P2_B"]
    assert set(table["section"]) == {"P2_B", ""}
    assert list(table["shares"].unique()) == ["same patient, another block"]
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "results.parquet"), table)
    r = table[table["metric"] == "pearson"].set_index(["model", "gene"])["value"]
    assert r["color"][["COL01", "COL02"]].min() > 0.4 > abs(r["color"]["NIL01"])
    kept = read_prediction(tmp_path, fold="P2_B", section="P2_B", model="flow")
    assert kept.uns[UNS]["trained_on"].tolist() == ["P1_A", "P1_B", "P2_A"]
    assert set(kept.layers) == {"measured", "std"}
    check_pictures(tmp_path / "figures", ["models", "P2_B-maps", "P2_B-scatter", "P2_B-genes"])


@pytest.mark.parametrize(
    ("last", "drawn"),
    [
        (models.MeanBaseline(), ["models", "P2_B-maps", "P2_B-scatter", "P2_B-genes"]),  # r is not defined
        (models.LocationBaseline(), ["models"]),  # there is no prediction
    ],
    ids=["mean", "location"],
)
def test_figures_of_a_model_without_scores(cohort, tmp_path, last, drawn):
    chosen = {"color": models.ColorBaseline(), "last": last}
    table = workflow.evaluate(cohort, tmp_path, estimators=chosen, panel=PANEL)
    assert table[table["model"] == "last"].query("metric == 'pearson'")["value"].isna().all()
    check_pictures(tmp_path / "figures", drawn)


def test_the_trivial_baselines_are_always_in_the_table(cohort, caplog):
    caplog.set_level("INFO", logger="histoflow")
    counted = cohort.select(sections=["P1_A", "P2_B"])
    probe = models.RidgeProbe(encoder="mine")
    chosen = workflow.with_baselines(counted, {"probe": probe, "mean": models.MeanBaseline()})
    assert list(chosen) == ["library_size", "color", "location", "probe", "mean"]
    assert chosen["library_size"].encoder == "mine"
    assert "added to the table: the trivial baselines library_size, color, location" in caplog.text
    alone = workflow.with_baselines(counted, {"istar": models.SubspotRegressor()})
    assert alone["library_size"].encoder == "color"
    features = Cohort([replace(row, kind="features") for row in counted.rows])
    assert list(workflow.with_baselines(features, {"probe": probe})) == ["mean", "library_size", "location", "probe"]
    assert list(workflow.with_baselines(features, {"mean": models.MeanBaseline()})) == ["location", "mean"]


def test_queries_are_neither_trained_on_nor_scored(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(workflow, "draw_evaluation", lambda *_: None)
    roles = {"P1_B": "query"}
    rows = [replace(row, role=roles.get(row.section, row.role)) for row in cohort.rows]
    part = Cohort(rows, sections=cohort._sections)
    with pytest.warns(TrainingWarning, match="2 training sections"):  # of the baselines that are added
        table = workflow.evaluate(part, tmp_path, estimators={"mean": models.MeanBaseline()}, panel=PANEL)
    assert set(table["section"]) == {"P2_B", ""}
    kept = read_prediction(tmp_path, fold="P2_B", section="P2_B", model="mean")
    assert kept.uns[UNS]["trained_on"].tolist() == ["P1_A", "P2_A"]


def test_a_refused_split_leaves_no_table(cohort, tmp_path):
    with pytest.raises(SplitError, match="by patient: shared by both sides: P2"):
        workflow.evaluate(cohort, tmp_path / "out", estimators={"mean": models.MeanBaseline()}, by="patient")
    assert not (tmp_path / "out").exists()


def test_a_prediction_is_written_whole_or_not_at_all(cohort, tmp_path, monkeypatch):
    predicted = workflow.predict_section(workflow.fit(cohort, model="mean", panel=PANEL), section_of(cohort, "P2_B"))
    path = tmp_path / "new" / "p.h5ad"
    workflow.write_h5ad(predicted, path)
    before = path.read_bytes()

    def stopped(h5, *_):
        h5.create_dataset("half", data=np.zeros(9))
        raise KeyboardInterrupt

    monkeypatch.setattr("anndata.io.write_elem", stopped)
    with pytest.raises(KeyboardInterrupt):
        workflow.write_h5ad(predicted, path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_fit_takes_sections_and_anndata_as_they_are(cohort):
    sections = [cohort.select(sections=[name])[0] for name in ("P1_A", "P1_B", "P2_A")]
    of_sections = workflow.fit(sections, model="hest_fm", encoder="color", panel=PANEL)
    of_cohort = workflow.fit(cohort, model="hest_fm", encoder="color", panel=PANEL)
    assert of_sections.training_ == of_cohort.training_
    with pytest.raises(OptionError, match="there is no section to fit on"):
        workflow.fit([], model="hest_fm", encoder="color", panel=PANEL)


def test_a_gene_that_a_table_lacks_is_an_error_or_zero_as_the_cohort_says(shared):
    def trimmed(missing):
        sections = {name: shared.select(sections=[name])[0].copy() for name in ("P1_A", "P1_B", "P2_A", "P2_B")}
        for name in ("P1_B", "P2_B"):
            sections[name] = sections[name][:, sections[name].var_names != "NIL01"].copy()
        return Cohort(shared.rows, sections=sections, missing=missing)

    with pytest.raises(PanelMismatchError, match="section P1_B lacks 1 of the panel's 5 genes"):
        workflow.fit(trimmed("error"), model="mean", panel=PANEL)
    with pytest.warns(GeneNamesWarning, match="they are taken for zero"):
        model = workflow.fit(trimmed("zero"), model="mean", panel=PANEL)
    assert model.training_["taken_for_zero"] == {"P1_B": ["NIL01"]}
    with pytest.warns(GeneNamesWarning, match="section P2_B"), pytest.warns(GeneNamesWarning, match="section P1_B"):
        table = bench.run(trimmed("zero"), models={"mean": models.MeanBaseline()}, panel=PANEL)
    assert set(table["gene"]) == {*PANEL.genes, ""}
    with pytest.raises(OptionError, match="missing='maybe' is not offered"):
        trimmed("maybe")
