"""Visium HD: bins are spots, the scale is stated and checked, and what is not a bin folder is named."""

import json
import shutil

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from PIL import Image

from histoflow._errors import ManifestError, ReadError, ResolutionError, ScaleWarning, SlideMismatchError
from histoflow.io import open_section_slide, read_cohort, read_visium, read_visium_hd, section_from_anndata
from histoflow.models import RidgeProbe
from histoflow.pp import Embedder, Recipe, get_encoder

pytestmark = pytest.mark.filterwarnings("ignore::histoflow._errors.GeneNamesWarning")
MPP = 4.0
CENTRE, RADII = np.array([420, 340]), np.array([250, 200])


def bins(bin_um, side):
    """Bins on the right border of the tissue, the array turned by a quarter and half a degree."""
    row, col = (index.ravel() for index in np.meshgrid(np.arange(side), np.arange(side), indexing="ij"))
    um = (np.stack([row, col], axis=1) - side / 2) * bin_um
    turn = np.deg2rad(0.5)
    xy = [650, 340] + um @ np.array([[np.cos(turn), np.sin(turn)], [np.sin(turn), -np.cos(turn)]]) / MPP
    return pd.DataFrame(
        {
            "barcode": [f"s_{bin_um:03d}um_{r:05d}_{c:05d}-1" for r, c in zip(row, col, strict=True)],
            "in_tissue": ((((xy - CENTRE) / (RADII * 0.95)) ** 2).sum(axis=1) < 1).astype(np.uint8),
            "array_row": row,
            "array_col": col,
            "pxl_row_in_fullres": xy[:, 1],
            "pxl_col_in_fullres": xy[:, 0],
        }
    )


@pytest.fixture
def make_bins(make_outs):
    """Function that writes one bin folder of a Visium HD output."""

    def make(bin_um=8, *, side=40, matrix="h5", name="HD1", **changes):
        outs = make_outs(name=name, positions="parquet", matrix=matrix, table=bins(bin_um, side))
        folder = outs.folder / "binned_outputs" / f"square_{bin_um:03d}um"
        folder.mkdir(parents=True)
        for part in [part for part in outs.folder.iterdir() if part.name != "binned_outputs"]:
            part.rename(folder / part.name)
        scalefactors = {
            "spot_diameter_fullres": bin_um / MPP,
            "bin_size_um": float(bin_um),
            "microns_per_pixel": MPP * 1.001,
            "regist_target_img_scalef": 0.5,
            "tissue_lowres_scalef": 0.15,
            "fiducial_diameter_fullres": 330 / MPP,
            "tissue_hires_scalef": 0.5,
        }
        stated = {key: value for key, value in (scalefactors | changes).items() if value is not None}
        (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps(stated))
        (outs.folder / "spatial").mkdir()
        outs.folder = folder
        return outs

    return make


