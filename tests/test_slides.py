"""The verbs on an opened slide: tiles, embeddings, predictions from a reference with its own slide, pairs."""

import json
from dataclasses import replace

import numpy as np
import pytest
import spatialdata
import torch
from tests.test_workflow import PANEL, tiny_cohort

import histoflow as hf
from histoflow import io, models, workflow
from histoflow._errors import EncoderMismatchError, MissingSlotError, OptionError, ReadError, SlideMismatchError
from histoflow._files import file_hash
from histoflow._keys import EMBEDDINGS, UNS
from histoflow.pp import get_encoder

PRINTED = {"method", "fm_backbone", "n_epochs", "n_layers", "n_sample_steps"}
GENES = list(PANEL.genes)

pytestmark = pytest.mark.filterwarnings("ignore::histoflow._errors.TrainingWarning")


@pytest.fixture(scope="module")
def shared(cache_folder):
    return io.read_cohort(tiny_cohort(cache_folder))


@pytest.fixture
def reference(shared):
    """A section that is not embedded."""
    return shared.select(sections=["P1_A"])[0].copy()


@pytest.fixture
def wsi(shared):
    return hf.tile(io.open_wsi(shared.queries[0].slide), tile_px=224, mpp=0.5)


def boxes(path, *corners):
    """A GeoJSON file of rectangles (x0, y0, x1, y1) in level-0 pixels, as QuPath writes it."""
    features = []
    for x0, y0, x1, y1 in corners:
        ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
        features.append({"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}})
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def test_tiles_are_as_wide_as_asked(wsi):
    bounds = wsi.shapes["tiles"].geometry.bounds.to_numpy()
    assert np.ptp(bounds[:, [0, 2]], axis=1) * wsi.attrs[UNS]["mpp_x"] == pytest.approx(112, rel=0.02)
    assert {"tile_id", "tissue_id"} <= set(wsi.shapes["tiles"].columns)


def test_tiles_of_a_coarser_slide_keep_their_um_and_record_its_scale(shared):
    wsi = hf.tile(io.open_wsi(shared.queries[0].slide), tile_px=896, mpp=0.125)
    spec = wsi.attrs["tile_spec"]["tiles"]
    assert spec["mpp"] == pytest.approx(wsi.properties.mpp)
    assert spec["width"] * spec["mpp"] == pytest.approx(112, rel=0.02)
    halves = hf.tile(wsi, tile_px=896, mpp=0.125, stride_px=448, tile_key="halves")
    assert len(halves.shapes["halves"]) > 3 * len(wsi.shapes["tiles"])


def test_polygons_keep_and_drop_tissue(shared, tmp_path):
    slide = shared.queries[0].slide
    everywhere = hf.tile(io.open_wsi(slide))
    x0, y0, x1, y1 = everywhere.shapes["tissues"].total_bounds
    left = boxes(tmp_path / "left.geojson", (x0, y0, (x0 + x1) / 2, y1))
    kept = hf.tile(io.open_wsi(slide), polygons={"include": left})
    dropped = hf.tile(io.open_wsi(slide), polygons={"exclude": left})
    assert kept.shapes["tissues"].total_bounds[2] == pytest.approx((x0 + x1) / 2)
    assert dropped.shapes["tissues"].total_bounds[0] == pytest.approx((x0 + x1) / 2)
    assert 0 < len(kept.shapes["tiles"]) < len(everywhere.shapes["tiles"])


def test_polygons_that_help_nobody(shared, tmp_path):
    wsi = io.open_wsi(shared.queries[0].slide)
    with pytest.raises(OptionError, match="polygons has keep; give include, exclude or both"):
        hf.tile(wsi, polygons={"keep": boxes(tmp_path / "a.geojson", (0, 0, 9, 9))})
    with pytest.raises(SlideMismatchError, match="no tissue is left"):
        hf.tile(wsi, polygons={"include": boxes(tmp_path / "b.geojson", (-9, -9, -1, -1))})
    (tmp_path / "empty.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    with pytest.raises(ReadError, match="holds no polygon"):
        hf.tile(wsi, polygons={"include": tmp_path / "empty.geojson"})
    with pytest.raises(OptionError, match="give both above 0"):
        hf.tile(wsi, tile_px=0)


def test_tiles_are_embedded_at_their_own_size_in_their_order(shared):
    wsi = hf.tile(io.open_wsi(shared.queries[0].slide), tile_px=320, mpp=0.5)
    table = hf.embed(wsi, "color", num_workers=2).tables["color_tiles"]
    assert list(table.obs["tile_id"]) == list(wsi.shapes["tiles"]["tile_id"])
    assert table.uns[UNS][EMBEDDINGS]["color"]["patch_um"] == [160.0, 320.0]
    assert table.uns["spatialdata_attrs"] == {"region": "tiles", "region_key": "library_id", "instance_key": "tile_id"}


@pytest.mark.parametrize("method", ["hest_fm", "stflow"])
def test_every_field_that_is_printed(wsi, reference, small_flow, method):
    predicted = hf.predict_expression(
        wsi, method=method, reference=reference, fm_backbone="color", genes=GENES, n_epochs=2, hidden_dim=16
    )
    assert predicted.shape == (len(wsi.shapes["tiles"]), len(GENES))
    assert predicted.X.dtype == np.float32
    assert list(predicted.var_names) == GENES
    assert list(predicted.obs.columns) == ["tile_id", "library_id"]
    assert list(predicted.var.columns) == list(reference.var.columns)
    centroids = wsi.shapes["tiles"].geometry.centroid
    np.testing.assert_allclose(predicted.obsm["spatial"], np.stack([centroids.x, centroids.y], axis=1))
    assert set(predicted.uns["histo"]) == PRINTED
    assert predicted.uns["histo"]["fm_backbone"] == "color"
    assert predicted.uns["histo"]["n_epochs"] == (2 if method == "stflow" else 0)
    assert wsi.tables[f"{method}_tiles"] is predicted


def test_a_reference_is_fitted_as_it_is_alone(wsi, reference):
    predicted = hf.predict_expression(wsi, method="hest_fm", reference=reference, fm_backbone="color", genes=GENES)
    assert "color" not in reference.obsm
    make = workflow.embedder("color", made={**predicted.uns[UNS]["embedding"]})
    alone = make.section(reference.copy(), io.open_section_slide(reference))
    model = models.RidgeProbe(encoder="color").fit([alone], panel=GENES)
    np.testing.assert_allclose(model.predict(make.laid_tiles(wsi)).X, predicted.X, atol=1e-5)


def test_a_fitted_model_is_not_fitted_again(wsi, reference, monkeypatch):
    first = hf.predict_expression(wsi, method="hest_fm", reference=reference, fm_backbone="color", genes=GENES)
    make = workflow.embedder("color", made=first.uns[UNS]["embedding"])
    model = models.RidgeProbe(encoder="color").fit(
        [make.section(reference, io.open_section_slide(reference))], panel=GENES
    )
    monkeypatch.setattr(models.RidgeProbe, "_fit", lambda *_: pytest.fail("fitted again"))
    again = hf.predict_expression(wsi, model=model, key_added="again")
    np.testing.assert_allclose(again.X, first.X, atol=1e-6)
    assert "again_tiles" in wsi.tables


def test_a_fitted_model_with_intervals_shows_them(wsi, shared):
    references = io.Cohort(shared.rows, sections={s.uns[UNS]["section"]: s.copy() for s in shared})
    model = workflow.fit(references, model="hest_fm", encoder="color", panel=PANEL)
    predicted = hf.predict_expression(wsi, model=model)
    assert predicted.uns["histo"]["method"] == "hest_fm"
    assert wsi.tables["hest_fm_tiles"] is predicted
    assert (predicted.layers["lower"] <= predicted.layers["upper"]).all()


def test_the_flow_keeps_its_recipe_beside_the_options_that_are_given(wsi, reference, monkeypatch):
    made = []
    monkeypatch.setattr(models.STFlow, "_fit", lambda self, _: made.append(self) or {})
    monkeypatch.setattr(
        models.STFlow, "_draw", lambda self, spots, _: np.zeros((1, len(spots), len(GENES)), np.float32)
    )
    hf.predict_expression(wsi, reference=reference, fm_backbone="color", genes=GENES, n_epochs=3, hidden_dim=16)
    own = models.STFlow()
    assert made[0].network == replace(own.network, hidden_dim=16)
    assert made[0].training == replace(own.training, max_epochs=3, batch_size=1)


def test_references_may_be_several_and_the_panel_of_any_length(wsi, shared):
    references = [shared.select(sections=[name])[0] for name in ("P1_A", "P1_B", "P2_A")]
    predicted = hf.predict_expression(wsi, method="hest_fm", reference=references, fm_backbone="color", n_top_genes=7)
    assert predicted.n_vars == 7
    assert predicted.uns[UNS]["trained_on"] == ["P1_A", "P1_B", "P2_A"]


@pytest.mark.filterwarnings("ignore:zarr v3 autosharding:UserWarning")  # anndata's, about its own next release
def test_a_slide_with_predictions_is_written_and_reopened(wsi, reference, tmp_path):
    predicted = hf.predict_expression(wsi, method="hest_fm", reference=reference, fm_backbone="color", genes=GENES)
    wsi.write(tmp_path / "slide.zarr")
    reopened = spatialdata.read_zarr(tmp_path / "slide.zarr")
    table = reopened.tables["hest_fm_tiles"]
    np.testing.assert_array_equal(table.X, predicted.X)
    assert table.uns["histo"]["method"] == "hest_fm"
    shapes, joined = spatialdata.join_spatialelement_table(
        sdata=reopened, spatial_element_names="tiles", table_name="hest_fm_tiles", how="inner"
    )
    assert len(shapes["tiles"]) == joined.n_obs == predicted.n_obs


@pytest.mark.filterwarnings("ignore")  # squidpy, scanpy and spatialdata-plot warn of each other and of matplotlib
def test_other_libraries_draw_a_prediction(wsi, reference, tmp_path):
    import matplotlib.pyplot as plt
    import scanpy

    pytest.importorskip("spatialdata_plot")  # it adds `.pl` to SpatialData
    squidpy = pytest.importorskip("squidpy")
    predicted = hf.predict_expression(wsi, method="hest_fm", reference=reference, fm_backbone="color", genes=GENES)
    scanpy.pl.embedding(predicted, basis="spatial", color=GENES[0], show=False)
    squidpy.pl.spatial_scatter(predicted, shape=None, color=GENES[0], library_id="tiles")
    drawn = wsi.pl.render_shapes("tiles", color=GENES[0], table_name="hest_fm_tiles")
    drawn.pl.show(coordinate_systems="global", save=tmp_path / "tiles.png", dpi=40)
    assert len(plt.get_fignums()) >= 3
    assert (tmp_path / "tiles.png").stat().st_size > 1000
    plt.close("all")


def test_a_reference_without_a_slide_is_refused(wsi, reference):
    bare = reference.copy()
    del bare.uns[UNS]
    with pytest.raises(MissingSlotError, match="reference_wsi="):
        hf.predict_expression(wsi, method="hest_fm", reference=bare, fm_backbone="color", genes=GENES)


def test_the_slide_of_another_section_is_refused(wsi, reference):
    with pytest.raises(SlideMismatchError):
        hf.predict_expression(
            wsi, method="hest_fm", reference=reference, reference_wsi=wsi, fm_backbone="color", genes=GENES
        )


def test_a_reference_seen_through_other_patches_is_refused(shared, reference):
    hf.embed(reference, "color")
    wsi = hf.tile(io.open_wsi(shared.queries[0].slide), tile_px=320, mpp=0.5)
    with pytest.raises(EncoderMismatchError, match="patch_um"):
        hf.predict_expression(wsi, method="hest_fm", reference=reference, fm_backbone="color", genes=GENES)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "give reference="),
        ({"reference": []}, "give reference="),
        ({"method": "magic"}, "method must be one of stflow, hest_fm"),
        ({"model": models.MeanBaseline()}, "must look at the image"),
    ],
)
def test_calls_that_mean_nothing(wsi, reference, options, told):
    if "method" in options:
        options = options | {"reference": reference}
    with pytest.raises(OptionError, match=told):
        hf.predict_expression(wsi, fm_backbone="color", genes=GENES, **options)


