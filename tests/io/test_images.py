"""Image files: content ids, decoding, and the one conversion to an exact tiled pyramid."""

import tracemalloc
from contextlib import suppress

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from histoflow._errors import MissingDependencyError, ReadError
from histoflow.io import images
from histoflow.io.images import (
    SparingFile,
    image_size,
    needs_pyramid,
    pyramid_of,
    read_image,
    slide_id,
    write_pyramid,
)

NOISE = np.random.default_rng(0).integers(0, 256, (130, 170, 3), dtype=np.uint8)


def test_content_id_follows_content_and_not_the_name(tmp_path):
    for name, content in {"a": b"one", "b": b"one", "c": b"two"}.items():
        (tmp_path / name).write_bytes(content)
    assert slide_id(tmp_path / "a") == slide_id(tmp_path / "b") != slide_id(tmp_path / "c")
    assert len(slide_id(tmp_path / "a")) == 64


def test_content_id_of_a_large_file_sees_ends_size_and_blocks(tmp_path):
    content = bytearray(8 << 20)
    ids = []
    for change in (None, 0, len(content) - 1):
        changed = bytearray(content)
        if change is not None:
            changed[change] = 1
        (tmp_path / "large").write_bytes(changed)
        ids.append(slide_id(tmp_path / "large"))
    (tmp_path / "large").write_bytes(content + b"\0")
    ids.append(slide_id(tmp_path / "large"))
    assert len(set(ids)) == 4