@pytest.mark.parametrize(("bin_um", "matrix"), [(2, "h5"), (8, "h5"), (8, "mtx"), (16, "mtx")])
def test_bins_are_spots_whose_distance_is_the_side_of_a_bin(make_bins, tmp_path, bin_um, matrix):
    outs = make_bins(bin_um, matrix=matrix)
    section = read_visium_hd(outs.folder, slide=outs.slide, patient="P1")
    section.write_h5ad(tmp_path / "hd.h5ad")
    known = anndata.read_h5ad(tmp_path / "hd.h5ad").uns["histoflow"]
    assert section.obs_names.tolist() == outs.barcodes
    np.testing.assert_array_equal(section.X.toarray(), outs.counts[:, :6])
    table = outs.positions.set_index("barcode").loc[outs.barcodes]
    xy = table[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy()
    np.testing.assert_allclose(section.obsm["spatial"], xy)
    np.testing.assert_allclose(section.obsm["spatial_um"], xy * MPP * 1.001)
    np.testing.assert_array_equal(section.obs[["array_row", "array_col"]], table[["array_row", "array_col"]])
    assert (known["kind"], known["pitch_um"], known["mpp_source"]) == ("visium_hd", bin_um, "scalefactors")
    assert known["mpp_x"] == pytest.approx(MPP * 1.001)
    assert known["section"] == f"HD1_square_{bin_um:03d}um"
    assert known["dropped"]["not_selected"] == len(outs.positions) - section.n_obs


def test_bins_left_out_of_the_matrix_are_counted(make_bins):
    outs = make_bins()
    table = outs.positions.copy()
    table.loc[table.index[table["in_tissue"] == 0][:3], "in_tissue"] = 1
    table.to_parquet(outs.folder / "spatial" / "tissue_positions.parquet")
    with pytest.warns(UserWarning, match="section HD1_square_008um: spots were left out: 3 without counts"):
        section = read_visium_hd(outs.folder, slide=outs.slide)
    assert section.uns["histoflow"]["dropped"]["no_counts"] == 3


def test_without_the_stated_scale_the_bins_give_it(make_bins):
    outs = make_bins(microns_per_pixel=None)
    known = read_visium_hd(outs.folder, slide=outs.slide).uns["histoflow"]
    assert known["mpp_source"] == "pitch"
    assert (known["mpp_x"], known["mpp_y"]) == pytest.approx((MPP, MPP))


def test_a_stated_scale_that_the_bins_contradict_is_an_error_unless_one_is_given(make_bins):
    outs = make_bins(microns_per_pixel=0.274)
    with pytest.raises(ResolutionError, match=r"its scale factors say 0\.274 .* pitch of its spot array says 4 "):
        read_visium_hd(outs.folder, slide=outs.slide)
    with pytest.warns(ScaleWarning, match="although its scalefactors says"):
        known = read_visium_hd(outs.folder, slide=outs.slide, mpp=MPP).uns["histoflow"]
    assert (known["mpp_x"], known["mpp_source"]) == (MPP, "given")


def test_a_wrong_bin_size_is_found_out(make_bins):
    outs = make_bins(8, bin_size_um=16)
    with pytest.raises(ResolutionError, match=r"scale factors say 4\.004 .* pitch of its spot array says 8 "):
        read_visium_hd(outs.folder, slide=outs.slide)


def test_without_a_slide_the_hires_image_is_used_and_told(make_bins):
    outs = make_bins()
    with pytest.warns(ScaleWarning, match="hires image of Space Ranger is used") as told:
        section = read_visium_hd(outs.folder)
    assert told[0].filename == __file__
    known = section.uns["histoflow"]
    assert (known["image_frame"], known["mpp_source"]) == ("hires", "scalefactors")
    assert known["mpp_x"] == pytest.approx(2 * MPP * 1.001)
    np.testing.assert_allclose(
        section.obsm["spatial_um"][:, 0].min() / MPP, section.obsm["spatial"][:, 0].min() * 2.002
    )


def test_a_slide_of_another_size_is_refused(make_bins, tmp_path):
    outs = make_bins()
    Image.open(outs.slide).resize((600, 540)).save(tmp_path / "copy.png")
    with pytest.raises(SlideMismatchError, match=r"600x540 pixels.*fullres 800x720"):
        read_visium_hd(outs.folder, slide=tmp_path / "copy.png")


@pytest.mark.parametrize("above", ["outs/binned_outputs", "outs", "."])
def test_folders_above_ask_for_one_bin_size(make_bins, above):
    outs = make_bins()
    sample = outs.folder.parents[2]
    shutil.copytree(outs.folder, outs.folder.with_name("square_016um"))
    with pytest.raises(
        ReadError, match=r"holds several bin sizes \(square_008um, square_016um\); give the folder of one"
    ):
        read_visium_hd(sample / above, slide=outs.slide)


def test_the_other_reader_is_named_by_each(make_bins, make_outs):
    outs = make_bins()
    for folder in (outs.folder, outs.folder.parents[1], outs.folder.parents[2]):
        with pytest.raises(ReadError, match=r"is Visium HD output.*binned_outputs/square_\* to hf\.read_visium_hd"):
            read_visium(folder, slide=outs.slide)
    visium = make_outs(name="V")
    with pytest.raises(ReadError, match=r"is not of Visium HD: .* has no bin_size_um; .* with hf\.read_visium$"):
        read_visium_hd(visium.folder, slide=visium.slide)
    with pytest.raises(ReadError, match=r"is no bin folder of Visium HD: it has no folder spatial/"):
        read_visium_hd(visium.folder / "spatial", slide=visium.slide)


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"bin_size_um": 0}, ReadError, "bin_size_um is 0, wanted µm above 0"),
        ({"bin_size_um": "8"}, ReadError, "bin_size_um is '8', wanted µm above 0"),
        ({"microns_per_pixel": 0}, ResolutionError, "microns_per_pixel is 0, which is no scale of a slide"),
    ],
)
def test_impossible_scale_factors_are_named(make_bins, changes, error, text):
    outs = make_bins(**changes)
    with pytest.raises(error, match=text):
        read_visium_hd(outs.folder, slide=outs.slide)


