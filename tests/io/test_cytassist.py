"""CytAssist output: the 11 mm array reads like any other, and the instrument's own picture is never the slide."""

import shutil

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from histoflow._errors import ScaleWarning, SlideMismatchError
from histoflow.io import open_section_slide, read_visium, section_from_anndata
from histoflow.models import RidgeProbe
from histoflow.pp import Embedder, Recipe, get_encoder

pytestmark = pytest.mark.filterwarnings("ignore::histoflow._errors.GeneNamesWarning")
MPP = 16.0
CENTRE, RADII = np.array([420, 340]), np.array([250, 200])
PICTURES = [
    ("cytassist_image.tiff", "the image of the CytAssist instrument"),
    ("CytAssist_11mm_FFPE_Ovary_CytAssist_Image.tif", "the image of the CytAssist instrument"),
    ("aligned_tissue_image.jpg", "a checkerboard of the CytAssist and the microscope image"),
    ("detected_tissue_image.jpg", "with the detected tissue drawn on it"),
    ("aligned_fiducials.jpg", "with the fiducial frame drawn on it"),
]


def eleven_mm():
    """All 14,336 positions of the 11 mm array, 128 rows, 100 µm apart at 16 µm per pixel."""
    row, col = np.meshgrid(np.arange(128), np.arange(224), indexing="ij")
    on = (row + col) % 2 == 0
    row, col = row[on], col[on]
    xy = np.column_stack([50 + col * 50 / MPP, 13 + row * 50 * np.sqrt(3) / MPP])
    return pd.DataFrame(
        {
            "barcode": [f"SPOT{i:05d}-1" for i in range(len(row))],
            "in_tissue": ((((xy - CENTRE) / (RADII * 0.9)) ** 2).sum(axis=1) < 1).astype(int),
            "array_row": row,
            "array_col": col,
            "pxl_row_in_fullres": xy[:, 1],
            "pxl_col_in_fullres": xy[:, 0],
        }
    )


@pytest.fixture
def cytassist(make_outs):
    """An 11 mm FFPE output with everything that Space Ranger puts beside the tables."""
    outs = make_outs(name="FFPE", table=eleven_mm())
    spatial = outs.folder / "spatial"
    tifffile.imwrite(spatial / "cytassist_image.tiff", np.full((300, 300, 3), 200, dtype=np.uint8))
    for name in ("aligned_tissue_image.jpg", "aligned_fiducials.jpg", "detected_tissue_image.jpg"):
        Image.new("RGB", (400, 360), "grey").save(spatial / name)
    (outs.folder / "feature_slice.h5").write_bytes(b"")
    (outs.folder / "raw_probe_bc_matrix.h5").write_bytes(b"")
    (outs.folder / "probe_set.csv").write_text("#probe_set_file_format=2.0\ngene_id,probe_seq,probe_id,included\n")
    return outs


def test_the_large_array_has_the_same_pitch(cytassist):
    assert len(cytassist.positions) == 14_336
    section = read_visium(cytassist.folder, slide=cytassist.slide)
    known = section.uns["histoflow"]
    assert section.obs_names.tolist() == cytassist.barcodes
    assert section.obs["array_col"].max() > 127
    assert (known["mpp_x"], known["mpp_y"]) == pytest.approx((MPP, MPP))
    assert (known["pitch_um"], known["kind"]) == (100, "visium")


def test_without_a_slide_the_hires_image_is_used_and_told(cytassist):
    with pytest.warns(ScaleWarning, match="hires image of Space Ranger is used"):
        known = read_visium(cytassist.folder).uns["histoflow"]
    assert known["slide"].endswith("tissue_hires_image.png")
    assert known["image_frame"] == "hires"


@pytest.mark.parametrize(("name", "what"), PICTURES)
def test_pictures_that_are_no_slide_are_refused_by_name(cytassist, tmp_path, name, what):
    shutil.copy(cytassist.slide, tmp_path / name)
    with pytest.raises(SlideMismatchError, match=rf"{name} is no H&E slide but .*{what}.*give the microscope image"):
        read_visium(cytassist.folder, slide=tmp_path / name)


def test_the_instruments_picture_is_refused_under_another_name(cytassist, tmp_path):
    shutil.copy(cytassist.folder / "spatial" / "cytassist_image.tiff", tmp_path / "HE.tif")
    with pytest.raises(SlideMismatchError, match=r"HE\.tif is no H&E slide but the image of the CytAssist instrument"):
        read_visium(cytassist.folder, slide=tmp_path / "HE.tif", spots_frame="800x720")


def test_a_hires_image_made_from_the_instruments_picture_is_refused(cytassist):
    picture = cytassist.folder / "spatial" / "cytassist_image.tiff"
    tifffile.imwrite(picture, np.asarray(Image.open(cytassist.slide)))
    with (
        pytest.warns(ScaleWarning, match="hires image"),
        pytest.raises(SlideMismatchError, match=r"tissue_hires_image\.png .* ran without a microscope image"),
    ):
        read_visium(cytassist.folder)
    tifffile.imwrite(picture, np.asarray(Image.open(cytassist.slide).resize((400, 600))))
    with pytest.warns(ScaleWarning, match="hires image"):
        assert read_visium(cytassist.folder).n_obs == len(cytassist.barcodes)


def test_a_damaged_picture_that_nobody_needs_does_no_harm(cytassist):
    (cytassist.folder / "spatial" / "cytassist_image.tiff").write_bytes(b"II*")
    with pytest.warns(ScaleWarning, match="hires image"):
        assert read_visium(cytassist.folder).n_obs == len(cytassist.barcodes)


def test_an_anndata_with_the_instruments_picture_is_refused(cytassist):
    section = read_visium(cytassist.folder, slide=cytassist.slide)
    with pytest.raises(SlideMismatchError, match="the image of the CytAssist instrument"):
        section_from_anndata(section, slide=cytassist.folder / "spatial" / "cytassist_image.tiff")


@pytest.mark.filterwarnings("ignore::histoflow._errors.ScaleWarning", "ignore::histoflow._errors.TrainingWarning")
def test_spots_are_embedded_and_predicted(cytassist):
    section = read_visium(cytassist.folder, slide=cytassist.slide)[::20].copy()
    Embedder(get_encoder("color"), Recipe(patch_um=(112,), context_um=(), grid_um=1000)).section(
        section, open_section_slide(section)
    )
    predicted = RidgeProbe(encoder="color").fit([section], panel=["KRT8", "IGKC"]).predict(section)
    assert predicted.obs_names.tolist() == cytassist.barcodes[::20]
    assert np.isfinite(predicted.X).all()
