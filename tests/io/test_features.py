"""Patch features from elsewhere: invented files in the layouts of HEST, TRIDENT and CLAM, read, fitted, predicted."""

import anndata
import h5py
import numpy as np
import pytest
import scipy.spatial
from anndata import AnnData
from scipy import sparse
from tests.contracts.test_estimators import SMALL
from tests.test_cli import histoflow

from histoflow import models
from histoflow._errors import (
    CountsError,
    DroppedSpotsWarning,
    EncoderMismatchError,
    GeneNamesWarning,
    MissingSlotError,
    NotFiniteError,
    OptionError,
    PanelMismatchError,
    ReadError,
    ResolutionError,
    ScaleWarning,
    ShapeError,
    SlideMismatchError,
)
from histoflow._keys import EMBEDDINGS, UNS
from histoflow.bench import shuffle_counts
from histoflow.io.features import read_features
from histoflow.models.base import Estimator
from histoflow.pp import Panel, panel_log1p
from histoflow.pp.context import add_context
from histoflow.stats import pearson

MPP, SIDE_PX, STEP_PX = 0.5, 224, 200
GENES = [f"G{i}" for i in range(5)]
WEIGHTS = np.random.default_rng(7).normal(size=(8, len(GENES)))
FORMATS = ("hest", "trident", "clam")


def lattice(n_patches: int = 64) -> np.ndarray:
    """Upper left corners of patches whose centres are 100 µm apart, in level-0 pixels."""
    side = int(np.ceil(np.sqrt(n_patches)))
    xy = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2)[:n_patches]
    return (xy * STEP_PX + 1000).astype(np.int64)


def vectors(seed: int, n_patches: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n_patches, 8)).astype(np.float32)


def barcodes(n_patches: int = 64) -> list[str]:
    return [f"AAAC{i:04d}-1" for i in range(n_patches)]


def write(path, source_format, *, features, corners, **changes):
    """A file as HEST's benchmark, TRIDENT or CLAM write it; `changes` replace parts, None leaves one out."""
    parts = {"coords": corners, "embeddings" if source_format == "hest" else "features": features}
    if source_format == "hest":  # the benchmark appends batches, so a vector becomes a column
        parts["barcodes"] = np.array(barcodes(len(corners)), dtype="S")[:, None]
    attributes = {"hest": {}, "clam": {}, "trident": trident_attributes()}[source_format] | changes.pop(
        "attributes", {}
    )
    recorded = changes.pop("encoder", "toy_v1" if source_format == "trident" else None)
    with h5py.File(path, "w") as file:
        for name, values in (parts | changes).items():
            if values is not None:
                file.create_dataset(name, data=values)
        for name, value in attributes.items():
            if value is not None:
                file["coords"].attrs[name] = value
        if recorded:
            file["features"].attrs["encoder"] = recorded
    return path


def trident_attributes():
    return {
        "patch_size": 112,
        "patch_size_level0": SIDE_PX,
        "level0_magnification": 20,
        "target_magnification": 10,
        "overlap": 0,
        "name": "slide",
        "savetodir": "job",
        "level0_width": 9000,
        "level0_height": 9000,
    }


CLAM_PATCHES = {
    "patch_size": 56,
    "patch_level": 1,
    "downsample": (4.0, 4.0003),
    "level_dim": (2250, 2250),
    "name": "slide",
}
"""Attributes of CLAM's patch files, which some copy to its feature files."""
SCALE = {
    "hest": {"mpp": MPP, "patch_um": 112.0},
    "trident": {"mpp": MPP},
    "clam": {"mpp": MPP, "patch_um": 112.0},
}


