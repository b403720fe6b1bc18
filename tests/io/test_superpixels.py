"""Super-pixels on disk: written by windows, chunked by gene, placed in level-0 pixels, read back in part."""

import numpy as np
import pytest
from spatialdata.transformations import get_transformation

from histoflow._errors import OptionError, PanelMismatchError, ReadError
from histoflow._keys import UNS
from histoflow.io import SuperPixels
from histoflow.io import superpixels as module
from histoflow.io.superpixels import Canvas, check_budget, create_superpixels

CANVAS = Canvas(shape=(10, 13), px=(16.0, 15.0), um=8.0, chunk=4)
GENES = ["A", "B", "C"]
MEAN = np.random.default_rng(0).random((3, 10, 13)).astype(np.float32)
TISSUE = np.indices((10, 13)).sum(0) % 3 > 0
SPOTS = np.where(TISSUE, np.indices((10, 13))[1] % 3, 0).astype(np.int32)


@pytest.fixture
def stored(tmp_path):
    made = create_superpixels(tmp_path / "cells.zarr", CANVAS, GENES, {"scale": "counts"}, ["s1", "s2"])
    for row in range(0, 10, 4):
        for column in range(0, 13, 4):
            window = (slice(row, min(row + 4, 10)), slice(column, min(column + 4, 13)))
            labels = {"tissue": TISSUE[window], "spots": SPOTS[window]}
            made.write(window, MEAN[:, *window], MEAN[:, *window] / 10, labels)
    return SuperPixels(tmp_path / "cells.zarr")


def test_spatialdata_reads_it_in_level_0_pixels_gene_by_gene(stored):
    sdata = stored.spatialdata()
    image = sdata.images["mean"]
    np.testing.assert_array_equal(image.sel(c="B").to_numpy(), MEAN[1])
    assert image.data.chunksize == (1, 4, 4)
    matrix = get_transformation(image, "global").to_affine_matrix(("x", "y"), ("x", "y"))
    np.testing.assert_allclose(matrix, np.diag([16.0, 15.0, 1.0]))
    np.testing.assert_array_equal(sdata.labels["tissue"].to_numpy(), TISSUE)


def test_rows_are_the_super_pixels_on_tissue(stored):
    cells = stored.anndata()
    rows, columns = np.nonzero(TISSUE)
    assert cells.shape == (TISSUE.sum(), 3)
    assert list(cells.var_names) == GENES
    np.testing.assert_array_equal(cells.X, MEAN[:, rows, columns].T)
    np.testing.assert_allclose(cells.layers["std"], cells.X / 10)
    assert cells.obs_names[0] == f"{rows[0]}x{columns[0]}"
    np.testing.assert_allclose(cells.obsm["spatial"][0], [(columns[0] + 0.5) * 16, (rows[0] + 0.5) * 15])
    np.testing.assert_allclose(cells.obsm["spatial_um"][0], [(columns[0] + 0.5) * 8, (rows[0] + 0.5) * 8])
    spot = SPOTS[rows, columns]
    assert (cells.obs["spot"].isna() == (spot == 0)).all()
    assert (cells.obs["spot"] == "s2").sum() == (spot == 2).sum()
    assert cells.uns[UNS]["scale"] == "counts"


def test_some_genes_in_another_order(stored):
    cells = stored.anndata(["C", "A"])
    assert list(cells.var_names) == cells.uns[UNS]["panel"] == ["C", "A"]
    np.testing.assert_array_equal(cells.X, stored.anndata().X[:, [2, 0]])
    with pytest.raises(PanelMismatchError, match="has 3 genes, and no D"):
        stored.anndata(["D"])


def test_it_is_written_to_a_file(stored, tmp_path):
    stored.anndata().write_h5ad(tmp_path / "cells.h5ad")
    assert (tmp_path / "cells.h5ad").stat().st_size > 0


def test_what_memory_would_not_hold_is_refused(stored, monkeypatch):
    check_budget(2**26, 2)
    with pytest.raises(OptionError, match=r"67108865 super-pixels × 2 genes.*1\.0 GiB.*give fewer genes="):
        check_budget(2**26 + 1, 2)
    monkeypatch.setattr(module, "BUDGET_BYTES", 100)
    with pytest.raises(OptionError, match="more than 1 GiB"):
        stored.anndata()


def test_without_spots_there_are_no_labels_of_them(tmp_path):
    made = create_superpixels(tmp_path / "cells.zarr", CANVAS, GENES, {})
    assert set(made.spatialdata().labels) == {"tissue"}
    assert made.anndata().shape == (0, 3)


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(ReadError, match="is no zarr folder"):
        SuperPixels(tmp_path / "nowhere.zarr")
    import zarr

    zarr.open_group(str(tmp_path / "other.zarr"), mode="w")
    with pytest.raises(ReadError, match="holds no super-pixels"):
        SuperPixels(tmp_path / "other.zarr")
