"""Real sections: the scales they are known to have, and their own slides told from their neighbours'."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL.JpegImagePlugin import JpegImageFile

from histoflow._errors import ScaleWarning, SlideMismatchError
from histoflow.io import open_section_slide, read_cohort, read_st, read_visium
from histoflow.io.tissue import on_tissue, tissue_mask

pytestmark = [
    pytest.mark.data,
    pytest.mark.filterwarnings("ignore::histoflow._errors.GeneNamesWarning"),
    pytest.mark.filterwarnings("ignore::histoflow._errors.DroppedSpotsWarning"),
]
SERIAL = {"C2": "5714_HE_BT_C2", "C3": "5714_HE_BT_D1", "C4": "5714_HE_BT_D2", "C5": "5714_HE_BT_E1"}


def her2st(folder: Path, section: str) -> tuple[Path, Path, Path]:
    files = folder / "her2st" / section
    slide = files / (f"{SERIAL[section]}.jpg" if section in SERIAL else "A1_HE_image_dark.png")
    return files / "counts.tsv.gz", files / "spots_selection.tsv", slide


def bulb(folder: Path, section: str) -> tuple[Path, Path, Path]:
    files = folder / "stutility_mob" / section
    return files / f"{section}.tsv", files / f"alignment_table_{section}.tsv", files / f"{section}.jpg"


@pytest.fixture(scope="module")
def c2(data_folder):
    return read_st(*her2st(data_folder, "C2"), section="C2", patient="C")


def test_c2_has_its_scale_and_all_its_spots(c2):
    known = c2.uns["histoflow"]
    assert known["mpp_x"] == pytest.approx(0.69, rel=0.03)
    assert known["mpp_y"] == pytest.approx(0.69, rel=0.03)
    assert known["mpp_source"] == "pitch"
    assert not known["anisotropic"]
    assert c2.shape == (187, 15706)
    assert "10x21" in c2.obs_names


def test_c2_opens_at_its_scale_with_the_pixels_of_the_jpg(c2, data_folder):
    wsi = open_section_slide(c2)
    assert wsi.properties.mpp == pytest.approx(0.69, rel=0.03)
    region = wsi.reader.get_region(5000, 6000, 300, 200, level=0)
    with JpegImageFile(her2st(data_folder, "C2")[2]) as jpg:
        np.testing.assert_array_equal(region, np.asarray(jpg)[6000:6200, 5000:5300])


def test_the_spots_of_c2_on_the_slide_of_c5_are_refused(data_folder):
    counts, spots, _ = her2st(data_folder, "C2")
    with pytest.raises(SlideMismatchError, match=r"only 2\d% of its 187 spots lie on tissue"):
        read_st(counts, spots, her2st(data_folder, "C5")[2])


@pytest.mark.parametrize("slide", SERIAL)
def test_serial_sections_are_told_apart_by_their_tissue(data_folder, slide):
    with JpegImageFile(her2st(data_folder, slide)[2]) as image:
        size = image.size
        image.draft("RGB", (1000, 1000))
        mask = tissue_mask(np.asarray(image.reduce(3)))
    for spots in SERIAL:
        table = pd.read_csv(her2st(data_folder, spots)[1], sep="\t")
        xy = table[["pixel_x", "pixel_y"]].to_numpy() * mask.shape[::-1] / size
        here, best = on_tissue(mask, xy)
        if slide == spots:
            assert here > 0.95
            assert best - here < 0.025
        else:
            assert here < 0.9
            assert best - here > 0.07


@pytest.mark.parametrize("section", ["MOB1", "MOB3"])
def test_olfactory_bulbs_have_two_scales_and_the_flag(data_folder, section):
    with pytest.warns(ScaleWarning, match="pixels are not square"):
        read = read_st(*bulb(data_folder, section))
    known = read.uns["histoflow"]
    assert known["mpp_x"] == pytest.approx(4.62, rel=0.03)
    assert known["mpp_y"] == pytest.approx(4.16, rel=0.03)
    assert known["anisotropic"] is True
    assert known["dropped"]["no_position"] == 11
    assert read.n_obs == {"MOB1": 379, "MOB3": 438}[section]


def test_the_bulb_of_the_other_animal_is_refused(data_folder):
    counts, spots, _ = bulb(data_folder, "MOB1")
    with (
        pytest.warns(ScaleWarning),
        pytest.raises(SlideMismatchError, match=r"shifted together 9\d% would"),
    ):
        read_st(counts, spots, bulb(data_folder, "MOB3")[2])


def test_a1_is_read_through_its_frame_and_a_manifest_places_vis5a(data_folder, tmp_path):
    counts, spots, slide = her2st(data_folder, "A1")
    outs = data_folder / "scmuscle_visium" / "Vis5A_2dpi"
    (tmp_path / "cohort.csv").write_text(
        "section,kind,slide,counts,spots,spots_frame\n"
        f"A1,st,{slide},{counts},{spots},6954x7435\n"
        f"Vis5A,visium,{outs / 'spatial' / 'DERIVED_pansharpened_2000px.png'},{outs},,hires\n"
    )
    a1, vis5a = (section.uns["histoflow"] for section in read_cohort(tmp_path / "cohort.csv"))
    for key in ("mpp_x", "mpp_y"):
        assert a1[key] == pytest.approx(3.2, rel=0.02)
        assert vis5a[key] == pytest.approx(4.0, rel=0.02)
    assert vis5a["image_frame"] == "hires"
    assert vis5a["dropped"]["not_selected"] == 4992 - 982


def test_vis5a_on_the_right_image_in_the_wrong_frame_is_refused(data_folder):
    outs = data_folder / "scmuscle_visium" / "Vis5A_2dpi"
    slide = outs / "spatial" / "DERIVED_pansharpened_2000px.png"
    with pytest.raises(SlideMismatchError, match=r"2000x1963 pixels, but the fullres image .* has 22208x21801"):
        read_visium(outs, slide=slide, spots_frame="fullres")