def counts_of(features, corners, seed: int = 0, names=None) -> AnnData:
    """Counts that follow the features, at the centres of the patches."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(np.exp(2 + 0.4 * features @ WEIGHTS / 2)).astype(np.float32)
    table = AnnData(sparse.csr_matrix(counts))
    table.var_names, table.obs_names = GENES, names or barcodes(len(corners))
    table.obsm["spatial"] = corners + SIDE_PX // 2
    return table


def sample(folder, source_format, seed=0, *, with_counts=True, n_patches=64, **changes):
    features, corners = vectors(seed, n_patches), lattice(n_patches)
    path = write(folder / f"S{seed}.h5", source_format, features=features, corners=corners, **changes)
    counts = counts_of(features, corners, seed) if with_counts else None
    return read_features(path, encoder="toy_v1", counts=counts, **SCALE[source_format])


@pytest.fixture(params=FORMATS)
def source_format(request):
    return request.param


def test_a_file_becomes_a_section_to_predict(source_format, tmp_path):
    section = sample(tmp_path, source_format, with_counts=False)
    assert section.shape == (64, 0)
    np.testing.assert_array_equal(section.obsm["toy_v1"], vectors(0))
    assert section.obsm["toy_v1"].dtype == np.float32
    np.testing.assert_allclose(section.obsm["spatial"], lattice() + SIDE_PX / 2)
    np.testing.assert_allclose(section.obsm["spatial_um"], (lattice() + SIDE_PX / 2) * MPP)
    known = section.uns[UNS]
    assert (known["kind"], known["source_format"], known["section"]) == ("features", source_format, "S0")
    assert (known["mpp_x"], known["mpp_y"], known["mpp_source"]) == (MPP, MPP, "given")
    assert known["pitch_um"] == pytest.approx(100.0)
    made = known[EMBEDDINGS]["toy_v1"]
    assert (made["name"], made["n_features"], made["patch_um"], made["context_um"]) == ("toy_v1", 8, [112.0], [])
    assert len(made["id"]) == 12
    assert section.obs_names[3] == ("AAAC0003-1" if source_format == "hest" else "patch_3")


def test_the_same_encoder_and_patch_are_the_same_embedding_whoever_wrote_the_file(tmp_path):
    ids = {sample(tmp_path, name, with_counts=False).uns[UNS][EMBEDDINGS]["toy_v1"]["id"] for name in FORMATS}
    assert len(ids) == 1


def test_another_encoder_width_or_patch_is_another_embedding(tmp_path):
    path = write(tmp_path / "a.h5", "clam", features=vectors(0), corners=lattice())
    wide = write(tmp_path / "b.h5", "clam", features=np.tile(vectors(0), 2), corners=lattice())
    calls = [
        (path, "toy_v1", 112.0),
        (path, "toy_v2", 112.0),
        (path, "toy_v1", 128.0),
        (wide, "toy_v1", 112.0),
    ]
    made = [read_features(p, encoder=e, mpp=MPP, patch_um=um).uns[UNS][EMBEDDINGS][e]["id"] for p, e, um in calls]
    assert len(set(made)) == 4


def test_counts_are_joined_in_the_order_of_the_file(source_format, tmp_path):
    features, corners = vectors(0), lattice()
    counts = counts_of(features, corners)
    order = np.random.default_rng(1).permutation(64)
    path = write(tmp_path / "a.h5", source_format, features=features, corners=corners)
    section = read_features(path, encoder="toy_v1", counts=counts[order], patient="P1", **SCALE[source_format])
    np.testing.assert_array_equal(section.X.toarray(), counts.X.toarray())
    np.testing.assert_array_equal(section.obsm["toy_v1"], features)
    assert list(section.obs_names) == barcodes()
    assert list(section.var_names) == GENES
    assert set(section.obs["patient"]) == {"P1"}
    assert section.uns[UNS]["dropped"] == {"no_counts": 0, "no_patch": 0}


def test_what_is_not_in_both_is_left_out_counted_and_told(source_format, tmp_path):
    features, corners = vectors(0), lattice()
    counts = counts_of(features, corners)[5:].copy()
    path = write(tmp_path / "a.h5", source_format, features=features[:60], corners=corners[:60])
    with pytest.warns(DroppedSpotsWarning, match="section a: left out: 5 patches without counts, 4 spots without"):
        section = read_features(path, encoder="toy_v1", counts=counts, **SCALE[source_format])
    assert section.shape == (55, 5)
    assert section.uns[UNS]["dropped"] == {"no_counts": 5, "no_patch": 4}
    np.testing.assert_array_equal(section.obsm["toy_v1"], features[5:60])
    np.testing.assert_array_equal(section.X.toarray(), counts.X.toarray()[:55])


def test_the_nearest_spot_gets_the_patch_and_distant_ones_none(tmp_path):
    features, corners = vectors(0, 4), lattice(4)
    counts = counts_of(features, corners)
    near, off = counts.copy(), counts[:1].copy()
    near.obsm["spatial"] = near.obsm["spatial"] + [10, 0]
    near.obsm["spatial"][3] += [0, 57]  # more than a quarter of 224
    off.obsm["spatial"], off.obs_names = off.obsm["spatial"] - [20, 0], ["farther"]
    path = write(tmp_path / "a.h5", "trident", features=features, corners=corners)
    with pytest.warns(DroppedSpotsWarning, match="1 patches without counts, 2 spots without a patch"):
        section = read_features(path, counts=anndata.concat([off, near]), mpp=MPP)
    assert list(section.obs_names) == barcodes(4)[:3]


def test_patches_of_one_place_are_given_to_a_tree_once(tmp_path, monkeypatch):
    # Of points of one place it compares all with all.
    n_patches, asked, tree = 1 << 10, [], scipy.spatial.KDTree
    monkeypatch.setattr("histoflow.io.features.KDTree", lambda points: asked.append(len(points)) or tree(points))
    features, corners = np.zeros((n_patches, 2), np.float32), np.full((n_patches, 2), 1000)
    counts = AnnData(sparse.csr_matrix(np.ones((n_patches, 1), np.float32)), obsm={"spatial": corners + SIDE_PX / 2})
    path = write(tmp_path / "a.h5", "trident", features=features, corners=corners)
    with pytest.warns(DroppedSpotsWarning, match="1023 patches without counts"):
        section = read_features(path, counts=counts, mpp=MPP)
    assert section.n_obs == 1
    assert asked == [1]


@pytest.mark.parametrize("size", [1e-300, 1e-21, 1e12, 1e308])
@pytest.mark.parametrize("patch_um", [None, 112.0])
def test_a_patch_of_no_size_or_larger_than_a_slide_is_refused(tmp_path, size, patch_um):
    path = write(tmp_path / "a.h5", "trident", features=vectors(0), corners=lattice())
    with h5py.File(path, "r+") as file:
        file["coords"].attrs["patch_size_level0"] = size
    with pytest.raises(ResolutionError, match=r"level-0 pixels or .* µm wide, wanted 0\.1 to 100000 µm"):
        read_features(path, mpp=2.0, patch_um=patch_um)


def test_counts_are_read_from_a_file(tmp_path):
    counts = counts_of(vectors(0), lattice())
    counts.write_h5ad(tmp_path / "S0.h5ad")
    path = write(tmp_path / "a.h5", "hest", features=vectors(0), corners=lattice())
    section = read_features(path, encoder="uni", counts=tmp_path / "S0.h5ad", **SCALE["hest"])
    np.testing.assert_array_equal(section.X.toarray(), counts.X.toarray())


def test_counts_are_not_changed(tmp_path):
    features, corners = vectors(0), lattice()
    counts = counts_of(features, corners)
    before = counts.copy()
    path = write(tmp_path / "a.h5", "hest", features=features, corners=corners)
    read_features(path, encoder="uni", counts=counts, patient="P", **SCALE["hest"])
    assert list(counts.obs) == list(before.obs)
    assert counts.uns.keys() == before.uns.keys()
    np.testing.assert_array_equal(counts.obsm["spatial"], before.obsm["spatial"])


def test_trident_records_its_encoder(tmp_path):
    path = write(tmp_path / "a.h5", "trident", features=vectors(0), corners=lattice(), encoder="uni_v1")
    assert set(read_features(path, mpp=MPP).obsm) == {"spatial", "spatial_um", "uni_v1"}
    mine = read_features(path, encoder="mine", mpp=MPP).uns[UNS][EMBEDDINGS]["mine"]
    assert (mine["name"], mine["recorded_encoder"]) == ("mine", "uni_v1")


@pytest.mark.parametrize("source_format", FORMATS)
@pytest.mark.parametrize("encoder", [None, "spatial"])
def test_an_encoder_without_a_name_is_refused(tmp_path, source_format, encoder):
    recorded = {"encoder": "None"} if source_format == "trident" else {}
    path = write(tmp_path / "a.h5", source_format, features=vectors(0), corners=lattice(), **recorded)
    with pytest.raises(OptionError, match="does not record its encoder"):
        read_features(path, encoder=encoder, mpp=MPP, patch_um=112.0)


def test_leading_axes_of_length_one_are_left_out(source_format, tmp_path):
    features, corners = vectors(0), lattice()
    path = write(tmp_path / "a.h5", source_format, features=features[None], corners=corners[None, None])
    if source_format == "hest":
        path = write(
            tmp_path / "a.h5",
            "hest",
            features=features[None],
            corners=corners[None, None],
            barcodes=np.array(barcodes(), dtype=object)[None],
        )
    section = read_features(path, encoder="toy_v1", **SCALE[source_format])
    np.testing.assert_array_equal(section.obsm["toy_v1"], features)
    np.testing.assert_allclose(section.obsm["spatial"], corners + SIDE_PX / 2)


def test_half_precision_and_one_patch_work(source_format, tmp_path):
    features = vectors(0, 1).astype(np.float16)
    path = write(tmp_path / "a.h5", source_format, features=features, corners=lattice(1))
    section = read_features(path, encoder="toy_v1", **SCALE[source_format])
    np.testing.assert_array_equal(section.obsm["toy_v1"], features.astype(np.float32))
    assert "pitch_um" not in section.uns[UNS]


HEST_PATCHES = {"patch_size_src": 307, "patch_size_target": 224, "pixel_size": 0.3648, "downsample": 307 / 224}
"""Attributes of HEST's patch files, here on `coords`; those with images have them on `img`."""


