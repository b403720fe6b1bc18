"""The benchmark's folder: read as it is laid out, joined by barcode, placed in µm; every broken file named."""

import json
import shutil

import h5py
import numpy as np
import pandas as pd
import pytest
from tests import hest_folder as made
from tests.hest_folder import MPP, SIDE, change_h5ad

from histoflow import io
from histoflow._errors import (
    CountsError,
    DroppedSpotsWarning,
    OptionError,
    PanelMismatchError,
    ReadError,
    ShapeError,
    SlideMismatchError,
    SplitError,
)
from histoflow._keys import SPATIAL, SPATIAL_UM, UNS


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return made.make_hest_folder(tmp_path_factory.mktemp("hest"))


@pytest.fixture
def task(whole, tmp_path):
    """A copy of the small task that a test may spoil."""
    return shutil.copytree(whole / "TWO", tmp_path / "TWO")


def section_of(task, sample="E", genes=None):
    found = io.read_hest_bench(task)[0]
    with io.open_hest_patches(found.samples[sample].patches) as patches:
        return io.hest_section(found.samples[sample], patches, found.genes if genes is None else genes)


def edit_patches(path, **parts):
    with h5py.File(path, "r+") as file:
        for name, values in parts.items():
            del file[name]
            if values is not None:
                file[name] = values


def test_tasks_folds_samples_and_genes(whole):
    one, two = io.read_hest_bench(whole)
    assert (one.name, two.name) == ("ONE", "TWO")
    assert one.folds == tuple((tuple(train), tuple(test)) for train, test in made.FOLDS["ONE"])
    assert one.genes[:2] == ("G11", "G10")
    assert set(two.samples) == {"E", "F", "G"}
    assert two.samples["E"].patches == whole / "TWO" / "patches" / "E.h5"


def test_a_task_alone_and_tasks_by_name(whole):
    assert [t.name for t in io.read_hest_bench(whole / "TWO")] == ["TWO"]
    assert [t.name for t in io.read_hest_bench(whole, ["TWO", "ONE"])] == ["TWO", "ONE"]


def test_ten_folds_and_more_are_in_order(task):
    for number in range(2, 11):
        for side in ("train", "test"):
            shutil.copy(task / "splits" / f"{side}_0.csv", task / "splits" / f"{side}_{number}.csv")
    shutil.copy(task / "splits" / "train_1.csv", task / "splits" / "train_10.csv")
    shutil.copy(task / "splits" / "test_1.csv", task / "splits" / "test_10.csv")
    folds = io.read_hest_bench(task)[0].folds
    assert len(folds) == 11
    assert folds[10] == folds[1] != folds[9]


@pytest.mark.filterwarnings("ignore::histoflow._errors.DroppedSpotsWarning")
def test_patches_and_counts_are_joined_by_barcode(task):
    section = section_of(task)
    assert list(section.obs_names) == made.barcodes(30)
    assert list(section.var_names) == [f"G{i}" for i in range(12)][::-1]
    truth = made.counts_of(made.images_of(10, 32)[:30], 10)[:, :12][:, ::-1]
    np.testing.assert_array_equal(section.X.toarray(), truth)
    np.testing.assert_array_equal(section.obs["patch"], np.arange(30))
    assert section.uns[UNS]["dropped"] == {"no_counts": 2, "no_patch": 3, "repeated": 0}


def test_what_is_left_out_is_told(task):
    told = "sample E: left out: 2 patches without counts, 3 spots without a patch$"
    with pytest.warns(DroppedSpotsWarning, match=told):
        section_of(task)


def test_a_repeated_barcode_is_left_out_of_both_sides(task):
    names = [*made.barcodes(30), "000x001", "no_counts"]
    edit_patches(task / "patches" / "E.h5", barcode=np.array(names, dtype="S")[:, None])
    with pytest.warns(DroppedSpotsWarning, match="1 patches without counts, 3 spots without a patch, 3 repeated rows"):
        section = section_of(task)
    assert section.n_obs == 29
    assert "000x001" not in section.obs_names
    truth = made.counts_of(made.images_of(10, 32)[:30], 10)
    np.testing.assert_array_equal(section[:, "G3"].X.toarray()[1:, 0], truth[2:, 3])


@pytest.mark.filterwarnings("ignore::histoflow._errors.DroppedSpotsWarning")
def test_places_are_centres_in_pixels_and_um(task):
    section = section_of(task)
    centres = made.corners_of(30) + 112 / MPP / 2
    np.testing.assert_allclose(section.obsm[SPATIAL], centres)
    np.testing.assert_allclose(section.obsm[SPATIAL_UM], centres * MPP)
    assert section.uns[UNS]["pitch_um"] == pytest.approx(100)


