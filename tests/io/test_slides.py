"""Opened slides: their scale is known or asked for, plain images open like pyramids, sections find theirs again."""

import struct

import numpy as np
import pytest
import tifffile
from anndata import AnnData
from PIL import Image

from histoflow._errors import (
    MissingSlotError,
    OptionError,
    ReadError,
    ResolutionError,
    ScaleWarning,
    SlideMismatchError,
)
from histoflow.io import open_section_slide, open_wsi, slide_id
from histoflow.io.slides import open_unscaled, read_scale

IMAGE = np.random.default_rng(0).integers(0, 256, (300, 420, 3), dtype=np.uint8)


def write(path, *, mpp=None, unit="CENTIMETER", tile=(64, 64), **options):
    """A TIFF whose resolution tags say `mpp`, an (x, y) pair in µm."""
    resolution = {} if mpp is None else {"resolution": tuple(10_000 / m for m in mpp), "resolutionunit": unit}
    tifffile.imwrite(path, IMAGE, photometric="rgb", tile=tile, **{"metadata": None, **resolution, **options})
    return path


def scale_of(path):
    wsi = open_wsi(path)
    known = wsi.attrs["histoflow"]
    return known["mpp_x"], known["mpp_y"], known["mpp_source"]


@pytest.mark.parametrize("tile", [(64, 64), None])
def test_resolution_tags_in_centimetres_are_a_scale(tmp_path, tile):
    mpp_x, mpp_y, source = scale_of(write(tmp_path / "a.tif", mpp=(0.5, 0.51), tile=tile))
    assert (mpp_x, mpp_y) == pytest.approx((0.5, 0.51), rel=1e-5)  # tags hold ratios of whole numbers
    assert source == "metadata"


@pytest.mark.parametrize("tile", [(64, 64), None])
@pytest.mark.parametrize("unit", ["INCH", "CENTIMETER", "NONE"])
@pytest.mark.parametrize("dpi", [72, 96, 300])
def test_screen_and_print_resolutions_are_no_scale(tmp_path, dpi, unit, tile):
    path = write(tmp_path / "a.tif", resolution=(dpi, dpi), resolutionunit=unit, tile=tile)
    with pytest.raises(ResolutionError, match=r"scale of .*a\.tif is unknown"):
        open_wsi(path)


@pytest.mark.parametrize(("value", "unit"), [(0.5, "µm"), (500, "nm"), (0.0005, "mm")])
def test_ome_metadata_is_a_scale(tmp_path, value, unit):
    sizes = {f"PhysicalSize{axis}": value for axis in "XY"} | {f"PhysicalSize{axis}Unit": unit for axis in "XY"}
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, IMAGE, photometric="rgb", tile=(64, 64), metadata={"axes": "YXS", **sizes})
    assert scale_of(path) == (pytest.approx(0.5), pytest.approx(0.5), "metadata")


def test_tags_of_a_jpg_are_no_scale(tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "a.jpg", dpi=(25_400, 25_400))
    with pytest.raises(ResolutionError, match=r"a\.jpg is unknown"):
        open_wsi(tmp_path / "a.jpg")