@pytest.mark.parametrize("place", ["coords", "img"])
def test_hest_attributes_tell_scale_and_patch(tmp_path, place):
    path = write(tmp_path / "a.h5", "hest", features=vectors(0), corners=lattice())
    with h5py.File(path, "a") as file:
        holder = file["coords"] if place == "coords" else file.create_dataset("img", (64, 4, 4, 3), dtype=np.uint8)
        holder.attrs.update(HEST_PATCHES)
    section = read_features(path, encoder="uni")
    known = section.uns[UNS]
    assert (known["mpp_x"], known["mpp_source"]) == (pytest.approx(0.3648), "metadata")
    np.testing.assert_allclose(section.obsm["spatial"], lattice() + 153.5)
    made = known[EMBEDDINGS]["uni"]
    assert (made["patch_um"], made["patch_px"]) == ([112.0], 224)


def test_older_names_of_hest_are_understood(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["features"], file["coords"] = vectors(0), lattice()
        file["barcode"] = np.array(barcodes(), dtype="S")
    section = read_features(path, encoder="uni", **SCALE["hest"])
    assert (section.uns[UNS]["source_format"], section.obs_names[0]) == ("hest", "AAAC0000-1")


@pytest.mark.parametrize(
    ("source_format", "attributes", "side_px"),
    [
        ("clam", CLAM_PATCHES, 224),
        ("clam", CLAM_PATCHES | {"custom_downsample": 2}, 448),
        ("clam", {"patch_size": 256, "patch_level": 0}, 256),
        ("trident", {"patch_size_level0": None}, 224),
        ("hest", {"patch_size_target": 224, "downsample": 2.0}, 448),
    ],
)
def test_the_side_of_a_patch_follows_from_attributes(tmp_path, source_format, attributes, side_px):
    path = write(tmp_path / "a.h5", source_format, features=vectors(0), corners=lattice(), attributes=attributes)
    section = read_features(path, encoder="toy_v1", mpp=MPP)
    assert section.uns[UNS]["source_format"] == source_format
    np.testing.assert_allclose(section.obsm["spatial"], lattice() + side_px / 2)
    assert section.uns[UNS][EMBEDDINGS]["toy_v1"]["patch_um"] == [side_px * MPP]


@pytest.mark.parametrize("attributes", [{}, {"patch_size": 256, "patch_level": 1}, {"patch_size_level0": "None"}])
def test_a_patch_of_unknown_size_is_refused(tmp_path, attributes):
    path = write(tmp_path / "a.h5", "clam", features=vectors(0), corners=lattice(), attributes=attributes)
    with pytest.raises(ResolutionError, match=r"does not record the size of its patches at level 0.*patch_um="):
        read_features(path, encoder="uni", mpp=MPP)


def test_pixels_that_are_not_square_are_kept(tmp_path):
    path = write(tmp_path / "a.h5", "clam", features=vectors(0), corners=lattice())
    with pytest.warns(ScaleWarning, match="not square"):
        section = read_features(path, encoder="uni", mpp=(0.5, 0.4), patch_um=112.0)
    np.testing.assert_allclose(section.obsm["spatial"], lattice() + np.array([112, 140]))
    np.testing.assert_allclose(section.obsm["spatial_um"], section.obsm["spatial"] * [0.5, 0.4])


@pytest.mark.parametrize(
    ("source_format", "told"),
    [
        ("trident", "only a magnification of 20×.*not a pixel size"),
        ("hest", "HEST's metadata table"),
        ("clam", "slide"),
    ],
)
def test_a_magnification_is_not_a_scale(tmp_path, source_format, told):
    path = write(tmp_path / "a.h5", source_format, features=vectors(0), corners=lattice())
    with pytest.raises(ResolutionError, match=told) as raised:
        read_features(path, encoder="uni", patch_um=112.0)
    assert "mpp=" in str(raised.value)


def test_an_impossible_pixel_size_is_no_scale(tmp_path):
    impossible = {"pixel_size": 300.0}
    path = write(tmp_path / "a.h5", "hest", features=vectors(0), corners=lattice(), attributes=impossible)
    with pytest.raises(ResolutionError, match="no usable scale"):
        read_features(path, encoder="uni", patch_um=112.0)
    assert read_features(path, encoder="uni", mpp=MPP, patch_um=112.0).uns[UNS]["mpp_x"] == MPP


def test_a_given_scale_goes_first_and_says_so(tmp_path):
    path = write(tmp_path / "a.h5", "hest", features=vectors(0), corners=lattice(), attributes=HEST_PATCHES)
    with pytest.warns(ScaleWarning, match="although its metadata says"):
        assert read_features(path, encoder="uni", mpp=0.5).uns[UNS]["mpp_x"] == 0.5


def test_sizes_of_slides_scanned_a_little_apart_go_by_the_given_one(tmp_path):
    path = write(tmp_path / "a.h5", "trident", features=vectors(0), corners=lattice())
    read = {mpp: read_features(path, mpp=mpp, patch_um=112.0) for mpp in (0.5, 0.509)}
    with pytest.warns(ScaleWarning, match=r"224 level-0 pixels or 116.5 µm, patch_um is 112"):
        read[0.52] = read_features(path, mpp=0.52, patch_um=112.0)
    assert len({section.uns[UNS][EMBEDDINGS]["toy_v1"]["id"] for section in read.values()}) == 1
    with pytest.raises(ResolutionError, match="more than 5 % apart"):
        read_features(path, mpp=0.54, patch_um=112.0)
    assert read_features(path, mpp=0.54).uns[UNS][EMBEDDINGS]["toy_v1"]["patch_um"] == [121.0]


def visium_counts(features):
    """Counts with Visium's array positions, and the corners of patches at its spots."""
    row, col = np.divmod(np.arange(64), 8)
    col = 2 * col + row % 2
    centres = np.column_stack([1000 + col * 50 / MPP, 1000 + row * 50 * np.sqrt(3) / MPP])
    corners = np.rint(centres).astype(np.int64) - SIDE_PX // 2
    counts = counts_of(features, corners)
    counts.obs["array_row"], counts.obs["array_col"] = row, col
    return counts, corners


def test_counts_tell_the_scale_where_the_file_does_not(tmp_path):
    counts, corners = visium_counts(vectors(0))
    path = write(tmp_path / "a.h5", "hest", features=vectors(0), corners=corners)
    known = read_features(path, encoder="uni", counts=counts, patch_um=112.0).uns[UNS]
    assert (known["mpp_x"], known["mpp_source"], known["pitch_um"]) == (pytest.approx(MPP, rel=1e-3), "pitch", 100.0)
    recorded = counts_of(vectors(0), lattice())
    recorded.uns[UNS] = {"mpp_x": 0.5, "mpp_y": 0.5, "mpp_source": "metadata", "pitch_um": 97.0}
    path = write(tmp_path / "b.h5", "hest", features=vectors(0), corners=lattice())
    known = read_features(path, encoder="uni", counts=recorded, patch_um=112.0).uns[UNS]
    assert (known["mpp_x"], known["mpp_source"], known["pitch_um"]) == (0.5, "metadata", 97.0)


def test_a_given_pitch_goes_first(tmp_path):
    path = write(tmp_path / "a.h5", "clam", features=vectors(0), corners=lattice())
    known = read_features(path, encoder="uni", mpp=MPP, patch_um=112.0, pitch_um=55.0, section="T").uns[UNS]
    assert (known["pitch_um"], known["section"]) == (55.0, "T")


@pytest.mark.parametrize("sizes", [{"patch_um": 0.0}, {"patch_um": np.nan}, {"pitch_um": -1.0}, {"mpp": 300.0}])
def test_sizes_that_are_none_are_refused(tmp_path, sizes):
    path = write(tmp_path / "a.h5", "clam", features=vectors(0), corners=lattice())
    with pytest.raises(OptionError, match="µm"):
        read_features(path, encoder="uni", **({"mpp": MPP, "patch_um": 112.0} | sizes))


def test_files_that_are_no_whole_hdf5_are_refused(source_format, tmp_path):
    with pytest.raises(ReadError, match="does not exist"):
        read_features(tmp_path / "none.h5", encoder="uni")
    path = write(tmp_path / "a.h5", source_format, features=vectors(0), corners=lattice())
    whole = path.read_bytes()
    for damaged in (b"", b"not a file", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ReadError, match="not a whole HDF5 file"):
            read_features(path, encoder="uni", **SCALE[source_format])


def test_groups_in_place_of_arrays_are_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_group("features")
        file["coords"] = lattice()
    with pytest.raises(ReadError, match="not a whole HDF5 file"):
        read_features(tmp_path / "a.h5", encoder="uni", mpp=MPP)


@pytest.mark.parametrize(
    ("held", "told"),
    [
        ({"img": np.zeros((2, 4, 4, 3)), "coords": lattice(2)}, "holds coords, img, but no features"),
        ({"features": vectors(0, 2)}, "but no coords"),
        ({}, "holds nothing, but no coords and no features"),
    ],
)
def test_files_of_something_else_are_refused(tmp_path, held, told):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, values in held.items():
            file[name] = values
    with pytest.raises(ReadError, match=told):
        read_features(tmp_path / "a.h5", encoder="uni", mpp=MPP, patch_um=112.0)


def test_a_file_without_patches_is_refused(source_format, tmp_path):
    path = write(tmp_path / "a.h5", source_format, features=np.empty((0, 8)), corners=np.empty((0, 2)))
    with pytest.raises(ReadError, match="holds no patch"):
        read_features(path, encoder="uni", **SCALE[source_format])


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"features": vectors(0, 63)}, "63 features, 64 coords"),
        ({"features": vectors(0)[0]}, "one vector for the whole slide"),
        ({"features": np.zeros((2, 32, 8))}, r"features have shape \(2, 32, 8\)"),
        ({"features": np.full((64, 8), b"x", dtype="S1")}, r"wanted numbers \(n_patches, n_features\)"),
        ({"corners": np.zeros((64, 4))}, r"coords have shape \(64, 4\), wanted x and y"),
        ({"corners": np.zeros(128)}, r"coords have shape \(128,\)"),
    ],
)
def test_parts_of_a_wrong_shape_are_refused(source_format, tmp_path, parts, told):
    path = write(tmp_path / "a.h5", source_format, **({"features": vectors(0), "corners": lattice()} | parts))
    with pytest.raises(ShapeError, match=told):
        read_features(path, encoder="uni", **SCALE[source_format])


