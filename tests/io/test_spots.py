"""Legacy ST tables and foreign AnnData: what is kept, what is found out, what is refused."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from PIL import Image

from histoflow._errors import (
    CountsError,
    DroppedSpotsWarning,
    MissingSlotError,
    OptionError,
    ReadError,
    ResolutionError,
    ScaleWarning,
    SlideMismatchError,
)
from histoflow.io import read_st, read_visium, section_from_anndata
from histoflow.io.section import Given
from histoflow.io.spots import st_section

pytestmark = pytest.mark.filterwarnings("ignore::histoflow._errors.GeneNamesWarning")
ST_MPP = 4.0 * 2.2


@pytest.mark.parametrize("selected", [True, False])
@pytest.mark.parametrize("array", ["1k", "2k"])
def test_both_arrays_give_the_scale_and_keep_the_selected_spots(make_st, array, selected):
    files = make_st(array=array, selected=selected)
    section = read_st(files.counts, files.spots, files.slide, section="T", patient="P")
    known = section.uns["histoflow"]
    assert section.obs_names.tolist() == files.values.index.tolist()
    np.testing.assert_array_equal(section.X.toarray(), files.values.to_numpy())
    table = files.table.set_index(files.table["x"].astype(str) + "x" + files.table["y"].astype(str))
    xy = table.loc[section.obs_names, ["pixel_x", "pixel_y"]].to_numpy()
    np.testing.assert_allclose(section.obsm["spatial"], xy)
    np.testing.assert_allclose(section.obsm["spatial_um"], xy * ST_MPP)
    assert known["kind"] == "st"
    assert known["pitch_um"] == 200
    assert known["mpp_x"] == pytest.approx(ST_MPP)
    assert known["dropped"]["not_selected"] == len(files.table) - section.n_obs
    assert set(section.obs) == {"array_x", "array_y", "patient"}


def test_a_pitch_that_is_given_scales_the_array(make_st):
    files = make_st(array="2k")
    known = st_section(files.counts, files.spots, Given(slide=files.slide, pitch_um=400)).uns["histoflow"]
    assert known["mpp_x"] == pytest.approx(2 * ST_MPP)
    assert known["pitch_um"] == 400


def test_spots_of_a_larger_frame_are_scaled_to_the_slide(make_st):
    files = make_st()
    table = files.table.assign(pixel_x=files.table["pixel_x"] * 3, pixel_y=files.table["pixel_y"] * 3)
    table.to_csv(files.spots, sep="\t", index=False)
    section = read_st(files.counts, files.spots, files.slide, spots_frame="2400x2160")
    assert section.uns["histoflow"]["mpp_x"] == pytest.approx(ST_MPP)
    assert section.uns["histoflow"]["image_frame"] == "2400x2160"
    with pytest.raises(OptionError, match=r"one of fullres or WxH .* got 'hires'"):
        read_st(files.counts, files.spots, files.slide, spots_frame="hires")


def test_stretched_images_are_flagged_and_both_axes_kept(make_st, tmp_path):
    files = make_st()
    files.table.assign(pixel_y=files.table["pixel_y"] * 1.1).to_csv(files.spots, sep="\t", index=False)
    Image.open(files.slide).resize((800, 792)).save(files.slide)
    with pytest.warns(ScaleWarning, match="pixels are not square"):
        section = read_st(files.counts, files.spots, files.slide)
    known = section.uns["histoflow"]
    assert known["anisotropic"] is True
    assert (known["mpp_x"], known["mpp_y"]) == pytest.approx((ST_MPP, ST_MPP / 1.1))
    np.testing.assert_allclose(section.obsm["spatial_um"], section.obsm["spatial"] * [ST_MPP, ST_MPP / 1.1])


def test_ids_that_match_one_way_only_are_counted(make_st):
    files = make_st()
    values = files.values.rename(index={files.values.index[0]: "99x99"})
    values.to_csv(files.counts, sep="\t")
    with pytest.warns(DroppedSpotsWarning, match="1 without a position, 1 without counts"):
        section = read_st(files.counts, files.spots, files.slide)
    assert section.n_obs == len(files.values) - 1


def test_a_spot_without_any_count_is_kept(make_st):
    files = make_st()
    values = files.values.copy()
    values.iloc[0] = 0
    values.to_csv(files.counts, sep="\t")
    assert read_st(files.counts, files.spots, files.slide).n_obs == len(values)


def test_no_common_id_is_an_error(make_st):
    files = make_st()
    files.values.rename(index=lambda spot: f"spot{spot}").to_csv(files.counts, sep="\t")
    with pytest.raises(SlideMismatchError, match=r"no id in common \(counts have \d+ such as 'spot"):
        read_st(files.counts, files.spots, files.slide)


def test_nothing_selected_is_an_error(make_st):
    files = make_st()
    files.table.assign(selected=0).to_csv(files.spots, sep="\t", index=False)
    with pytest.raises(ReadError, match="has 0 spots"):
        read_st(files.counts, files.spots, files.slide)


@pytest.mark.parametrize(("value", "text"), [("", "NaN"), ("-1", "negative"), ("0.5", "not whole numbers")])
def test_values_that_are_no_counts_name_the_gene(make_st, value, text):
    files = make_st()
    values = files.values.astype(object)
    values.iloc[3, 2] = value
    values.to_csv(files.counts, sep="\t")
    with pytest.raises(CountsError, match=f"1 values are {text}.*first in gene C"):
        read_st(files.counts, files.spots, files.slide)


@pytest.mark.parametrize(
    ("text", "fault"),
    [("", "No columns"), ("x\ty\n1\t2\n", "pixel_x"), ("x\ty\tpixel_x\tpixel_y\na\tb\tc\td\n", "'a'")],
)
def test_a_damaged_spot_table_is_named(make_st, text, fault):
    files = make_st()
    files.spots.write_text(text)
    with pytest.raises(ReadError, match=rf"T1_spots\.tsv is not a spot table \(.*{fault}"):
        read_st(files.counts, files.spots, files.slide)


def test_an_unknown_array_needs_a_scale(make_st):
    files = make_st()
    wide = files.table.assign(x=files.table["x"] * 2 + files.table["y"] % 3, selected=1)
    wide.to_csv(files.spots, sep="\t", index=False)
    ids = wide["x"].astype(str) + "x" + wide["y"].astype(str)
    pd.DataFrame(1, index=ids, columns=["A"]).iloc[400:420].to_csv(files.counts, sep="\t")
    with pytest.raises(ResolutionError, match=r"T1\.png is unknown.*give µm per pixel"):
        read_st(files.counts, files.spots, files.slide)


@pytest.fixture
def adata(make_outs):
    """The same section as scanpy would hold it, and its files."""
    outs = make_outs()
    table = outs.positions.set_index("barcode").loc[outs.barcodes]
    record = {
        "scalefactors": {"tissue_hires_scalef": 0.5, "tissue_lowres_scalef": 0.15},
        "images": {"hires": np.zeros((360, 400, 3))},
        "metadata": {"source_image_path": str(outs.slide)},
    }
    return AnnData(
        sp.csr_matrix(outs.counts),
        obs=table[["in_tissue", "array_row", "array_col"]].assign(note="kept"),
        var=pd.DataFrame({"gene_ids": list("abcdefg")}, index=[f"G{i}" for i in range(7)]),
        obsm={"spatial": table[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy()},
        uns={"spatial": {"L1": record}},
    )


def test_a_scanpy_section_reads_like_its_folder(adata):
    section = section_from_anndata(adata)
    known = section.uns["histoflow"]
    assert known["section"] == "L1"
    assert known["kind"] == "h5ad"
    assert known["mpp_x"] == pytest.approx(4)
    assert known["mpp_source"] == "pitch"
    np.testing.assert_allclose(section.obsm["spatial"], adata.obsm["spatial"])
    np.testing.assert_allclose(section.obsm["spatial_um"], adata.obsm["spatial"] * 4)
    assert (section.obs["note"] == "kept").all()
    assert section.var["gene_ids"].tolist() == list("abcdefg")


def test_the_input_is_not_changed(adata):
    before = adata.copy()
    section = section_from_anndata(adata, patient="P")
    section.X.data[:] = 0
    section.obsm["spatial"][:] = 0
    np.testing.assert_array_equal(adata.X.toarray(), before.X.toarray())
    np.testing.assert_array_equal(adata.obsm["spatial"], before.obsm["spatial"])
    assert list(adata.obs) == list(before.obs)
    assert set(adata.uns) == {"spatial"}


def test_without_array_columns_the_spot_distance_gives_the_scale(adata):
    del adata.obs["array_row"]
    assert section_from_anndata(adata).uns["histoflow"]["mpp_x"] == pytest.approx(4, rel=1e-3)


def test_without_array_and_library_the_scale_must_be_given(adata, tmp_path):
    slide = adata.uns.pop("spatial")["L1"]["metadata"]["source_image_path"]
    del adata.obs["array_row"]
    with pytest.raises(ResolutionError, match="is unknown"):
        section_from_anndata(adata, slide=slide)
    known = section_from_anndata(adata, slide=slide, mpp=4.0).uns["histoflow"]
    assert known["mpp_source"] == "given"
    assert known["pitch_um"] == pytest.approx(100, rel=1e-3)


def test_spots_not_under_tissue_are_left_out(adata):
    adata.obs["in_tissue"] = (np.arange(adata.n_obs) >= 5).astype(int)
    section = section_from_anndata(adata)
    assert section.n_obs == adata.n_obs - 5
    assert section.uns["histoflow"]["dropped"]["not_selected"] == 5


def test_several_libraries_need_a_name(adata):
    adata.uns["spatial"]["L2"] = {}
    with pytest.raises(OptionError, match="library_id must be one of 'L1', 'L2'; got None"):
        section_from_anndata(adata)
    with pytest.raises(OptionError, match="got 'L3'"):
        section_from_anndata(adata, library_id="L3")
    with pytest.raises(OptionError, match=r'no obs\["library_id"\]'):
        section_from_anndata(adata, library_id="L1")
    adata.obs["library_id"] = np.where(np.arange(adata.n_obs) < 40, "L2", "L1")
    section = section_from_anndata(adata, library_id="L1")
    assert section.n_obs == adata.n_obs - 40
    assert section.uns["histoflow"]["dropped"]["not_selected"] == 0


@pytest.fixture
def two_libraries(adata):
    """Two sections put together as scanpy does: shared barcodes, facts of the first, the second in twice the pixels."""
    second = adata.copy()
    second.obsm["spatial"] = second.obsm["spatial"] * 2
    image = Image.open(adata.uns["spatial"]["L1"]["metadata"]["source_image_path"])
    other = image.filename.replace("S1.png", "S2.png")
    image.resize((1600, 1440)).save(other)
    record = second.uns["spatial"].pop("L1")
    record["scalefactors"] = {"tissue_hires_scalef": 0.25, "tissue_lowres_scalef": 0.075}
    record["metadata"] = {"source_image_path": other}
    second.uns["spatial"]["L2"] = record
    first = adata[:50].copy()
    first.uns["histoflow"] = {"section": "first", "patient": "P1", "slide": image.filename, "slide_size_px": [800, 720]}
    merged = anndata.concat([first, second], label="library_id", keys=["L1", "L2"], uns_merge="first")
    merged.var = adata.var
    assert set(merged.uns["spatial"]) == {"L1", "L2"}
    return merged


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
@pytest.mark.parametrize("column", ["library_id", "region", "sample"])
def test_a_library_gets_its_own_spots_slide_and_factors(two_libraries, adata, column):
    two_libraries.obs = two_libraries.obs.rename(columns={"library_id": column})
    if column == "region":
        two_libraries.obs["sample"] = two_libraries.obs[column]  # two columns fit, one is named
        two_libraries.uns["spatialdata_attrs"] = {"region_key": "region"}
    section = section_from_anndata(two_libraries, library_id="L2")
    known = section.uns["histoflow"]
    assert section.obs_names.tolist() == adata.obs_names.tolist()
    np.testing.assert_array_equal(section.X.toarray(), adata.X.toarray())
    np.testing.assert_allclose(section.obsm["spatial"], adata.obsm["spatial"] * 2)
    assert (known["section"], known["slide_size_px"]) == ("L2", [1600, 1440])
    assert known["slide"].endswith("S2.png")
    assert known["mpp_x"] == pytest.approx(2)
    assert "patient" not in known
    section = section_from_anndata(two_libraries, library_id="L1")
    assert (section.n_obs, section.uns["histoflow"]["mpp_x"]) == (50, pytest.approx(4))


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_the_factors_of_the_library_place_a_reduced_slide(two_libraries, adata, tmp_path):
    Image.open(two_libraries.uns["spatial"]["L1"]["metadata"]["source_image_path"]).resize((400, 360)).save(
        tmp_path / "hires.png"
    )
    section = section_from_anndata(
        two_libraries, library_id="L2", slide=tmp_path / "hires.png", spots_frame="hires", section="X"
    )
    np.testing.assert_allclose(section.obsm["spatial"], adata.obsm["spatial"] / 2)
    assert section.uns["histoflow"]["mpp_x"] == pytest.approx(8)


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_spots_of_no_known_library_are_named(two_libraries):
    names = {"L1": "one", "L2": "two"}
    two_libraries.obs["library_id"] = two_libraries.obs["library_id"].astype(str).map(names)
    text = r"""no spot is of library 'L1'; obs\["library_id"\] holds 'one', 'two': give the spots of one section"""
    with pytest.raises(OptionError, match=text):
        section_from_anndata(two_libraries, library_id="L1")


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_of_two_columns_that_could_tell_the_libraries_none_is_guessed(two_libraries):
    two_libraries.obs = two_libraries.obs.rename(columns={"library_id": "batch"})
    two_libraries.obs["sample"] = two_libraries.obs["batch"].to_numpy()[::-1]
    with pytest.raises(
        OptionError, match=r'several libraries and no obs\["library_id"\] tells them apart; write there'
    ):
        section_from_anndata(two_libraries, library_id="L1")


def test_one_library_of_an_anndata_with_spots_of_others_gets_its_own(adata):
    adata.obs["library_id"] = np.where(np.arange(adata.n_obs) < 40, "gone", "L1")
    assert section_from_anndata(adata).n_obs == adata.n_obs - 40
    adata.obs["library_id"] = "tiles"
    assert section_from_anndata(adata).n_obs == adata.n_obs


def test_an_anndata_without_x_names_the_layers(adata):
    adata.layers["counts"] = adata.X.copy()
    adata.X = None
    with pytest.raises(
        CountsError, match=r'section L1 holds no raw counts: it has no X; counts are in layers\["counts"\]'
    ):
        section_from_anndata(adata)
    del adata.layers["counts"]
    with pytest.raises(CountsError, match="it has no X; give the raw counts as X"):
        section_from_anndata(adata)


def test_layers_with_counts_are_named_when_x_holds_none(adata):
    adata.layers["raw_counts"] = adata.X.copy()
    adata.raw = adata.copy()
    adata.X = np.log1p(adata.X.toarray())
    with pytest.raises(CountsError, match=r'section L1 .* counts are in layers\["raw_counts"\], raw\.X: make them X'):
        section_from_anndata(adata)


def test_x_and_layers_without_counts_ask_for_them(adata):
    adata.layers["scaled"] = adata.X.toarray() - 0.5
    adata.X = adata.X.toarray() * -1.0
    with pytest.raises(CountsError, match=r"values are negative, first in gene G0; give the raw counts$"):
        section_from_anndata(adata)


def test_a_slide_that_is_recorded_nowhere_is_asked_for(adata):
    del adata.uns["spatial"]["L1"]["metadata"]
    with pytest.raises(MissingSlotError, match=r'records no slide in uns\["histoflow"\].*give it with slide='):
        section_from_anndata(adata)


def test_the_path_of_the_earlier_wrapper_is_used(adata, make_outs):
    adata.uns["histo"] = {"wsi_path": adata.uns["spatial"]["L1"].pop("metadata")["source_image_path"]}
    assert section_from_anndata(adata).uns["histoflow"]["slide"] == adata.uns["histo"]["wsi_path"]


def test_a_recorded_slide_that_is_gone_is_named(adata):
    adata.uns["spatial"]["L1"]["metadata"]["source_image_path"] = "/nowhere/HE.tif"
    with pytest.raises(ReadError, match=r"/nowhere/HE\.tif recorded in .* does not exist; give it with slide="):
        section_from_anndata(adata)


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_missing_coordinates_and_repeated_ids_are_named(adata):
    ids = list(adata.obs_names)
    adata.obs_names = [ids[1], *ids[1:]]
    with pytest.raises(OptionError, match="repeated obs_names"):
        section_from_anndata(adata)
    adata.obs_names = ids
    del adata.obsm["spatial"]
    with pytest.raises(MissingSlotError, match=r'no obsm\["spatial"\]'):
        section_from_anndata(adata)


def test_a_section_that_was_saved_comes_back_the_same(make_outs, tmp_path):
    outs = make_outs()
    section = read_visium(outs.folder, slide=outs.slide, section="S", patient="P")
    section.obsm["scatter"] = np.ones((section.n_obs, 3), dtype=np.float32)
    section.uns["histoflow"]["embeddings"] = {"scatter": {"patch_um": 112}}
    section.write_h5ad(tmp_path / "s.h5ad")
    again = section_from_anndata(anndata.read_h5ad(tmp_path / "s.h5ad"))
    for key in ("section", "patient", "slide", "slide_id", "mpp_x", "mpp_y", "mpp_source", "pitch_um", "embeddings"):
        assert again.uns["histoflow"][key] == section.uns["histoflow"][key]
    for key in ("spatial", "spatial_um", "scatter"):
        np.testing.assert_array_equal(again.obsm[key], section.obsm[key])


def test_a_saved_section_on_another_slide_forgets_what_belonged_to_the_first(make_outs, tmp_path):
    outs = make_outs()
    section = read_visium(outs.folder, slide=outs.slide, mpp=4.1)
    section.uns["histoflow"]["embeddings"] = {"scatter": {}}
    other = np.asarray(Image.open(outs.slide)).copy()
    other[0, 0] = 0
    Image.fromarray(other).save(tmp_path / "other.png")
    known = section_from_anndata(section, slide=tmp_path / "other.png").uns["histoflow"]
    assert "embeddings" not in known
    assert known["mpp_source"] == "pitch"
    Image.fromarray(other).resize((400, 360)).save(tmp_path / "small.png")
    with pytest.raises(SlideMismatchError, match="400x360"):
        section_from_anndata(section, slide=tmp_path / "small.png")