def test_a_slide_without_tiles_says_how_to_lay_them(shared, reference):
    with pytest.raises(MissingSlotError, match=r"hf\.tile\(wsi\)"):
        hf.predict_expression(io.open_wsi(shared.queries[0].slide), reference=reference, fm_backbone="color")


def test_spot_features_are_the_rows_of_the_reference(reference):
    features = hf.spot_features(reference, fm_backbone="color")
    assert list(features.obs_names) == list(reference.obs_names)
    reversed_rows = hf.spot_features(reference[::-1].copy(), fm_backbone="color")
    np.testing.assert_array_equal(reversed_rows.X[::-1], features.X)


def test_spots_are_paired_with_near_tiles_only(shared, reference):
    wsi = hf.tile(io.open_section_slide(reference))
    predicted = hf.predict_expression(wsi, method="hest_fm", reference=reference, fm_backbone="color", genes=GENES)
    pairs = hf.match(predicted, reference)
    assert len(pairs.table) + pairs.n_unmatched == reference.n_obs
    apart = predicted.obsm["spatial_um"][pairs.table["tile"]] - reference.obsm["spatial_um"][pairs.table["spot"]]
    np.testing.assert_allclose(np.linalg.norm(apart, axis=1), pairs.table["distance_um"])
    assert pairs.table["distance_um"].max() <= 112 / np.sqrt(2)
    assert hf.match(predicted, reference, max_um=1e-3).n_unmatched > 0.9 * reference.n_obs
    other = shared.select(sections=["P1_B"])[0]
    with pytest.raises(SlideMismatchError, match="different slides"):
        hf.match(predicted, other)
    with pytest.raises(OptionError, match="max_um is 0"):
        hf.match(predicted, reference, max_um=0)


