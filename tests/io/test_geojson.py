"""Predictions for QuPath: valid GeoJSON, outlines of the right size, and names and values as they were."""

import json
import uuid

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import shapely
from anndata import AnnData

from histoflow._errors import MissingSlotError, NotFiniteError, OptionError, OutputError
from histoflow.io.geojson import outline_of, to_geojson

GENES = ["KRT8", "IGKC", 'µ/strange "gene"']


@pytest.fixture
def prediction():
    rng = np.random.default_rng(0)
    known = {"section": "S1", "kind": "visium", "mpp_x": 0.5, "mpp_y": 0.5, "pitch_um": 100.0, "slide_id": "ab12"}
    return AnnData(
        X=rng.gamma(2.0, 1.0, (5, 3)).astype(np.float32),
        obs=pd.DataFrame(index=[f"{n}x{n + 1}" for n in range(5)]),
        var=pd.DataFrame(index=GENES),
        obsm={"spatial": rng.uniform(1000, 2000, (5, 2))},
        uns={"histoflow": known},
    )


def written(prediction, path, **options):
    to_geojson(prediction, path, **options)
    return json.loads(path.read_text(encoding="utf-8"))


def signed_area(ring):
    x, y = np.asarray(ring).T
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) / 2)


def test_it_is_geojson_with_closed_counter_clockwise_rings(prediction, tmp_path):
    found = written(prediction, tmp_path / "p.geojson")
    assert found["type"] == "FeatureCollection"
    assert len(found["features"]) == 5
    for feature in found["features"]:
        assert feature["type"] == "Feature"
        assert feature["geometry"]["type"] == "Polygon"
        (ring,) = feature["geometry"]["coordinates"]
        assert ring[0] == ring[-1]
        assert len(ring) >= 4
        assert signed_area(ring) > 0
        assert shapely.geometry.shape(feature["geometry"]).is_valid


def test_detections_are_named_classified_and_measured(prediction, tmp_path):
    features = written(prediction, tmp_path / "p.geojson")["features"]
    assert [feature["properties"]["name"] for feature in features] == list(prediction.obs_names)
    for row, feature in enumerate(features):
        properties = feature["properties"]
        assert properties["objectType"] == "detection"
        assert properties["classification"]["name"] == "Spot"
        assert list(properties["measurements"]) == GENES
        np.testing.assert_allclose(list(properties["measurements"].values()), prediction.X[row], rtol=1e-5)


def test_centres_are_level_0_pixels_and_spots_have_their_size(prediction, tmp_path):
    features = written(prediction, tmp_path / "p.geojson")["features"]
    for xy, feature in zip(prediction.obsm["spatial"], features, strict=True):
        shape = shapely.geometry.shape(feature["geometry"])
        np.testing.assert_allclose(shape.centroid.coords[0], xy, atol=0.02)
        left, bottom, right, top = shape.bounds
        assert right - left == pytest.approx(2 * 27.5 / 0.5, abs=0.02)
        assert top - bottom == pytest.approx(2 * 27.5 / 0.5, abs=0.02)


def test_tiles_are_squares_of_one_pitch_on_pixels_that_are_not_square(prediction, tmp_path):
    prediction.uns["histoflow"] |= {"kind": "tiles", "pitch_um": 112.0, "mpp_x": 0.5, "mpp_y": 0.7}
    feature = written(prediction, tmp_path / "p.geojson")["features"][0]
    (ring,) = feature["geometry"]["coordinates"]
    assert len(ring) == 5
    assert feature["properties"]["classification"]["name"] == "Tile"
    left, bottom, right, top = shapely.geometry.shape(feature["geometry"]).bounds
    assert right - left == pytest.approx(224, abs=0.02)
    assert top - bottom == pytest.approx(160, abs=0.02)


def test_ids_are_uuids_that_stay_and_tell_sections_apart(prediction, tmp_path):
    first = [feature["id"] for feature in written(prediction, tmp_path / "a.geojson")["features"]]
    again = [feature["id"] for feature in written(prediction, tmp_path / "b.geojson")["features"]]
    prediction.uns["histoflow"]["section"] = "S2"
    other = [feature["id"] for feature in written(prediction, tmp_path / "c.geojson")["features"]]
    assert first == again
    assert not set(first) & set(other)
    assert len({uuid.UUID(name) for name in first}) == 5