def test_barcodes_are_one_per_patch_and_unique(tmp_path):
    for ids, kind, told in (
        (barcodes(63), ShapeError, "64 coords, 63 ids"),
        ([*barcodes(63), "AAAC0000-1"], ReadError, "barcode AAAC0000-1 more than once"),
    ):
        path = write(tmp_path / "a.h5", "hest", features=vectors(0), corners=lattice(), barcodes=np.array(ids, "S"))
        with pytest.raises(kind, match=told):
            read_features(path, encoder="uni", **SCALE["hest"])


@pytest.mark.parametrize("part", ["features", "corners"])
def test_numbers_that_are_none_are_refused(source_format, tmp_path, part):
    parts = {"features": vectors(0), "corners": lattice().astype(float)}
    parts[part][[3, 9], 1] = np.nan, np.inf
    path = write(tmp_path / "a.h5", source_format, **parts)
    with pytest.raises(NotFiniteError, match="of 2 of 64 patches"):
        read_features(path, encoder="uni", **SCALE[source_format])


@pytest.mark.parametrize("value", [-1, "large", np.array([], dtype=float)])
def test_an_attribute_that_is_no_number_is_refused(tmp_path, value):
    damaged = {"patch_size_level0": value}
    path = write(tmp_path / "a.h5", "trident", features=vectors(0), corners=lattice(), attributes=damaged)
    with pytest.raises(ReadError, match="attribute patch_size_level0 is"):
        read_features(path, mpp=MPP)


