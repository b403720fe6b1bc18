"""SpatialData in and out: the layout of spatialdata-io, a round trip through zarr, and what is refused."""

import sys

import numpy as np
import pandas as pd
import pytest
import shapely
import spatialdata
from anndata import AnnData
from PIL import Image
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale, get_transformation, set_transformation

from histoflow._errors import (
    CountsError,
    DroppedSpotsWarning,
    MissingDependencyError,
    MissingSlotError,
    OptionError,
    ReadError,
    ResolutionError,
    ScaleWarning,
    SlideMismatchError,
)
from histoflow.io import open_section_slide, read_st, read_visium
from histoflow.io.spatialdata import from_spatialdata, to_spatialdata

pytestmark = [
    pytest.mark.filterwarnings("ignore:zarr v3 autosharding"),  # of anndata, whenever it writes zarr
    pytest.mark.filterwarnings("ignore::histoflow._errors.GeneNamesWarning"),
]
FACTORS = {"hires": 0.5, "lowres": 0.15}


def image(path, systems, **options):
    pixels = np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1)
    return Image2DModel.parse(pixels, dims=("c", "y", "x"), transformations=systems, **options)


def visium(outs, name="S1", *, images=("full", "hires", "lowres"), old=False):
    """The objects that spatialdata-io makes of an outs folder; `old` is its first layout, one for all sections."""
    systems = {"full": "global" if old else name}
    systems |= {frame: f"downscaled_{frame}" if old else f"{name}_downscaled_{frame}" for frame in FACTORS}
    scales = {frame: Scale([factor, factor], axes=("y", "x")) for frame, factor in FACTORS.items()}
    table = outs.positions.set_index("barcode").loc[outs.barcodes]
    xy = table[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy()
    circles = ShapesModel.parse(
        xy,
        geometry=0,
        radius=16.25 / 2,
        index=pd.Index(range(len(xy)), name="spot_id"),
        transformations={systems["full"]: Identity(), **{systems[frame]: scales[frame] for frame in FACTORS}},
    )
    obs = table[["in_tissue", "array_row", "array_col"]].copy()
    obs["spot_id"], obs["region"] = np.arange(len(xy)), pd.Categorical([name] * len(xy))
    counts = AnnData(
        X=outs.counts.astype(np.float32)[:, :6],
        obs=obs,
        var=pd.DataFrame({"gene_ids": [f"ENSG{i}" for i in range(6)]}, index=[f"G{i}" for i in range(6)]),
        obsm={"spatial": xy},
        uns={"spatial": {name: {"metadata": {"chemistry_description": "invented"}}}},
    )
    pictures = {}
    if "full" in images:
        pictures[f"{name}_full_image"] = image(
            outs.slide, {systems["full"]: Identity()}, scale_factors=[2, 2], c_coords=["r", "g", "b"]
        )
    for frame in FACTORS:
        if frame in images:
            path = outs.folder / "spatial" / f"tissue_{frame}_image.png"
            ways = {systems[frame]: Identity()} | ({} if old else {systems["full"]: scales[frame].inverse()})
            pictures[f"{name}_{frame}_image"] = image(path, ways)
    parsed = TableModel.parse(counts, region=name, region_key="region", instance_key="spot_id")
    return SpatialData(images=pictures, shapes={name: circles}, tables={"table": parsed})


@pytest.fixture
def outs(make_outs):
    return make_outs()


@pytest.fixture
def sdata(outs):
    return visium(outs)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HISTOFLOW_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "slides"


def places_of(outs):
    table = outs.positions.set_index("barcode").loc[outs.barcodes]
    return table[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy()


@pytest.mark.parametrize("old", [False, True])
def test_a_visium_spatialdata_reads_like_its_folder(outs, old):
    section = from_spatialdata(visium(outs, old=old))
    known = section.uns["histoflow"]
    assert (known["section"], known["kind"], known["mpp_source"], known["image_frame"]) == (
        "S1",
        "visium",
        "pitch",
        "fullres",
    )
    assert known["mpp_x"] == pytest.approx(4)
    assert known["mpp_y"] == pytest.approx(4)
    assert known["pitch_um"] == 100
    assert set(known["dropped"].values()) == {0}
    assert list(section.obs_names) == outs.barcodes
    assert list(section.obs) == ["in_tissue", "array_row", "array_col"]
    assert list(section.var) == ["gene_ids"]
    np.testing.assert_array_equal(section.X.toarray(), outs.counts[:, :6])
    np.testing.assert_allclose(section.obsm["spatial"], places_of(outs))
    np.testing.assert_allclose(section.obsm["spatial_um"], places_of(outs) * 4)


def test_the_image_is_written_once_with_its_own_pixels(sdata, outs, cache):
    section = from_spatialdata(sdata)
    (slide,) = cache.glob("*.tif")
    assert section.uns["histoflow"]["slide"] == str(slide)
    written = slide.stat().st_mtime_ns
    assert from_spatialdata(sdata).uns["histoflow"] == section.uns["histoflow"]
    assert [path for path in cache.iterdir() if path.suffix != ".lock"] == [slide]
    assert slide.stat().st_mtime_ns == written
    wsi = open_section_slide(section)
    region = wsi.reader.get_region(300, 200, 90, 60, level=0)
    np.testing.assert_array_equal(region, np.asarray(Image.open(outs.slide))[200:260, 300:390])


def test_without_the_full_image_the_hires_image_is_the_slide(outs):
    with pytest.warns(ScaleWarning, match="region S1: its hires image is used, detail is lost"):
        section = from_spatialdata(visium(outs, images=("hires", "lowres")))
    known = section.uns["histoflow"]
    assert known["image_frame"] == "hires"
    assert known["slide_size_px"] == [400, 360]
    assert known["mpp_x"] == pytest.approx(8)
    np.testing.assert_allclose(section.obsm["spatial"], places_of(outs) / 2)


@pytest.mark.parametrize("images", [("full",), ("hires",), ("full", "hires", "lowres"), ()])
def test_a_slide_that_is_given_is_taken(outs, images):
    section = from_spatialdata(visium(outs, images=images), slide=outs.slide)
    direct = read_visium(outs.folder, slide=outs.slide)
    assert section.uns["histoflow"]["slide"] == str(outs.slide)
    for key in ("slide_id", "pitch_um", "image_frame", "kind", "mpp_source"):
        assert section.uns["histoflow"][key] == direct.uns["histoflow"][key]
    np.testing.assert_allclose(section.obsm["spatial_um"], direct[section.obs_names].obsm["spatial_um"], rtol=1e-6)


@pytest.mark.parametrize("images", [("full", "hires"), ("lowres",)])
@pytest.mark.parametrize("old", [False, True])
def test_a_given_slide_that_is_a_reduced_image_is_told_from_its_size(outs, images, old):
    sdata = visium(outs, images=images, old=old)
    with pytest.warns(ScaleWarning, match="has the size of the hires image"):
        section = from_spatialdata(sdata, slide=outs.folder / "spatial" / "tissue_hires_image.png")
    assert section.uns["histoflow"]["image_frame"] == "hires"
    np.testing.assert_allclose(section.obsm["spatial"], places_of(outs) / 2)


@pytest.mark.parametrize("images", [("full",), ("hires",)])
def test_a_given_slide_of_another_size_is_refused(outs, tmp_path, images):
    Image.open(outs.slide).resize((500, 300)).save(tmp_path / "other.png")
    with pytest.raises(SlideMismatchError, match="500x300 pixels, which is none of the images"):
        from_spatialdata(visium(outs, images=images), slide=tmp_path / "other.png")


def test_an_image_of_the_spatialdata_can_be_named(sdata, outs):
    section = from_spatialdata(sdata, slide="S1_lowres_image")
    assert section.uns["histoflow"]["slide_size_px"] == [120, 108]
    assert section.uns["histoflow"]["image_frame"] == "lowres"
    np.testing.assert_allclose(section.obsm["spatial"], places_of(outs) * 0.15)


def test_mpp_that_is_given_wins_over_the_pitch(sdata):
    with pytest.warns(ScaleWarning, match="although its pitch says"):
        known = from_spatialdata(sdata, mpp=5.0).uns["histoflow"]
    assert (known["mpp_x"], known["mpp_source"]) == (5.0, "given")


def test_places_are_those_of_the_shapes_whatever_the_order(sdata, outs):
    shapes, table = sdata.shapes["S1"], sdata.tables["table"]
    mixed = np.random.default_rng(3).permutation(len(shapes))
    del sdata.shapes["S1"]
    sdata.shapes["S1"] = shapes.iloc[mixed].copy()
    table.obsm["spatial"] = np.zeros_like(table.obsm["spatial"])
    section = from_spatialdata(sdata)
    np.testing.assert_allclose(section.obsm["spatial"], places_of(outs))


def test_a_turned_and_shifted_region_is_brought_to_its_image(outs):
    sdata = visium(outs, images=("full",))
    turn = np.array([[0.0, -2.0, 900.0], [2.0, 0.0, -70.0], [0.0, 0.0, 1.0]])
    back = np.linalg.inv(turn)
    there = places_of(outs) @ turn[:2, :2].T + turn[:2, 2]
    del sdata.shapes["S1"]
    way = Affine(back, input_axes=("x", "y"), output_axes=("x", "y"))
    sdata.shapes["S1"] = ShapesModel.parse(there, geometry=0, radius=5.0, transformations={"S1": way})
    np.testing.assert_allclose(from_spatialdata(sdata).obsm["spatial"], places_of(outs), atol=1e-6)


def test_polygons_are_places_too(sdata, outs):
    boxes = sdata.shapes["S1"].copy()
    x, y = places_of(outs).T
    boxes["geometry"] = shapely.box(x - 3, y - 3, x + 3, y + 3)
    del sdata.shapes["S1"]
    sdata.shapes["S1"] = ShapesModel.parse(boxes)
    np.testing.assert_allclose(from_spatialdata(sdata).obsm["spatial"], places_of(outs))


def test_coordinate_systems_must_be_shared_and_agree(sdata):
    full = sdata.images["S1_full_image"]
    set_transformation(full, Identity(), "S1_downscaled_hires")
    with pytest.raises(SlideMismatchError, match=r"S1_full_image in one place by .* and \d+ pixels from it by"):
        from_spatialdata(sdata)
    set_transformation(full, {"elsewhere": Identity()}, set_all=True)
    with pytest.raises(SlideMismatchError, match="S1_full_image have no coordinate system in common"):
        from_spatialdata(sdata)


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_several_regions_become_several_sections(make_outs):
    first, second = make_outs(name="A"), make_outs(name="B")
    sdata = spatialdata.concatenate([visium(first, "A"), visium(second, "B")], concatenate_tables=True)
    sections = from_spatialdata(sdata)
    assert [section.uns["histoflow"]["section"] for section in sections] == ["A", "B"]
    assert [section.n_obs for section in sections] == [len(first.barcodes), len(second.barcodes)]
    alone = from_spatialdata(sdata, library_id="B", slide=second.slide)
    assert alone.uns["histoflow"]["section"] == "B"
    np.testing.assert_array_equal(alone.X.toarray(), second.counts[:, :6])
    with pytest.raises(OptionError, match="slide belongs to one region, but there are A, B"):
        from_spatialdata(sdata, slide=second.slide)
    with pytest.raises(OptionError, match="library_id must be one of 'A', 'B', got 'C'"):
        from_spatialdata(sdata, library_id="C")


def test_spots_without_tissue_or_shape_are_left_out_and_counted(sdata):
    table = sdata.tables["table"]
    table.obs["in_tissue"] = (np.arange(table.n_obs) >= 5).astype(int)
    table.obs["spot_id"] = np.where(np.arange(table.n_obs) >= table.n_obs - 3, 100_000, 0) + np.arange(table.n_obs)
    with pytest.warns(DroppedSpotsWarning, match="3 without a position"):
        section = from_spatialdata(sdata)
    assert section.n_obs == table.n_obs - 8
    assert section.uns["histoflow"]["dropped"]["not_selected"] == 5
    assert section.uns["histoflow"]["dropped"]["no_position"] == 3


def test_the_input_is_not_changed(sdata):
    table = sdata.tables["table"]
    before = table.copy()
    section = from_spatialdata(sdata)
    section.X.data[:] = 0
    section.obs["in_tissue"] = 7
    to_spatialdata(section, sdata=sdata, name="new")
    np.testing.assert_array_equal(table.X, before.X)
    pd.testing.assert_frame_equal(table.obs, before.obs)
    assert set(table.uns) == set(before.uns)
    assert set(sdata.shapes) == {"S1"}
    assert set(sdata.tables) == {"table"}


def test_what_is_no_spatialdata_is_named(tmp_path):
    with pytest.raises(OptionError, match=r"must be a SpatialData, got str; read a folder with spatialdata\.read_zarr"):
        from_spatialdata("S1.zarr")
    with pytest.raises(MissingSlotError, match="no table of the SpatialData annotates anything"):
        from_spatialdata(SpatialData(tables={"table": AnnData(np.ones((2, 2), dtype=np.float32))}))


def test_one_of_several_tables_must_be_named(sdata):
    sdata.tables["more"] = sdata.tables["table"].copy()
    with pytest.raises(OptionError, match="table must be one of 'table', 'more', got None"):
        from_spatialdata(sdata)
    assert from_spatialdata(sdata, table="more").uns["histoflow"]["section"] == "S1"


def test_a_table_of_labels_has_no_places():
    labels = Labels2DModel.parse(np.ones((4, 4), dtype=np.int64), dims=("y", "x"))
    table = AnnData(
        np.ones((1, 2), dtype=np.float32), obs=pd.DataFrame({"region": ["cells"], "label": [1]}, index=["a"])
    )
    table.obs["region"] = table.obs["region"].astype("category")
    parsed = TableModel.parse(table, region="cells", region_key="region", instance_key="label")
    with pytest.raises(
        MissingSlotError, match=r"annotates cells, of which none is among the shapes \(there are none\)"
    ):
        from_spatialdata(SpatialData(labels={"cells": labels}, tables={"table": parsed}))


def test_ids_that_do_not_belong_together_are_refused(sdata):
    table, shapes = sdata.tables["table"], sdata.shapes["S1"]
    table.obs["spot_id"] += 100_000
    with pytest.raises(SlideMismatchError, match="table and shapes have no id in common"):
        from_spatialdata(sdata)
    shapes.index = np.zeros(len(shapes), dtype=int)
    with pytest.raises(SlideMismatchError, match="shapes S1 have repeated ids"):
        from_spatialdata(sdata)


def test_layers_with_counts_are_named_when_x_holds_none(sdata):
    table = sdata.tables["table"]
    table.layers["raw"] = table.X.copy()
    table.X = np.log1p(table.X)
    with pytest.raises(CountsError, match=r'section S1 .* counts are in layers\["raw"\]: make them X'):
        from_spatialdata(sdata)


@pytest.mark.parametrize(
    ("dtype", "channels", "said"),
    [(np.uint16, ["r", "g", "b"], "holds uint16"), (np.uint8, ["DAPI", "CD3", "CD20"], "channels dapi, cd3, cd20")],
)
def test_an_image_that_is_no_brightfield_picture_is_refused(sdata, dtype, channels, said):
    del sdata.images["S1_full_image"]
    pixels = np.ones((3, 720, 800), dtype=dtype)
    sdata.images["S1_full_image"] = Image2DModel.parse(
        pixels, dims=("c", "y", "x"), c_coords=channels, transformations={"S1": Identity()}
    )
    with pytest.raises(ReadError, match=f"image S1_full_image .*{said}"):
        from_spatialdata(sdata)


@pytest.mark.parametrize(("mode", "channels"), [("L", [0]), ("RGBA", ["r", "g", "b", "a"])])
def test_grey_and_transparent_pictures_become_rgb(sdata, outs, mode, channels):
    pixels = np.atleast_3d(np.asarray(Image.open(outs.slide).convert(mode)))
    del sdata.images["S1_full_image"]
    sdata.images["S1_full_image"] = Image2DModel.parse(
        pixels.transpose(2, 0, 1), dims=("c", "y", "x"), c_coords=channels, transformations={"S1": Identity()}
    )
    wsi = open_section_slide(from_spatialdata(sdata))
    expected = np.asarray(Image.open(outs.slide).convert(mode).convert("RGB"))
    np.testing.assert_array_equal(wsi.reader.get_region(200, 100, 50, 40, level=0), expected[100:140, 200:250])


def test_the_lowres_image_is_only_taken_when_asked_for(outs):
    with pytest.raises(MissingSlotError, match=r"fit for a slide \(S1_lowres_image\)"):
        from_spatialdata(visium(outs, images=("lowres",)))


def test_images_with_other_names_are_found_by_coordinate_system(outs):
    sdata = visium(outs, images=())
    with pytest.raises(
        MissingSlotError, match=r"no image of region S1 is fit for a slide \(none\); give one with slide="
    ):
        from_spatialdata(sdata)
    sdata.images["HE"] = image(outs.slide, {"S1": Identity()})
    assert from_spatialdata(sdata).uns["histoflow"]["slide_size_px"] == [800, 720]
    sdata.images["IF"] = image(outs.slide, {"S1": Identity()})
    with pytest.raises(OptionError, match="region S1 lies on the images HE, IF; name one of them"):
        from_spatialdata(sdata)
    np.testing.assert_allclose(from_spatialdata(sdata, slide="HE").obsm["spatial"], places_of(outs))


def st(tables, columns):
    """A legacy ST section as a SpatialData, its array positions in the columns named."""
    under = tables.table[tables.table["selected"] == 1]
    obs = pd.DataFrame(under[["x", "y"]].to_numpy(), index=tables.values.index, columns=columns)
    obs["spot"], obs["region"] = tables.values.index, pd.Categorical(["T1"] * len(obs))
    counts = AnnData(tables.values.to_numpy(np.float32), obs=obs, var=pd.DataFrame(index=tables.values.columns))
    circles = ShapesModel.parse(
        under[["pixel_x", "pixel_y"]].to_numpy(), geometry=0, radius=6.0, index=tables.values.index
    )
    parsed = TableModel.parse(counts, region="T1", region_key="region", instance_key="spot")
    return SpatialData(
        images={"HE": image(tables.slide, {"global": Identity()})}, shapes={"T1": circles}, tables={"table": parsed}
    )


@pytest.mark.parametrize("array", ["1k", "2k"])
def test_a_legacy_st_array_gives_the_scale(make_st, array):
    tables = make_st(array=array)
    section = from_spatialdata(st(tables, ["array_x", "array_y"]))
    direct = read_st(tables.counts, tables.spots, tables.slide)
    for key in ("mpp_x", "mpp_y"):
        assert section.uns["histoflow"][key] == pytest.approx(direct.uns["histoflow"][key], rel=1e-6)
    assert (section.uns["histoflow"]["kind"], section.uns["histoflow"]["pitch_um"]) == ("st", 200.0)
    np.testing.assert_allclose(section.obsm["spatial_um"], direct[section.obs_names].obsm["spatial_um"], rtol=1e-6)


def test_a_square_array_in_the_columns_of_visium_is_not_taken_for_visium(make_st):
    sdata = st(make_st(), ["array_col", "array_row"])
    with pytest.raises(ResolutionError, match="is unknown"):
        from_spatialdata(sdata)
    known = from_spatialdata(sdata, mpp=8.8).uns["histoflow"]
    assert (known["kind"], known["mpp_source"]) == ("h5ad", "given")
    assert known["pitch_um"] == pytest.approx(200, rel=1e-3)


def test_without_spatialdata_the_extra_is_named(monkeypatch, sdata):
    section = from_spatialdata(sdata)
    monkeypatch.setitem(sys.modules, "spatialdata", None)
    for call in (lambda: from_spatialdata(sdata), lambda: to_spatialdata(section)):
        with pytest.raises(MissingDependencyError, match=r"needs spatialdata.*pip install 'histoflow\[slides\]'"):
            call()


@pytest.fixture
def section(outs):
    section = read_visium(outs.folder, slide=outs.slide, section="S1", patient="P")
    section.obsm["scatter"] = np.random.default_rng(0).normal(size=(section.n_obs, 3)).astype(np.float32)
    section.uns["histoflow"]["embeddings"] = {
        "scatter": {"id": "ab", "patch_um": [112.0, 224.0], "weights_hash": None, "grid_centre": np.ones(3)}
    }
    return section


def stored(sdata, tmp_path):
    sdata.write(tmp_path / "stored.zarr")
    return spatialdata.read_zarr(tmp_path / "stored.zarr")


def assert_same_section(again, section):
    assert list(again.obs_names) == list(section.obs_names)
    assert list(again.var_names) == list(section.var_names)
    assert list(again.obs) == list(section.obs)
    np.testing.assert_array_equal(again.X.toarray(), section.X.toarray())
    assert set(again.obsm) == set(section.obsm)
    for key in section.obsm:
        np.testing.assert_array_equal(again.obsm[key], section.obsm[key])
    known, before = again.uns["histoflow"], section.uns["histoflow"]
    assert set(known) - {"spatialdata"} == set(before) - {"spatialdata"}
    for key in set(before) - {"embeddings", "spatialdata"}:
        assert known[key] == before[key], key


def test_a_section_comes_back_the_same_through_zarr(section, tmp_path):
    again = from_spatialdata(stored(to_spatialdata(section), tmp_path))
    assert_same_section(again, section)
    assert (again.obs["patient"] == "P").all()
    made, before = (s.uns["histoflow"]["embeddings"]["scatter"] for s in (again, section))
    assert made["weights_hash"] is None
    assert list(made["patch_um"]) == before["patch_um"]
    np.testing.assert_array_equal(made["grid_centre"], before["grid_centre"])


@pytest.mark.filterwarnings("ignore::histoflow._errors.ScaleWarning")
def test_a_section_of_a_spatialdata_comes_back_the_same_when_added_to_it(outs, tmp_path):
    sdata = visium(outs, images=("hires",))
    section = from_spatialdata(sdata)
    again = from_spatialdata(stored(to_spatialdata(section, sdata=sdata, name="mine"), tmp_path), table="mine_table")
    assert_same_section(again, section)


def test_a_legacy_st_section_comes_back_the_same(make_st, tmp_path):
    tables = make_st(array="2k")
    section = read_st(tables.counts, tables.spots, tables.slide, patient="P")
    sdata = stored(to_spatialdata(section), tmp_path)
    np.testing.assert_allclose(sdata.shapes["T1"]["radius"], 50 / section.uns["histoflow"]["mpp_x"], rtol=1e-3)
    assert_same_section(from_spatialdata(sdata), section)


def test_when_the_recorded_slide_is_gone_the_image_is_taken(sdata, cache, tmp_path):
    section = from_spatialdata(sdata)
    both = stored(to_spatialdata(section, sdata=sdata, name="mine"), tmp_path)
    (slide,) = cache.glob("*.tif")
    slide.unlink()
    again = from_spatialdata(both, table="mine_table")
    assert slide.exists()
    np.testing.assert_allclose(again.obsm["spatial"], section.obsm["spatial"])
    assert again.uns["histoflow"]["mpp_x"] == pytest.approx(section.uns["histoflow"]["mpp_x"])


def test_a_recorded_slide_that_is_gone_without_an_image_is_named(section, outs):
    sdata = to_spatialdata(section)
    outs.slide.unlink()
    with pytest.raises(ReadError, match=r"S1\.png recorded in .* does not exist; give it with slide="):
        from_spatialdata(sdata)


def test_a_section_becomes_circles_that_its_table_annotates(section):
    sdata = to_spatialdata(section)
    table, shapes = sdata.tables["S1_table"], sdata.shapes["S1"]
    TableModel.validate(table)
    ShapesModel.validate(shapes)
    assert table.uns["spatialdata_attrs"] == {"region": "S1", "region_key": "region", "instance_key": "instance_id"}
    assert list(shapes.index) == list(table.obs["instance_id"]) == list(section.obs_names)
    np.testing.assert_array_equal(np.column_stack([shapes.geometry.x, shapes.geometry.y]), section.obsm["spatial"])
    np.testing.assert_allclose(shapes["radius"], 27.5 / 4)
    np.testing.assert_array_equal(table.obsm["spatial"], section.obsm["spatial"])


def test_coordinate_systems_are_pixels_and_um(section):
    shapes = to_spatialdata(section).shapes["S1"]
    assert set(get_transformation(shapes, get_all=True)) == {"global", "um"}
    um = spatialdata.transform(shapes, to_coordinate_system="um")
    np.testing.assert_allclose(np.column_stack([um.geometry.x, um.geometry.y]), section.obsm["spatial_um"])
    np.testing.assert_allclose(um["radius"], 27.5)
    pixels = spatialdata.transform(shapes, to_coordinate_system="global")
    np.testing.assert_allclose(np.column_stack([pixels.geometry.x, pixels.geometry.y]), section.obsm["spatial"])


def test_an_existing_spatialdata_keeps_all_it_has(sdata, outs):
    section = from_spatialdata(sdata)
    prediction = AnnData(np.ones((section.n_obs, 2), dtype=np.float32), obs=section.obs, obsm=dict(section.obsm))
    prediction.uns["histoflow"] = {**section.uns["histoflow"], "method": "stflow"}
    both = to_spatialdata(prediction, sdata=sdata)
    assert set(both.images) == set(sdata.images)
    assert set(both.shapes) == {"S1", "S1_stflow"}
    assert set(both.tables) == {"table", "S1_stflow_table"}
    for name in sdata.images:
        assert both.images[name] is sdata.images[name]
    assert set(both.coordinate_systems) == {*sdata.coordinate_systems, "global", "um"}
    there = spatialdata.transform(both.shapes["S1_stflow"], to_coordinate_system="S1")
    np.testing.assert_allclose(np.column_stack([there.geometry.x, there.geometry.y]), places_of(outs))
    assert spatialdata.get_element_annotators(both, "S1_stflow") == {"S1_stflow_table"}


@pytest.mark.filterwarnings("ignore::histoflow._errors.ScaleWarning")
def test_a_section_on_a_reduced_image_still_lies_on_the_full_one(outs, sdata):
    section = from_spatialdata(sdata, slide=outs.folder / "spatial" / "tissue_hires_image.png")
    assert section.uns["histoflow"]["spatialdata"] == {"region": "S1", "pixels_of": "S1_hires_image"}
    shapes = to_spatialdata(section, sdata=sdata, name="new").shapes["new"]
    there = spatialdata.transform(shapes, to_coordinate_system="S1")
    np.testing.assert_allclose(np.column_stack([there.geometry.x, there.geometry.y]), places_of(outs))


@pytest.mark.filterwarnings("ignore::histoflow._errors.ScaleWarning")
def test_a_slide_whose_pixels_are_no_elements_gets_no_coordinate_system_of_theirs(outs):
    sdata = visium(outs, images=("lowres",))
    section = from_spatialdata(sdata, slide=outs.folder / "spatial" / "tissue_hires_image.png")
    assert section.uns["histoflow"]["spatialdata"] == {"region": "S1"}
    shapes = to_spatialdata(section, sdata=sdata, name="new").shapes["new"]
    assert set(get_transformation(shapes, get_all=True)) == {"global", "um"}


@pytest.mark.filterwarnings("ignore::histoflow._errors.ScaleWarning")
def test_pixels_of_a_reduced_image_are_not_called_global_where_full_ones_are(outs):
    sdata = visium(outs, images=("hires",), old=True)
    section = from_spatialdata(sdata)
    shapes = to_spatialdata(section, sdata=sdata, name="new").shapes["new"]
    assert set(get_transformation(shapes, get_all=True)) == {"downscaled_hires", "um"}
    whole = from_spatialdata(visium(outs, old=True))
    shapes = to_spatialdata(whole, sdata=visium(outs, old=True), name="new").shapes["new"]
    assert set(get_transformation(shapes, get_all=True)) == {"global", "um"}


def test_tiles_become_squares(tmp_path):
    xy = np.array([[100.0, 50.0], [324.0, 50.0]])
    tiles = AnnData(obs=pd.DataFrame({"tile_id": [4, 9]}, index=["tile_4", "tile_9"]), obsm={"spatial": xy})
    tiles.uns["histoflow"] = {"section": "HE", "kind": "tiles", "pitch_um": 112.0, "mpp_x": 0.5, "mpp_y": 0.25}
    sdata = stored(to_spatialdata(tiles), tmp_path)
    bounds = sdata.shapes["HE"].bounds.to_numpy()
    np.testing.assert_allclose(bounds, [[-12, -174, 212, 274], [212, -174, 436, 274]])
    assert list(sdata.shapes["HE"].index) == ["tile_4", "tile_9"]
    assert list(sdata.tables["HE_table"].obs["tile_id"]) == [4, 9]


def test_names_must_be_allowed_and_free(section):
    sdata = to_spatialdata(section)
    with pytest.raises(OptionError, match="has an element 'S1' already; give another name"):
        to_spatialdata(section, sdata=sdata)
    taken = SpatialData(tables={"S1_table": AnnData(np.ones((1, 1), dtype=np.float32))})
    with pytest.raises(OptionError, match="has an element 's1_table' already"):
        to_spatialdata(section, sdata=taken, name="s1")
    with pytest.raises(OptionError, match="got 'my/name'"):
        to_spatialdata(section, name="my/name")
    section.uns["histoflow"]["section"] = "block 1/A"
    assert set(to_spatialdata(section).shapes) == {"block_1_A"}


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_repeated_ids_are_refused(section):
    section.obs_names = ["same"] * 2 + list(section.obs_names[2:])
    with pytest.raises(OptionError, match="section S1 has repeated obs_names"):
        to_spatialdata(section)


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_a_region_with_repeated_ids_is_refused(sdata):
    table = sdata.tables["table"]
    table.obs_names = ["same"] * 2 + list(table.obs_names[2:])
    with pytest.raises(OptionError, match="section S1 has repeated obs_names"):
        from_spatialdata(sdata)


def test_names_that_spatialdata_refuses_come_back(section, tmp_path):
    section.obsm["hf-hub:lab/encoder"] = section.obsm.pop("scatter")
    section.uns["histoflow"]["embeddings"] = {"hf-hub:lab/encoder": {"id": "ab", "licence": None, "sizes": [1, 2]}}
    section.obs["region"], section.obs["Region"] = "cortex", "hippocampus"
    section.obs["n counts"] = np.arange(section.n_obs)
    sdata = stored(to_spatialdata(section), tmp_path)
    assert sdata.tables["S1_table"].uns["spatialdata_attrs"]["region_key"] == "histoflow_region"
    again = from_spatialdata(sdata)
    assert_same_section(again, section)
    assert (again.obs["region"] == "cortex").all()
    assert (again.obs["Region"] == "hippocampus").all()
    made = again.uns["histoflow"]["embeddings"]["hf-hub:lab/encoder"]
    assert made == {"id": "ab", "licence": None, "sizes": [1, 2]}


FACTS = {
    "none": None,
    "deep": {"deeper": None, "n": 1},
    "mixed": [1, "a", None],
    "dicts": [{"fold": 1}, {"fold": 2}],
    "ragged": [[1], [2, 3]],
    "words": ["KRT8", "IGKC"],
    "no_list": [],
    "no_dict": {},
    "slash": {"a/b": {"c": 1}},
    "dot": {".": 1},
    "flag": True,
    "large": 2**70,
    "text": "µm",
}


def test_facts_come_back_as_they_were(section, tmp_path):
    section.uns["histoflow"]["embeddings"] = {"scatter": {"id": "ab", **FACTS}}
    again = from_spatialdata(stored(to_spatialdata(section), tmp_path))
    assert again.uns["histoflow"]["embeddings"]["scatter"] == {"id": "ab", **FACTS}


def test_what_cannot_be_stored_is_named(section):
    section.uns["histoflow"]["embeddings"] = {"scatter": {"fact": {1, 2}}}
    with pytest.raises(
        OptionError, match=r'uns\["histoflow"\]\["embeddings"\]\["scatter"\]\["fact"\] cannot be stored'
    ):
        to_spatialdata(section)


def test_plain_facts_are_read_without_us(section, tmp_path):
    known = stored(to_spatialdata(section), tmp_path).tables["S1_table"].uns["histoflow"]
    assert known["mpp_x"] == section.uns["histoflow"]["mpp_x"]
    assert list(known["slide_size_px"]) == section.uns["histoflow"]["slide_size_px"]
    assert known["embeddings"]["scatter"]["weights_hash"] == {"_json": "null"}