def test_chosen_genes_come_in_the_order_asked_for_each_once(prediction, tmp_path):
    features = written(prediction, tmp_path / "p.geojson", genes=["IGKC", "KRT8", "IGKC"])["features"]
    measured = features[2]["properties"]["measurements"]
    assert list(measured) == ["IGKC", "KRT8"]
    np.testing.assert_allclose(list(measured.values()), prediction.X[2, [1, 0]], rtol=1e-5)


def test_one_gene_may_be_given_as_a_word(prediction, tmp_path):
    features = written(prediction, tmp_path / "p.geojson", genes="KRT8")["features"]
    assert list(features[0]["properties"]["measurements"]) == ["KRT8"]


@pytest.mark.parametrize("kind", [sp.csr_matrix, sp.csc_matrix])
def test_sparse_values_are_the_same_as_dense(prediction, tmp_path, kind):
    prediction.X[prediction.X < 1] = 0
    dense = written(prediction, tmp_path / "dense.geojson")
    prediction.X = kind(prediction.X)
    assert written(prediction, tmp_path / "sparse.geojson") == dense


def test_places_without_genes_are_outlines_alone(prediction, tmp_path):
    places = AnnData(obs=prediction.obs, obsm=dict(prediction.obsm), uns=dict(prediction.uns))
    features = written(places, tmp_path / "p.geojson")["features"]
    assert [feature["properties"]["measurements"] for feature in features] == [{}] * 5


def test_a_gene_that_is_not_there_is_named(prediction, tmp_path):
    with pytest.raises(OptionError, match="1 are not in the prediction of section S1, such as 'CD3'"):
        to_geojson(prediction, tmp_path / "p.geojson", genes=["KRT8", "CD3"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("slot", ["X", "spatial"])
def test_what_json_cannot_say_is_refused_and_an_earlier_file_stays(prediction, tmp_path, slot):
    (tmp_path / "p.geojson").write_text("earlier")
    (prediction.X if slot == "X" else prediction.obsm[slot])[1, 0] = np.nan
    with pytest.raises(NotFiniteError, match=f"section S1: .*{slot}.* holds NaN or infinity"):
        to_geojson(prediction, tmp_path / "p.geojson")
    assert [path.name for path in tmp_path.iterdir()] == ["p.geojson"]
    assert (tmp_path / "p.geojson").read_text() == "earlier"


def test_a_gene_with_nan_does_not_hinder_the_others(prediction, tmp_path):
    prediction.X[1, 0] = np.nan
    assert len(written(prediction, tmp_path / "p.geojson", genes=["IGKC"])["features"]) == 5


def test_a_folder_in_the_way_is_named(prediction, tmp_path):
    with pytest.raises(OutputError, match="choose another name"):
        to_geojson(prediction, tmp_path)


@pytest.mark.parametrize(
    ("kind", "columns", "pitch_um", "half_um", "square"),
    [
        ("visium", (), 100.0, 27.5, False),
        ("st", (), 200.0, 50.0, False),
        ("h5ad", ("array_row", "array_col"), 100.0, 27.5, False),
        ("h5ad", ("array_x", "array_y"), 200.0, 50.0, False),
        ("h5ad", ("array_row", "array_col"), 60.0, 30.0, False),
        ("h5ad", (), 100.0, 50.0, False),
        ("tiles", (), 112.0, 56.0, True),
        ("visium_hd", ("array_row", "array_col"), 8.0, 4.0, True),
    ],
)
def test_outlines_are_as_large_as_what_was_measured(prediction, kind, columns, pitch_um, half_um, square):
    prediction.uns["histoflow"] |= {"kind": kind, "pitch_um": pitch_um, "mpp_x": 0.5, "mpp_y": 0.25}
    for column in columns:
        prediction.obs[column] = 0
    outline = outline_of(prediction)
    assert (outline.half_um, outline.square) == (half_um, square)
    assert outline.half_px == (half_um * 2, half_um * 4)
    assert outline.radius_px == pytest.approx(half_um * np.sqrt(8))


def test_what_the_size_needs_is_named_when_it_is_missing(prediction):
    prediction.uns["histoflow"] |= {"kind": "h5ad"}
    del prediction.uns["histoflow"]["pitch_um"]
    with pytest.raises(MissingSlotError, match="section S1 has no pitch_um"):
        outline_of(prediction)
    del prediction.uns["histoflow"]["mpp_x"]
    with pytest.raises(MissingSlotError, match="section S1 has no mpp_x"):
        outline_of(prediction)
    del prediction.obsm["spatial"]
    with pytest.raises(MissingSlotError, match=r'no obsm\["spatial"\]'):
        outline_of(prediction)