def scale_by(task, **known):
    attributes = known.pop("attributes", {})
    made.write_patches(task / "patches" / "E.h5", made.images_of(10, 32), [*made.barcodes(30), "a", "b"], attributes)
    if "uns" in known:
        change_h5ad(task / "adata" / "E.h5ad", lambda table: table.uns.update(known["uns"]))
    if "metadata" in known:
        folder = {"task": task, "tasks": task.parent}[known["beside"]] / "metadata"
        folder.mkdir()
        (folder / "E.json").write_text(json.dumps(known["metadata"]))
    return section_of(task)


@pytest.mark.filterwarnings("ignore::histoflow._errors.DroppedSpotsWarning")
@pytest.mark.parametrize(
    ("known", "mpp"),
    [
        ({"attributes": {"patch_size_src": 448}}, 0.25),
        ({"attributes": {"patch_size_src": 448, "pixel_size": 0.2503}}, 0.2503),
        ({"attributes": {"patch_size_src": 448, "pixel_size": 0.5}}, 0.25),
        ({"attributes": {"pixel_size": 0.3}}, 0.3),
        ({"attributes": {"pixel_size": "None"}, "uns": {"pixel_size_um_estimated": 0.4}}, 0.4),
        ({"uns": {"spatial": {"ST": {"metadata": {"pixel_size_um_estimated": 0.35}}}}}, 0.35),
        ({"metadata": {"pixel_size_um_estimated": 0.45}, "beside": "task"}, 0.45),
        ({"metadata": {"pixel_size_um_estimated": 0.46}, "beside": "tasks"}, 0.46),
    ],
)
def test_the_scale_is_found_where_it_is_recorded(task, known, mpp):
    section = scale_by(task, **known)
    assert section.uns[UNS]["mpp_x"] == pytest.approx(mpp)
    np.testing.assert_allclose(section.obsm[SPATIAL], made.corners_of(30) + 112 / mpp / 2)


@pytest.mark.filterwarnings("ignore::histoflow._errors.DroppedSpotsWarning")
@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, '{"a":' * 480 + "1" + "}" * 480, "{", "\xff"])
def test_metadata_that_are_no_json_or_too_deep_are_refused(task, text):
    (task / "metadata").mkdir()
    (task / "metadata" / "E.json").write_text(text, encoding="latin-1")
    with pytest.raises(ReadError, match=r"E\.json is not valid JSON"):
        scale_by(task)


@pytest.mark.filterwarnings("ignore::histoflow._errors.DroppedSpotsWarning")
def test_the_scale_follows_from_visium_positions(task):
    def place(table):
        row, col = np.arange(table.n_obs) // 6, np.arange(table.n_obs) % 6 * 2 + np.arange(table.n_obs) // 6 % 2
        table.obs["array_row"], table.obs["array_col"] = row, col
        table.obsm["spatial"] = np.column_stack([col * 50, row * 50 * np.sqrt(3)]) / 0.37

    change_h5ad(task / "adata" / "E.h5ad", place)
    assert scale_by(task).uns[UNS]["mpp_x"] == pytest.approx(0.37, rel=1e-3)


@pytest.mark.filterwarnings("ignore::histoflow._errors.DroppedSpotsWarning")
def test_without_a_scale_places_in_um_are_not_invented(task):
    section = scale_by(task)
    assert np.isnan(section.obsm[SPATIAL_UM]).all()
    assert "mpp_x" not in section.uns[UNS]
    assert "pitch_um" not in section.uns[UNS]


def test_images_are_read_slice_by_slice(task):
    with io.open_hest_patches(task / "patches" / "E.h5") as patches:
        assert patches.images.shape == (32, SIDE, SIDE, 3)
        np.testing.assert_array_equal(patches.images[3:5], made.images_of(10, 32)[3:5])


def remove(name):
    return lambda task: (task / name).unlink()