@given(image=arrays(np.uint8, st.tuples(st.integers(2, 9), st.integers(2, 9), st.just(3))))
def test_halving_is_the_rounded_area_mean(image):
    height, width = (side // 2 for side in image.shape[:2])
    blocks = image[: height * 2, : width * 2].reshape(height, 2, width, 2, 3).astype(float)
    expected = np.floor(blocks.mean(axis=(1, 3)) + 0.5)
    np.testing.assert_array_equal(images._halved(image), expected)


def test_pyramid_is_tiled_lossless_and_halves_below_1024(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (900, 2100, 3), dtype=np.uint8)
    write_pyramid(tmp_path / "p.tif", image)
    with tifffile.TiffFile(tmp_path / "p.tif") as tiff:
        pages = tiff.pages
        assert [page.shape[:2] for page in pages] == [(900, 2100), (450, 1050), (225, 525)]
        assert all(page.is_tiled and page.tile[:2] == (256, 256) for page in pages)
        np.testing.assert_array_equal(pages[0].asarray(), image)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_lossless_formats_are_read_exactly(tmp_path, suffix):
    path = tmp_path / f"image{suffix}"
    if suffix == ".tif":
        tifffile.imwrite(path, NOISE, photometric="rgb")
    else:
        Image.fromarray(NOISE).save(path)
    np.testing.assert_array_equal(read_image(path), NOISE)


def test_jpeg_is_read_as_pillow_reads_it(tmp_path):
    Image.fromarray(NOISE).save(tmp_path / "a.jpg")
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg"), np.asarray(Image.open(tmp_path / "a.jpg")))


def test_grey_palette_and_transparency_become_rgb(tmp_path):
    image = Image.fromarray(NOISE)
    image.convert("L").save(tmp_path / "grey.png")
    image.quantize(8).save(tmp_path / "palette.png")
    clear = image.convert("RGBA")
    clear.putalpha(0)
    clear.save(tmp_path / "clear.png")
    for name in ("grey", "palette", "clear"):
        assert read_image(tmp_path / f"{name}.png").shape == NOISE.shape
    assert (read_image(tmp_path / "clear.png") == 255).all()


def test_planar_and_grey_tiffs_become_rgb(tmp_path):
    tifffile.imwrite(tmp_path / "planar.tif", NOISE.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    tifffile.imwrite(tmp_path / "grey.tif", NOISE[..., 0], photometric="minisblack")
    np.testing.assert_array_equal(read_image(tmp_path / "planar.tif"), NOISE)
    np.testing.assert_array_equal(read_image(tmp_path / "grey.tif"), np.repeat(NOISE[..., :1], 3, axis=2))


def test_sixteen_bits_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "deep.tif", NOISE.astype(np.uint16), photometric="rgb")
    with pytest.raises(ReadError, match=r"holds uint16 .* export it as 8-bit RGB"):
        read_image(tmp_path / "deep.tif")
    Image.fromarray(NOISE[..., 0].astype(np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ReadError, match="mode I;16; export it with 8 bits"):
        read_image(tmp_path / "deep.png")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tif"])
def test_a_truncated_image_is_named(tmp_path, suffix):
    path = tmp_path / f"image{suffix}"
    if suffix == ".tif":
        tifffile.imwrite(path, NOISE, photometric="rgb", compression="zlib")
    else:
        Image.fromarray(NOISE).save(path)
    whole = path.read_bytes()
    for part in (whole[: len(whole) // 2], b"", b"hello"):
        path.write_bytes(part)
        with pytest.raises(ReadError, match=f"image{suffix}.*truncated"):
            read_image(path)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_length_beyond_the_end_of_the_file_makes_no_room_for_it(tmp_path, suffix):
    path = tmp_path / f"image{suffix}"
    if suffix == ".tif":
        tifffile.imwrite(path, NOISE, photometric="rgb", compression="zlib")
        with tifffile.TiffFile(path, mode="r+") as tiff:
            tiff.pages[0].tags["StripByteCounts"].overwrite([1 << 28])
    else:
        Image.fromarray(NOISE).save(path)
        content = path.read_bytes()
        length = content.index(b"IDAT")
        path.write_bytes(content[: length - 4] + (1 << 28).to_bytes(4) + content[length:])
    tracemalloc.start()
    with suppress(ReadError):
        read_image(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()


def test_a_read_gives_what_is_left(tmp_path):
    (tmp_path / "a").write_bytes(b"0123456789")
    with SparingFile(tmp_path / "a") as file:
        assert [file.read(4), file.read(1 << 60), file.read(1), file.seek(20), file.read()] == [
            b"0123",
            b"456789",
            b"",
            20,
            b"",
        ]
        file.seek(8)
        assert file.read() == b"89"


def test_size_comes_from_the_header(tmp_path):
    Image.fromarray(NOISE).save(tmp_path / "a.png")
    assert image_size(tmp_path / "a.png") == (170, 130)
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(ReadError, match="cannot decode"):
        image_size(tmp_path / "a.png")


def test_an_absurd_size_is_refused_before_decoding(tmp_path):
    Image.fromarray(NOISE).save(tmp_path / "bomb.png")
    content = bytearray((tmp_path / "bomb.png").read_bytes())
    content[16:24] = (1 << 30).to_bytes(4) + (1 << 30).to_bytes(4)
    (tmp_path / "bomb.png").write_bytes(content)
    with pytest.raises(ReadError, match=r"bomb\.png"):
        read_image(tmp_path / "bomb.png")


def test_only_what_no_reader_can_page_is_converted(tmp_path):
    tifffile.imwrite(tmp_path / "plain.tif", NOISE, photometric="rgb")
    tifffile.imwrite(tmp_path / "tiled.tif", NOISE, photometric="rgb", tile=(64, 64))
    wide = np.zeros((16, 5000, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "wide.tif", wide, photometric="rgb", tile=(16, 256))
    names = ("plain.tif", "tiled.tif", "wide.tif", "a.jpg", "a.svs")
    assert [needs_pyramid(tmp_path / name) for name in names] == [True, False, True, True, False]


def test_conversion_happens_once(tmp_path, monkeypatch):
    Image.fromarray(NOISE).save(tmp_path / "a.png")
    first = pyramid_of(tmp_path / "a.png", "id", tmp_path)
    monkeypatch.setattr(images, "read_image", lambda path: pytest.fail("converted again"))
    assert pyramid_of(tmp_path / "a.png", "id", tmp_path) == first == tmp_path / "slides" / "id.tif"


def test_a_conversion_that_is_interrupted_leaves_nothing(tmp_path, monkeypatch):
    Image.fromarray(NOISE).save(tmp_path / "a.png")

    def stop(image):
        yield image
        raise KeyboardInterrupt

    monkeypatch.setattr(images, "_levels", stop)
    with pytest.raises(KeyboardInterrupt):
        pyramid_of(tmp_path / "a.png", "id", tmp_path)
    assert not list((tmp_path / "slides").glob("*.tif"))
    monkeypatch.undo()
    with tifffile.TiffFile(pyramid_of(tmp_path / "a.png", "id", tmp_path)) as tiff:
        np.testing.assert_array_equal(tiff.pages[0].asarray(), NOISE)


def test_a_missing_library_names_the_extra():
    with pytest.raises(MissingDependencyError, match=r"no_such_library.*pip install 'histoflow\[slides\]'"):
        images.extra("no_such_library")
