"""Formats: what is written reads back with the libraries people read it with."""

import gzip
import json
import sys

import h5py
import numpy as np
import pandas as pd
import pytest

from histoflow._errors import MissingDependencyError
from histoflow.datasets.arrays import st_array, visium_array
from histoflow.datasets.formats import halved, write_jpg, write_png, write_space_ranger, write_st_tables, write_tiff

imagecodecs = pytest.importorskip("imagecodecs", reason="writing slides needs histoflow[slides]")
tifffile = pytest.importorskip("tifffile", reason="writing slides needs histoflow[slides]")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def gradient(height=601, width=700):
    y, x = np.indices((height, width))
    return np.stack([x % 256, y % 256, (x + y) // 6], axis=-1).astype(np.uint8)


def test_halving_takes_the_mean_of_four_and_drops_the_odd_row():
    picture = np.array([[[0], [1]], [[2], [3]], [[9], [9]]], np.uint8)
    assert halved(picture).tolist() == [[[2]]]


def test_tiff_is_a_tiled_pyramid_with_its_scale_and_no_date(tmp_path):
    write_tiff(tmp_path / "HE.tif", gradient(), 0.8)
    with tifffile.TiffFile(tmp_path / "HE.tif") as tiff:
        assert [page.shape for page in tiff.pages] == [(601, 700, 3), (300, 350, 3), (150, 175, 3), (75, 87, 3)]
        assert all(page.is_tiled for page in tiff.pages)
        assert [page.subfiletype for page in tiff.pages] == [0, 1, 1, 1]
        tags = tiff.pages[0].tags
        assert tags["XResolution"].value[0] / tags["XResolution"].value[1] == pytest.approx(1e4 / 0.8)
        assert tags["ResolutionUnit"].value == 3  # per centimetre
        assert not {"DateTime", "Software", "ImageDescription"} & {tag.name for tag in tags}


def test_openslide_finds_the_scale_and_the_pyramid(tmp_path):
    openslide = pytest.importorskip("openslide", reason="needs histoflow[slides]")
    write_tiff(tmp_path / "HE.tif", gradient(), 0.8)
    with openslide.OpenSlide(tmp_path / "HE.tif") as slide:
        assert slide.dimensions == (700, 601)
        assert slide.level_count == 4
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.8)


def test_png_is_exact_and_jpg_is_near_and_has_no_scale(tmp_path):
    picture = np.full((40, 50, 3), (200, 120, 180), np.uint8)
    write_png(tmp_path / "a.png", gradient())
    write_jpg(tmp_path / "a.jpg", picture)
    assert np.array_equal(imagecodecs.png_decode((tmp_path / "a.png").read_bytes()), gradient())
    content = (tmp_path / "a.jpg").read_bytes()
    assert np.abs(imagecodecs.jpeg8_decode(content).astype(int) - picture).max() <= 3
    assert content[13] == 0  # JFIF density unit: none


def space_ranger(folder, rng):
    spots = visium_array((700, 601))
    on = spots.xy_um[:, 0] > 200
    counts = pd.DataFrame(rng.poisson(1.0, (on.sum(), 3)), columns=["TEX01", "COL01", "MT-CO1"])
    write_space_ranger(folder, gradient(), spots, on_tissue=on, counts=counts, mpp=0.5, rng=rng)
    positions = pd.read_csv(folder / "spatial" / "tissue_positions.csv", index_col="barcode")
    return spots, on, counts, positions


def test_positions_hold_every_spot_of_the_array(tmp_path, rng):
    spots, on, _, positions = space_ranger(tmp_path / "outs", rng)
    assert np.array_equal(positions["in_tissue"], on)
    assert np.array_equal(positions[["array_col", "array_row"]], spots.index)
    assert np.abs(positions[["pxl_col_in_fullres", "pxl_row_in_fullres"]] * 0.5 - spots.xy_um).to_numpy().max() <= 0.25
    assert positions.index.is_unique
    assert positions.index.str.fullmatch("[ACGT]{16}-1").all()


def test_scanpy_reads_the_matrix_by_barcode(tmp_path, rng):
    scanpy = pytest.importorskip("scanpy", reason="needs histoflow[hvg]")
    _, on, counts, positions = space_ranger(tmp_path / "outs", rng)
    adata = scanpy.read_10x_h5(tmp_path / "outs" / "filtered_feature_bc_matrix.h5")
    assert list(adata.var_names) == list(counts.columns)
    assert list(adata.obs_names) == sorted(positions.index[on])
    expected = counts.set_axis(positions.index[on], axis=0).loc[adata.obs_names]
    assert np.array_equal(adata.X.toarray(), expected)
    assert set(adata.var["feature_types"]) == {"Gene Expression"}


def test_matrix_has_the_layout_of_cell_ranger_3(tmp_path, rng):
    space_ranger(tmp_path / "outs", rng)
    with h5py.File(tmp_path / "outs" / "filtered_feature_bc_matrix.h5") as file:
        assert set(file["matrix"]) == {"barcodes", "data", "features", "indices", "indptr", "shape"}
        assert set(file["matrix/features"]) == {"_all_tag_keys", "feature_type", "genome", "id", "name"}
        assert file["matrix/shape"][0] == 3
        assert file["matrix/barcodes"].dtype == "S18"
        assert len(file["matrix/indptr"]) == file["matrix/shape"][1] + 1


def test_small_images_fit_their_scale_factors_and_the_spot_diameter_is_space_rangers(tmp_path, rng):
    space_ranger(tmp_path / "outs", rng)
    spatial = tmp_path / "outs" / "spatial"
    scales = json.loads((spatial / "scalefactors_json.json").read_text())
    for name in ("hires", "lowres"):
        image = imagecodecs.png_decode((spatial / f"tissue_{name}_image.png").read_bytes())
        assert image.shape[:2] == tuple(int(n * scales[f"tissue_{name}_scalef"]) for n in (601, 700))
    assert scales["spot_diameter_fullres"] == pytest.approx(65 / 0.5)


def test_st_tables_join_on_array_places(tmp_path, rng):
    spots = st_array((1600, 1400), rng)
    counts = pd.DataFrame(rng.poisson(1.0, (len(spots.index), 2)), columns=["TEX01", "COL01"])
    write_st_tables(tmp_path, spots, counts, mpp=0.7)
    table = pd.read_csv(tmp_path / "spots_selection.tsv", sep="\t")
    assert list(table.columns) == ["x", "y", "new_x", "new_y", "pixel_x", "pixel_y", "selected"]
    np.testing.assert_allclose(table[["pixel_x", "pixel_y"]] * 0.7, spots.xy_um, atol=0.01)
    assert np.abs(table[["new_x", "new_y"]].to_numpy() - table[["x", "y"]].to_numpy()).max() < 0.2
    read = pd.read_csv(tmp_path / "counts.tsv.gz", sep="\t", index_col=0)
    ids = [f"{x}x{y}" for x, y in zip(table["x"], table["y"], strict=True)]
    assert sorted(ids) == list(read.index)
    assert np.array_equal(read.loc[ids], counts)


def test_compressed_tables_bear_no_time(tmp_path, rng):
    spots = st_array((1600, 1400), rng)
    write_st_tables(tmp_path, spots, pd.DataFrame({"TEX01": np.arange(len(spots.index))}), mpp=0.7)
    with gzip.open(tmp_path / "counts.tsv.gz") as file:
        file.read()
        assert file.mtime == 0


@pytest.mark.parametrize("missing", ["imagecodecs", "tifffile"])
def test_without_the_slide_packages_the_error_says_what_to_install(tmp_path, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingDependencyError, match=rf"{missing} is needed .* pip install 'histoflow\[slides\]'"):
        write_tiff(tmp_path / "HE.tif", gradient(), 0.8)
    assert not list(tmp_path.iterdir())