def test_counts_that_do_not_belong_are_refused(source_format, tmp_path):
    features, corners = vectors(0), lattice()
    path = write(tmp_path / "a.h5", source_format, features=features, corners=corners)

    def read(counts):
        return read_features(path, encoder="uni", counts=counts, **SCALE[source_format])

    elsewhere = counts_of(features, corners + 100_000, names=[f"other{i}" for i in range(64)])
    with pytest.raises(SlideMismatchError, match=r"no (barcode|place) in common"):
        read(elsewhere)
    normalised = counts_of(features, corners)
    normalised.layers["raw"] = normalised.X.copy()
    normalised.X = normalised.X.log1p()
    with pytest.raises(CountsError, match=r'counts are in layers\["raw"\]'):
        read(normalised)
    with pytest.raises(ReadError, match="0 genes"):
        read(AnnData(shape=(64, 0)))
    repeated = counts_of(features, corners)
    repeated.obs_names = ["same", "same", *barcodes()[2:]]
    with pytest.raises(OptionError, match="obs_names_make_unique"):
        read(repeated)
    damaged = tmp_path / "counts.h5ad"
    damaged.write_bytes(b"not an h5ad")
    with pytest.raises(ReadError, match="not a whole h5ad"):
        read(damaged)


@pytest.mark.parametrize(("mpp", "patch_um"), [(0.5, 224.0), (0.25, 112.0), (0.5, 56.0)])
def test_patches_beside_their_spots_are_refused(tmp_path, mpp, patch_um):
    features, corners = vectors(0), lattice()
    path = write(tmp_path / "a.h5", "hest", features=features, corners=corners)
    with pytest.raises(SlideMismatchError, match=r"lie beside the spots.*check mpp and patch_um"):
        read_features(path, encoder="uni", counts=counts_of(features, corners), mpp=mpp, patch_um=patch_um)