def test_scale_factors_that_are_a_list_are_named(make_bins):
    outs = make_bins()
    (outs.folder / "spatial" / "scalefactors_json.json").write_text("[1, 2]")
    with pytest.raises(ReadError, match=r"scalefactors_json\.json holds no scale factors by name"):
        read_visium_hd(outs.folder, slide=outs.slide)


def test_a_manifest_reads_it_as_its_own_kind(make_bins, tmp_path):
    outs = make_bins()
    text = f"section,kind,slide,counts,patient\nB,visium_hd,HD1.png,{outs.folder.relative_to(tmp_path)},P1\n"
    (tmp_path / "cohort.csv").write_text(text)
    section = read_cohort(tmp_path / "cohort.csv")[0]
    assert section.n_obs == len(outs.barcodes)
    known = section.uns["histoflow"]
    assert (known["section"], known["kind"], known["pitch_um"]) == ("B", "visium_hd", 8)
    (tmp_path / "cohort.csv").write_text("section,kind,slide\nB,visium_hd,HD1.png\n")
    with pytest.raises(ManifestError, match=r"\(B, visium_hd\) lacks counts"):
        read_cohort(tmp_path / "cohort.csv")


@pytest.mark.parametrize("indexed", [True, False])
def test_an_anndata_of_bins_is_not_taken_for_100_um_spots(make_bins, indexed):
    outs = make_bins(8)
    section = read_visium_hd(outs.folder, slide=outs.slide)
    stated = json.loads((outs.folder / "spatial" / "scalefactors_json.json").read_text())
    record = {"scalefactors": stated, "metadata": {"source_image_path": str(outs.slide)}}
    obs = section.obs if indexed else section.obs[[]]
    held = AnnData(
        section.X, obs, section.var, uns={"spatial": {"L": record}}, obsm={"spatial": section.obsm["spatial"]}
    )
    known = section_from_anndata(held).uns["histoflow"]
    assert (known["pitch_um"], known["mpp_source"]) == (8, "scalefactors")
    assert known["mpp_x"] == pytest.approx(MPP * 1.001)
    del held.uns["spatial"]["L"]["scalefactors"]["microns_per_pixel"]
    assert section_from_anndata(held).uns["histoflow"]["mpp_x"] == pytest.approx(MPP, rel=1e-3)


@pytest.mark.filterwarnings("ignore::histoflow._errors.ScaleWarning", "ignore::histoflow._errors.TrainingWarning")
def test_bins_are_embedded_and_predicted(make_bins):
    outs = make_bins(16, side=24)
    section = read_visium_hd(outs.folder, slide=outs.slide)
    Embedder(get_encoder("color"), Recipe(patch_um=(112,), context_um=(), grid_um=1000)).section(
        section, open_section_slide(section)
    )
    model = RidgeProbe(encoder="color").fit([section], panel=["KRT8", "IGKC"])
    predicted = model.predict(section)
    assert predicted.obs_names.tolist() == outs.barcodes
    assert predicted.var_names.tolist() == ["KRT8", "IGKC"]
    assert np.isfinite(predicted.X).all()
    assert model.pitch_um_ == 16