def test_visium_with_its_image(shared):
    row = next(row for row in shared.rows if row.kind == "visium")
    section, wsi = hf.read_visium_with_image(row.counts, row.slide)
    assert wsi.attrs[UNS]["slide_id"] == section.uns[UNS]["slide_id"]
    assert section.uns["histo"] == {"wsi_path": str(row.slide)}
    (library,) = section.uns["spatial"].values()
    assert library["scalefactors"]["spot_diameter_fullres"] > 0
    assert {"gene_ids", "feature_types", "genome"} <= set(section.var.columns)


def test_backbones_are_those_that_work_here():
    assert {"scatter", "color"} <= set(hf.available_backbones())


def test_the_table_of_an_encoder_names_it(wsi, reference):
    hf.embed(wsi, "color")
    predicted = hf.predict_expression(wsi, method="hest_fm", reference=reference, feature_key="color", genes=GENES)
    assert predicted.uns["histo"]["fm_backbone"] == "color"
    with pytest.raises(MissingSlotError, match="magic_tiles"):
        hf.predict_expression(wsi, method="hest_fm", reference=reference, feature_key="magic", genes=GENES)


def test_options_of_pretrained_methods_are_refused(wsi, reference):
    with pytest.raises(OptionError, match="organ= and weight_path= mean nothing for method stflow"):
        hf.predict_expression(wsi, reference=reference, fm_backbone="color", genes=GENES, organ="Breast")


def network(path):
    """A TorchScript file: means of colours, 224 pixels wide patches."""

    class Means(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)

    torch.jit.script(Means()).save(path)
    return path


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's, about its own format
def test_weights_of_one_file_serve_reference_and_query(wsi, reference, tmp_path):
    path = network(tmp_path / "means.pt")
    options = {"method": "hest_fm", "reference": reference, "genes": GENES}
    named = hf.predict_expression(wsi, fm_backbone="means", fm_weight_path=path, **options)
    direct = hf.predict_expression(wsi, fm_backbone=str(path), **options)
    made = hf.predict_expression(wsi, fm_backbone=get_encoder(str(path)), **options)
    np.testing.assert_array_equal(named.X, direct.X)
    np.testing.assert_array_equal(named.X, made.X)
    assert named.uns[UNS]["embedding"]["weights_hash"] == file_hash(path)
