"""Space Ranger folders: every layout gives the same section, and every damage is named."""

import shutil
import warnings

import anndata
import numpy as np
import pytest
import tifffile
from PIL import Image

from histoflow._errors import (
    CountsError,
    DroppedSpotsWarning,
    OptionError,
    ReadError,
    ResolutionError,
    ScaleWarning,
    SlideMismatchError,
)
from histoflow.io import open_section_slide, read_visium

pytestmark = pytest.mark.filterwarnings("ignore::histoflow._errors.GeneNamesWarning")
MPP = 4.0


def selected_xy(outs):
    """True centres of the spots under tissue, in the order of the matrix."""
    table = outs.positions.set_index("barcode").loc[outs.barcodes]
    return table[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy()


@pytest.mark.parametrize("matrix", ["h5", "mtx"])
@pytest.mark.parametrize("positions", ["headerless", "header", "parquet"])
def test_every_layout_gives_the_same_section(make_outs, positions, matrix):
    outs = make_outs(positions=positions, matrix=matrix)
    section = read_visium(outs.folder, slide=outs.slide, patient="P1")
    assert section.obs_names.tolist() == outs.barcodes
    assert section.var_names.tolist() == ["ACTB", "MT-CO1", "ACTB-2", "KRT8", "ACTB-1", "IGKC"]
    np.testing.assert_array_equal(section.X.toarray(), outs.counts[:, :6])
    np.testing.assert_allclose(section.obsm["spatial"], selected_xy(outs))
    np.testing.assert_allclose(section.obsm["spatial_um"], selected_xy(outs) * MPP, rtol=1e-9)
    assert set(section.obs) == {"array_row", "array_col", "patient"}
    assert (section.obs["patient"] == "P1").all()


def test_everything_known_is_recorded_and_can_be_written(make_outs, tmp_path):
    outs = make_outs()
    section = read_visium(outs.folder, slide=outs.slide)
    section.write_h5ad(tmp_path / "s.h5ad")
    known = anndata.read_h5ad(tmp_path / "s.h5ad").uns["histoflow"]
    assert known["section"] == "S1"
    assert known["kind"] == "visium"
    assert known["slide"] == str(outs.slide)
    assert list(known["slide_size_px"]) == [800, 720]
    assert (known["mpp_x"], known["mpp_y"]) == pytest.approx((MPP, MPP))
    assert known["mpp_source"] == "pitch"
    assert not known["anisotropic"]
    assert known["pitch_um"] == 100
    assert known["image_frame"] == "fullres"
    n_selected = len(outs.barcodes)
    expected = {"no_position": 0, "no_counts": 0, "not_selected": len(outs.positions) - n_selected, "outside_image": 0}
    assert known["dropped"] == expected
    assert not {"patient", "block", "study", "order"} & set(known)
    assert "patient" not in section.obs


def test_the_folder_above_outs_will_do(make_outs):
    outs = make_outs(name="Sample7")
    section = read_visium(outs.folder.parent, slide=outs.slide)
    assert section.uns["histoflow"]["section"] == "Sample7"


def test_without_a_slide_the_hires_image_is_used_and_told(make_outs):
    outs = make_outs()
    with pytest.warns(ScaleWarning, match="hires image of Space Ranger is used"):
        section = read_visium(outs.folder)
    known = section.uns["histoflow"]
    assert known["slide"] == str(outs.folder / "spatial" / "tissue_hires_image.png")
    assert known["image_frame"] == "hires"
    assert known["mpp_x"] == pytest.approx(2 * MPP)
    np.testing.assert_allclose(section.obsm["spatial"], selected_xy(outs) / 2)
    np.testing.assert_allclose(section.obsm["spatial_um"], selected_xy(outs) * MPP)


def test_a_frame_without_a_slide_makes_no_sense(make_outs):
    outs = make_outs()
    with pytest.raises(OptionError, match="'lowres' names the frame of a slide, but none was given"):
        read_visium(outs.folder, spots_frame="lowres")


def test_visium_hd_is_recognised(make_outs):
    outs = make_outs()
    (outs.folder / "spatial" / "scalefactors_json.json").write_text('{"bin_size_um": 8}')
    with pytest.raises(ReadError, match=r"is Visium HD output, .* to hf\.read_visium_hd"):
        read_visium(outs.folder, slide=outs.slide)


def test_without_slide_and_hires_image_the_slide_is_asked_for(make_outs):
    outs = make_outs(images=("lowres",))
    with pytest.raises(ReadError, match=r"tissue_hires_image\.png does not exist; give the aligned image with slide="):
        read_visium(outs.folder)


@pytest.mark.parametrize("frame", ["hires", None])
def test_a_slide_in_the_hires_frame_is_placed_there(make_outs, tmp_path, frame):
    outs = make_outs(images=("lowres",))
    Image.open(outs.slide).resize((400, 360)).save(tmp_path / "copy.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScaleWarning)
        section = read_visium(outs.folder, slide=tmp_path / "copy.png", spots_frame=frame)
    assert section.uns["histoflow"]["image_frame"] == "hires"
    assert section.uns["histoflow"]["mpp_x"] == pytest.approx(2 * MPP)


def test_a_slide_of_another_size_is_refused_or_named_by_its_frame(make_outs, tmp_path):
    outs = make_outs()
    Image.open(outs.slide).resize((600, 540)).save(tmp_path / "copy.png")
    with pytest.raises(SlideMismatchError, match=r"600x540 pixels.*fullres 800x720, hires 400x360"):
        read_visium(outs.folder, slide=tmp_path / "copy.png")
    section = read_visium(outs.folder, slide=tmp_path / "copy.png", spots_frame="800x720")
    np.testing.assert_allclose(section.obsm["spatial"], selected_xy(outs) * 0.75)
    with pytest.raises(OptionError, match="spots_frame must be one of fullres, hires, lowres or WxH"):
        read_visium(outs.folder, slide=outs.slide, spots_frame="full")


def tagged(path, outs, mpp):
    image = np.asarray(Image.open(outs.slide))
    tags = {"resolution": (10_000 / mpp, 10_000 / mpp), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, image, photometric="rgb", tile=(128, 128), metadata=None, **tags)
    return path


def test_metadata_that_agree_come_before_the_pitch(make_outs, tmp_path):
    outs = make_outs()
    known = read_visium(outs.folder, slide=tagged(tmp_path / "a.tif", outs, 4.1)).uns["histoflow"]
    assert known["mpp_source"] == "metadata"
    assert known["mpp_x"] == pytest.approx(4.1)


def test_pitch_and_metadata_twenty_percent_apart_are_an_error_unless_one_is_given(make_outs, tmp_path):
    outs = make_outs()
    slide = tagged(tmp_path / "a.tif", outs, 4.8)
    with pytest.raises(ResolutionError, match=r"metadata say 4\.8 .* pitch of its spot array says 4 "):
        read_visium(outs.folder, slide=slide)
    with pytest.warns(ScaleWarning, match=r"the given 4 .* is used"):
        assert read_visium(outs.folder, slide=slide, mpp=4.0).uns["histoflow"]["mpp_source"] == "given"


def test_the_section_reopens_its_slide(make_outs):
    outs = make_outs()
    section = read_visium(outs.folder, slide=outs.slide)
    wsi = open_section_slide(section)
    assert wsi.properties.mpp == pytest.approx(MPP)
    x, y = section.obsm["spatial"][0].astype(int)
    pixel = wsi.reader.get_region(x, y, 1, 1, level=0)[0, 0]
    np.testing.assert_array_equal(pixel, np.asarray(Image.open(outs.slide))[y, x])


def test_positions_without_counts_and_counts_without_position_are_counted(make_outs):
    outs = make_outs(positions="header")
    positions = outs.positions.copy()
    under = positions.index[positions["in_tissue"] == 1]
    positions.loc[under[:3], "barcode"] = ["NEW1", "NEW2", "NEW3"]
    positions.to_csv(outs.folder / "spatial" / "tissue_positions.csv", index=False)
    with pytest.warns(DroppedSpotsWarning, match="section S1: spots were left out: 3 without a position, 3 without co"):
        section = read_visium(outs.folder, slide=outs.slide)
    assert section.n_obs == len(outs.barcodes) - 3


def test_spots_outside_the_image_are_counted_and_left_out(make_outs):
    outs = make_outs()
    positions = outs.positions.copy()
    positions["pxl_col_in_fullres"] += 300
    positions.to_csv(outs.folder / "spatial" / "tissue_positions.csv", index=False)
    moved = Image.fromarray(np.roll(np.asarray(Image.open(outs.slide)), 300, axis=1))
    moved.save(outs.slide)
    with pytest.warns(DroppedSpotsWarning, match="outside the image"):
        section = read_visium(outs.folder, slide=outs.slide)
    assert section.obsm["spatial"].max() < 800
    assert section.uns["histoflow"]["dropped"]["outside_image"] == len(outs.barcodes) - section.n_obs > 0


def test_all_spots_outside_the_image_are_an_error(make_outs):
    outs = make_outs()
    positions = outs.positions.copy()
    positions["pxl_row_in_fullres"] += 5000
    positions.to_csv(outs.folder / "spatial" / "tissue_positions.csv", index=False)
    with pytest.raises(SlideMismatchError, match=r"all \d+ spots lie outside the slide of 800x720 pixels"):
        read_visium(outs.folder, slide=outs.slide)


@pytest.mark.parametrize(("shift", "text"), [(60, "shifted together"), (300, "spots lie on tissue")])
def test_the_wrong_slide_for_the_counts_is_refused(make_outs, tmp_path, shift, text):
    outs = make_outs()
    Image.fromarray(np.roll(np.asarray(Image.open(outs.slide)), -shift, axis=1)).save(tmp_path / "other.png")
    with pytest.raises(SlideMismatchError, match=rf"section S1 and its slide do not belong together: .*{text}"):
        read_visium(outs.folder, slide=tmp_path / "other.png")


def test_no_common_barcode_shows_both_sides(make_outs):
    outs = make_outs()
    positions = outs.positions.assign(barcode=[f"OTHER{i}" for i in range(len(outs.positions))])
    positions.to_csv(outs.folder / "spatial" / "tissue_positions.csv", index=False)
    with pytest.raises(SlideMismatchError, match=r"no id in common \(counts have .*SPOT.*, spots have .*OTHER0"):
        read_visium(outs.folder, slide=outs.slide)


@pytest.mark.parametrize("n_spots", [1, 2, 9])
def test_few_spots_work_with_the_array_or_a_given_scale(make_outs, n_spots):
    table = make_outs(name="whole").positions
    under = table.index[table["in_tissue"] == 1][:n_spots]
    outs = make_outs(table=table.assign(in_tissue=table.index.isin(under).astype(int)))
    assert read_visium(outs.folder, slide=outs.slide).n_obs == n_spots
    alone = make_outs(name="alone", table=table.loc[under[:1]])
    with pytest.raises(ResolutionError, match="is unknown"):
        read_visium(alone.folder, slide=alone.slide)
    section = read_visium(alone.folder, slide=alone.slide, mpp=MPP)
    assert section.n_obs == 1
    assert section.uns["histoflow"]["pitch_um"] == 100


def break_columns(spatial):
    (spatial / "tissue_positions.csv").write_text("barcode,in_tissue\nA,1\n")


def empty(spatial):
    (spatial / "tissue_positions.csv").write_text("")


def only_header(spatial):
    text = (spatial / "tissue_positions.csv").read_text()
    (spatial / "tissue_positions.csv").write_text(text.splitlines()[0] + "\n")


def double(spatial):
    text = (spatial / "tissue_positions.csv").read_text()
    (spatial / "tissue_positions.csv").write_text(text + text.splitlines()[5] + "\n")


def unplaced(spatial):
    text = (spatial / "tissue_positions.csv").read_text().rstrip().rsplit(",", 1)[0]
    (spatial / "tissue_positions.csv").write_text(text + ",\n")


def remove(name):
    def act(spatial):
        path = spatial / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return act


def bad_json(spatial):
    (spatial / "scalefactors_json.json").write_text('{"tissue_hires_scalef": 0.')


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (break_columns, r"tissue_positions\.csv is not a table of spot positions"),
        (empty, r"tissue_positions\.csv has no rows"),
        (only_header, r"tissue_positions\.csv has no rows"),
        (double, r"tissue_positions\.csv has spot SPOT0004-1 more than once"),
        (unplaced, "1 spots without pixels"),
        (remove("tissue_positions.csv"), r"has none of tissue_positions\.parquet"),
        (remove("../filtered_feature_bc_matrix.h5"), r"neither filtered_feature_bc_matrix\.h5 nor"),
        (remove("."), "it has no folder spatial/; give the folder outs"),
        (bad_json, r"scalefactors_json\.json is not valid JSON"),
    ],
)
def test_a_damaged_folder_is_named(make_outs, damage, text):
    outs = make_outs()
    damage(outs.folder / "spatial")
    with pytest.raises(ReadError, match=text):
        read_visium(outs.folder, slide=outs.slide)


def test_two_matrices_in_one_folder_are_refused(make_outs):
    outs = make_outs()
    matrix = outs.folder / "filtered_feature_bc_matrix.h5"
    shutil.copy(matrix, outs.folder / "V2_filtered_feature_bc_matrix.h5")
    with pytest.raises(ReadError, match="several count matrices"):
        read_visium(outs.folder, slide=outs.slide)
    matrix.unlink()
    assert read_visium(outs.folder, slide=outs.slide).n_obs == len(outs.barcodes)


def test_a_matrix_of_other_values_is_refused(make_outs):
    import h5py

    outs = make_outs()
    with h5py.File(outs.folder / "filtered_feature_bc_matrix.h5", "a") as file:
        values = np.log1p(file["matrix/data"][:])
        del file["matrix/data"]
        file["matrix/data"] = values
    with pytest.raises(CountsError, match=r"section S1 holds no raw counts: .* not whole numbers"):
        read_visium(outs.folder, slide=outs.slide)