def test_counts_without_places_join_by_barcode_only(tmp_path):
    features, corners = vectors(0), lattice()
    counts = counts_of(features, corners)
    del counts.obsm["spatial"]
    hest = write(tmp_path / "a.h5", "hest", features=features, corners=corners)
    assert read_features(hest, encoder="uni", counts=counts, **SCALE["hest"]).n_obs == 64
    clam = write(tmp_path / "b.h5", "clam", features=features, corners=corners)
    with pytest.raises(SlideMismatchError, match="no barcodes and the counts no obsm"):
        read_features(clam, encoder="uni", counts=counts, **SCALE["clam"])


def test_repeated_gene_names_get_numbers(tmp_path):
    features, corners = vectors(0), lattice()
    counts = counts_of(features, corners)
    counts.var_names = ["A", "A", "B", "C", "D"]
    path = write(tmp_path / "a.h5", "hest", features=features, corners=corners)
    with pytest.warns(GeneNamesWarning, match="A-1"):
        section = read_features(path, encoder="uni", counts=counts, **SCALE["hest"])
    assert list(section.var_names) == ["A", "A-1", "B", "C", "D"]


PANEL = Panel(tuple(GENES))
ESTIMATORS = {
    "ridge": models.RidgeProbe(encoder="toy_v1"),
    "stflow": models.STFlow(encoder="toy_v1", **SMALL),
}