def truncate(name):
    def cut(task):
        content = (task / name).read_bytes()
        (task / name).write_bytes(content[: len(content) // 2])

    return cut


def write(name, text):
    return lambda task: (task / name).write_text(text)


def rewrite_split(task, change):
    path = task / "splits" / "train_0.csv"
    change(pd.read_csv(path)).to_csv(path, index=False)


@pytest.mark.parametrize(
    ("spoil", "error", "text"),
    [
        (remove("patches/E.h5"), ReadError, "patches/E.h5 does not exist"),
        (remove("adata/F.h5ad"), ReadError, "adata/F.h5ad does not exist"),
        (remove("splits/test_1.csv"), ReadError, "test_1.csv does not exist"),
        (remove("var_50genes.json"), ReadError, "var_50genes.json"),
        (write("var_50genes.json", '{"genes": '), ReadError, "var_50genes.json is not valid JSON"),
        (write("var_50genes.json", '{"names": []}'), ReadError, "var_50genes.json holds no gene list"),
        (write("var_50genes.json", '{"genes": ["A", "A"]}'), ReadError, "names a gene more than once"),
        (write("splits/train_0.csv", ""), ReadError, "train_0.csv is not a table"),
        (write("splits/train_0.csv", "sample_id\nE\n"), ReadError, "train_0.csv lacks the columns patches_path, expr"),
        (write("splits/train_0.csv", "sample_id,patches_path,expr_path\n"), ReadError, "train_0.csv has no rows"),
        (lambda t: rewrite_split(t, lambda s: pd.concat([s, s])), ReadError, "names a sample more than once"),
        (
            lambda t: rewrite_split(t, lambda s: s.replace({"F": "G", r"/F\.": "/G."}, regex=True)),
            SplitError,
            "trains and tests on G",
        ),
        (
            lambda t: rewrite_split(t, lambda s: s.replace("patches/F.h5", "patches/E.h5")),
            ReadError,
            "gives sample F other files",
        ),
    ],
)
def test_a_folder_of_another_layout_names_its_file(task, spoil, error, text):
    spoil(task)
    with pytest.raises(error, match=text):
        io.read_hest_bench(task)


def test_no_task_and_unknown_tasks(whole, tmp_path):
    with pytest.raises(ReadError, match="holds no task"):
        io.read_hest_bench(tmp_path)
    with pytest.raises(OptionError, match=r"tasks FOUR are not in .*; choose from ONE, TWO"):
        io.read_hest_bench(whole, ["ONE", "FOUR"])


@pytest.mark.filterwarnings("ignore::histoflow._errors.DroppedSpotsWarning")
@pytest.mark.parametrize(
    ("spoil", "error", "text"),
    [
        (truncate("patches/E.h5"), ReadError, "E.h5 is not a whole HDF5 file"),
        (write("patches/E.h5", "no"), ReadError, "E.h5 is not a whole HDF5 file"),
        (truncate("adata/E.h5ad"), ReadError, "E.h5ad is not a whole h5ad file"),
        (lambda t: edit_patches(t / "patches/E.h5", img=None), ReadError, "E.h5 holds barcode, coords; wanted"),
        (lambda t: edit_patches(t / "patches/E.h5", img=np.zeros((32, 4, 4, 3))), ShapeError, "E.h5: img has shape"),
        (lambda t: edit_patches(t / "patches/E.h5", coords=np.zeros((31, 2))), ShapeError, "E.h5 holds 32 images"),
        (
            lambda t: edit_patches(t / "patches/E.h5", barcode=np.array(["x"] * 32, "S")),
            SlideMismatchError,
            "no barcode in common",
        ),
        (
            lambda t: change_h5ad(t / "adata/E.h5ad", lambda a: setattr(a, "X", a.X / 2)),
            CountsError,
            "E.h5ad.*not whole numbers",
        ),
        (lambda t: change_h5ad(t / "adata/E.h5ad", lambda a: a[:, 2:].copy()), PanelMismatchError, "E.h5ad lacks 2"),
        (lambda t: change_h5ad(t / "adata/E.h5ad", lambda a: a[:0].copy()), ReadError, "E.h5ad holds 0 spots"),
    ],
)
def test_a_broken_sample_names_its_file(task, spoil, error, text):
    spoil(task)
    with pytest.raises(error, match=text):
        section_of(task)


def test_images_damaged_in_the_middle(task):
    path = task / "patches" / "E.h5"
    with h5py.File(path) as file:
        place = file["img"].id.get_chunk_info(20)
    content = bytearray(path.read_bytes())
    content[place.byte_offset : place.byte_offset + place.size] = b"\0" * place.size
    path.write_bytes(content)
    with io.open_hest_patches(path) as patches:
        patches.images[:20]
        with pytest.raises(ReadError, match=r"E\.h5 is not a whole HDF5 file"):
            patches.images[20:]