def test_a_given_scale_and_the_facts_of_the_slide_are_recorded(tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    with pytest.warns(ScaleWarning, match="not square"):
        wsi = open_wsi(tmp_path / "a.png", mpp=(0.4, 0.9))
    assert wsi.attrs["histoflow"] == {
        "slide": str(tmp_path / "a.png"),
        "slide_id": slide_id(tmp_path / "a.png"),
        "slide_size_px": [420, 300],
        "mpp_x": 0.4,
        "mpp_y": 0.9,
        "mpp_source": "given",
    }
    assert wsi.properties.mpp == pytest.approx(0.6)


def test_given_far_from_metadata_wins_with_a_warning(tmp_path):
    path = write(tmp_path / "a.tif", mpp=(0.5, 0.5))
    with pytest.warns(ScaleWarning, match=r"0\.25 .* is used, although its metadata says 0\.5"):
        assert open_wsi(path, mpp=0.25).properties.mpp == pytest.approx(0.25)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_a_plain_image_opens_with_exact_pixels(tmp_path, name):
    if name == "a.png":
        Image.fromarray(IMAGE).save(tmp_path / name)
    else:
        write(tmp_path / name, tile=None)
    wsi = open_wsi(tmp_path / name, mpp=1.0)
    np.testing.assert_array_equal(wsi.reader.get_region(10, 20, 400, 270, level=0), IMAGE[20:290, 10:410])
    assert wsi.reader.file != str(tmp_path / name)


def test_a_store_beside_the_slide_is_not_reopened(tmp_path):
    path = write(tmp_path / "a.tif", mpp=(0.5, 0.5))
    (tmp_path / "a.zarr").mkdir()
    assert open_wsi(path).wsi_store is None


def test_a_store_that_is_named_is_used(tmp_path):
    path = write(tmp_path / "a.tif", mpp=(0.5, 0.5))
    assert open_wsi(path, store=tmp_path / "b.zarr").wsi_store == tmp_path / "b.zarr"


def test_what_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(ReadError, match=r"slide .*none\.svs does not exist"):
        open_wsi(tmp_path / "none.svs")
    (tmp_path / "bad.svs").write_bytes(b"no slide")
    with pytest.raises(ReadError, match=r"cannot open slide .*bad\.svs"):
        open_wsi(tmp_path / "bad.svs")
    (tmp_path / "bad.tif").write_bytes(b"no slide")
    with pytest.raises(ReadError, match=r"bad\.tif"):
        open_wsi(tmp_path / "bad.tif")
    with pytest.raises(OptionError, match=r"reader must be one of .*openslide.*got 'openslied'"):
        open_wsi(write(tmp_path / "a.tif"), reader="openslied")


def test_a_named_reader_gets_the_file_itself(tmp_path):
    with pytest.raises(ReadError, match="cannot open slide"):
        open_wsi(write(tmp_path / "a.tif", tile=None), mpp=1.0, reader="openslide")


def test_the_scale_may_be_left_open(tmp_path):
    wsi = open_unscaled(write(tmp_path / "a.tif"))
    assert read_scale(wsi) is None
    assert "mpp_x" not in wsi.attrs["histoflow"]


@pytest.fixture
def section(tmp_path):
    path = write(tmp_path / "a.tif")
    known = {"section": "S", "slide": str(path), "slide_id": slide_id(path), "mpp_x": 4.6, "mpp_y": 4.2}
    return AnnData(np.zeros((1, 1)), uns={"histoflow": known | {"mpp_source": "pitch"}})


def test_a_section_reopens_its_slide_at_its_own_scale(section):
    known = open_section_slide(section).attrs["histoflow"]
    assert (known["mpp_x"], known["mpp_y"], known["mpp_source"]) == (4.6, 4.2, "pitch")


def test_a_changed_slide_is_refused(section, tmp_path):
    Image.fromarray(IMAGE[::-1]).save(tmp_path / "a.tif")
    with pytest.raises(SlideMismatchError, match="not the file that section S was read with"):
        open_section_slide(section)


def test_a_slide_that_is_gone_is_named(section, tmp_path):
    (tmp_path / "a.tif").unlink()
    with pytest.raises(ReadError, match=r"slide of section S, .*a\.tif, is gone"):
        open_section_slide(section)


def test_a_section_without_a_slide_is_told_how_to_get_one(section):
    del section.uns["histoflow"]["slide_id"]
    with pytest.raises(MissingSlotError, match=r"section S has no slide_id .*read it with its slide"):
        open_section_slide(section)


@pytest.mark.parametrize("size", ["abc", "", "-1", "nan", "1e400"])
def test_a_scale_in_the_metadata_that_makes_no_sense_is_none(size, tmp_path):
    told = f'<OME xmlns="http://x"><Image><Pixels PhysicalSizeX="{size}"/></Image></OME>'
    path = write(tmp_path / "odd.ome.tif", description=told)
    with tifffile.TiffFile(path) as tiff:
        assert tiff.ome_metadata == told
    assert read_scale(open_unscaled(path)) is None


def test_resolution_tags_of_another_length_are_passed_over(tmp_path):
    path = write(tmp_path / "odd.tif", mpp=(0.5, 0.5))
    once, twice = (struct.pack("<HHI", 282, 5, n) for n in (1, 2))
    path.write_bytes(path.read_bytes().replace(once, twice))
    with tifffile.TiffFile(path) as tiff:
        assert len(tiff.pages[0].tags["XResolution"].value) == 4
    assert read_scale(open_unscaled(path)).mpp_x == pytest.approx(0.5)  # as the reader tells it