@pytest.fixture(params=ESTIMATORS, scope="module")
def estimator(request) -> Estimator:
    return ESTIMATORS[request.param]


def test_fit_and_predict_without_a_slide(source_format, estimator, tmp_path):
    train = [sample(tmp_path, source_format, seed) for seed in range(3)]
    model = estimator.clone().fit(train, panel=PANEL)
    query = sample(tmp_path, source_format, seed=9, with_counts=False)
    predicted = model.predict(query, n_samples=2)
    assert predicted.shape == (64, 5)
    assert np.isfinite(predicted.X).all()
    assert list(predicted.obs_names) == list(query.obs_names)
    assert model.pitch_um_ == pytest.approx(100.0)
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(models.load(tmp_path / "model").predict(query, n_samples=2).X, predicted.X)


def test_planted_signal_is_found_and_shuffled_counts_hold_none(tmp_path):
    *train, test = [sample(tmp_path, "hest", seed, n_patches=100) for seed in range(4)]
    r = {}
    for name, sections in {"real": train, "shuffled": [shuffle_counts(s, seed=1) for s in train]}.items():
        predicted = ESTIMATORS["ridge"].clone().fit(sections, panel=PANEL).predict(test)
        r[name] = np.nan_to_num(pearson(panel_log1p(test, PANEL, "library"), predicted.X)).mean()
    assert r["real"] > 0.5
    assert abs(r["shuffled"]) < 0.2


def test_a_model_of_one_tool_predicts_the_same_encoder_of_another_and_refuses_others(tmp_path):
    model = ESTIMATORS["ridge"].clone().fit([sample(tmp_path, "hest", seed) for seed in range(3)], panel=PANEL)
    assert model.predict(sample(tmp_path, "trident", 9, with_counts=False)).shape == (64, 5)
    path = write(tmp_path / "a.h5", "clam", features=vectors(0), corners=lattice())
    with pytest.raises(EncoderMismatchError, match=r"patch_um \[56.0\], but the model with patch_um \[112.0\]"):
        model.predict(read_features(path, encoder="toy_v1", mpp=MPP, patch_um=56.0))
    with pytest.raises(MissingSlotError, match="toy_v1"):
        model.predict(read_features(path, encoder="toy_v2", mpp=MPP, patch_um=112.0))
    path = write(tmp_path / "b.h5", "clam", features=np.tile(vectors(0), 2), corners=lattice())
    with pytest.raises(EncoderMismatchError, match="n_features 16"):
        model.predict(read_features(path, encoder="toy_v1", mpp=MPP, patch_um=112.0))


def test_without_counts_there_is_nothing_to_fit_on(source_format, tmp_path):
    with pytest.raises(PanelMismatchError, match="lacks 5 of the panel's 5 genes"):
        ESTIMATORS["ridge"].clone().fit([sample(tmp_path, source_format, with_counts=False)], panel=PANEL)


def test_a_section_survives_its_file(source_format, tmp_path):
    train = [sample(tmp_path, source_format, seed) for seed in range(3)]
    model = ESTIMATORS["ridge"].clone().fit(train, panel=PANEL)
    train[0].write_h5ad(tmp_path / "section.h5ad")
    again = anndata.read_h5ad(tmp_path / "section.h5ad")
    np.testing.assert_array_equal(model.predict(again).X, model.predict(train[0]).X)


def test_context_of_a_joined_section_is_taken_from_the_whole_file(tmp_path):
    features, corners = vectors(0), lattice()
    path = write(tmp_path / "a.h5", "hest", features=features, corners=corners)
    everything = read_features(path, encoder="toy_v1", **SCALE["hest"])
    with pytest.warns(DroppedSpotsWarning, match="44 patches without counts"):
        counted = read_features(path, encoder="toy_v1", counts=counts_of(features, corners)[:20], **SCALE["hest"])
    add_context(counted, "toy_v1", (150.0,), around=everything)
    assert counted.obsm["toy_v1"].shape == (20, 16)
    whole = add_context(everything.copy(), "toy_v1", (150.0,))
    np.testing.assert_allclose(counted.obsm["toy_v1"], whole.obsm["toy_v1"][:20], atol=1e-6)
    ids = [section.uns[UNS][EMBEDDINGS]["toy_v1"]["id"] for section in (counted, whole, everything)]
    assert ids[0] == ids[1] != ids[2]


def write_cohort(folder, source_format):
    """Three references, a held-out section and a query in one of the formats, with their manifest."""
    lines = ["section,kind,slide,counts,encoder,mpp,patch_um,role"]
    for seed, role in enumerate(("reference", "reference", "reference", "held_out", "query")):
        features, corners = vectors(seed), lattice()
        write(folder / f"S{seed}.h5", source_format, features=features, corners=corners)
        counts = "" if role == "query" else f"S{seed}.h5ad"
        if counts:
            counts_of(features, corners, seed).write_h5ad(folder / counts)
        lines.append(f"S{seed},features,S{seed}.h5,{counts},toy_v1,{MPP},112,{role}")
    (folder / "cohort.csv").write_text("\n".join(lines))
    return folder / "cohort.csv"


def test_the_command_line_fits_evaluates_and_predicts_without_any_slide(source_format, tmp_path):
    cohort = write_cohort(tmp_path, source_format)
    genes = tmp_path / "genes.txt"
    genes.write_text("\n".join(GENES))
    how = ["--encoder", "toy_v1", "--panel", genes]
    fitted = histoflow("fit", cohort, "--out", tmp_path / "model", "--model", "hest_fm", *how)
    assert fitted.code == 0, fitted.err
    predicted = histoflow("predict", tmp_path / "model", cohort, "--section", "S4", "--out", tmp_path / "p.h5ad")
    assert predicted.code == 0, predicted.err
    assert anndata.read_h5ad(tmp_path / "p.h5ad").shape == (64, 5)
    scored = histoflow("evaluate", cohort, "--out", tmp_path / "out", "--models", "mean,hest_fm", *how, "--json")
    assert scored.code == 0, scored.err
    assert scored.json["mean"]["hest_fm"]["pearson"] > 0.3
    assert (tmp_path / "out" / "figures" / "S3-maps.png").is_file()
    refused = histoflow("evaluate", cohort, "--out", tmp_path / "no", "--models", "color", *how)
    assert refused.code == 1
    assert "leave out the models that look through color" in refused.told[0]
