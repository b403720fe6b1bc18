"""HDF5 that claims, links and points to what is not there: refused before a value is read, and nothing is run."""

import pickle
import struct

import anndata
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData
from tests.io.conftest import write_h5

from histoflow._errors import ReadError, ShapeError
from histoflow.io import Cohort, read_anndata, read_features
from histoflow.io.arrays import read_10x_h5, read_10x_mtx
from histoflow.io.hdf5 import check_sparse, opened_hdf5
from histoflow.io.hest_bench import open_hest_patches
from histoflow.io.manifest import Row

SPOTS = 1_000_000_000


class Evil:
    """Runs something when it is unpickled."""

    def __reduce__(self):
        return print, ("pickled code ran",)


@pytest.fixture
def h5ad(tmp_path):
    made = AnnData(sp.csr_matrix(np.arange(12.0, dtype=np.float32).reshape(4, 3)))
    made.obs["kind"], made.uns["note"] = ["a", "b", "a", "b"], "a text in a heap"
    made.write_h5ad(tmp_path / "made.h5ad")
    return tmp_path / "made.h5ad"


def claim(path, name, shape, dtype=None):
    """Put a dataset of unwritten chunks in the place of one that is there."""
    with h5py.File(path, "r+") as file:
        kind = file[name].dtype if dtype is None else dtype
        del file[name]
        file.create_dataset(name, shape=shape, dtype=kind, chunks=tuple(min(side, 1000) for side in shape))


def test_a_whole_file_is_read_as_the_library_reads_it(h5ad):
    ours, theirs = read_anndata(h5ad, "AnnData"), anndata.read_h5ad(h5ad)
    np.testing.assert_array_equal(ours.X.toarray(), theirs.X.toarray())
    assert ours.uns["note"] == theirs.uns["note"]


@pytest.mark.parametrize("name", ["X/data", "X/indices", "obs/_index", "var/_index"])
def test_an_h5ad_of_a_billion_spots_that_are_not_there_is_refused(h5ad, name):
    claim(h5ad, name, (SPOTS,))
    with pytest.raises(ReadError, match=rf"{name} claims shape \(1000000000,\)"):
        read_anndata(h5ad, "AnnData")


@pytest.mark.parametrize("name", ["barcodes", "data", "indices", "indptr"])
def test_a_count_matrix_of_a_billion_spots_that_are_not_there_is_refused(tmp_path, name):
    write_h5(tmp_path / "m.h5", np.ones((3, 7)), ["A", "B", "C"], list("ABCDEFG"))
    claim(tmp_path / "m.h5", f"matrix/{name}", (SPOTS,))
    with pytest.raises(ReadError, match=rf"matrix/{name} claims shape"):
        read_10x_h5(tmp_path / "m.h5")


def test_a_market_file_of_a_billion_spots_that_are_not_there_is_refused(tmp_path):
    head = "%%MatrixMarket matrix coordinate integer general\n"
    (tmp_path / "matrix.mtx").write_text(f"{head}1 {SPOTS} 1\n1 1 1\n")
    (tmp_path / "features.tsv").write_text("ENSG1\tA\tGene Expression\n")
    (tmp_path / "barcodes.tsv").write_text("SPOT1\n")
    with pytest.raises(ReadError, match=r"shape \(1, 1000000000\) for 1 genes and 1 barcodes"):
        read_10x_mtx(tmp_path)


@pytest.mark.parametrize(("name", "shape"), [("coords", (SPOTS, 2)), ("features", (SPOTS, 1024))])
def test_features_of_a_billion_patches_that_are_not_there_are_refused(tmp_path, name, shape):
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["features"], file["coords"] = np.ones((2, 3), np.float32), np.ones((2, 2))
    claim(tmp_path / "f.h5", name, shape)
    with pytest.raises(ReadError, match=f"{name} claims shape"):
        read_features(tmp_path / "f.h5", encoder="uni", mpp=0.5, patch_um=112.0)


@pytest.mark.parametrize("name", ["coords", "features"])
def test_features_that_are_a_reference_are_refused(tmp_path, name):
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["features"], file["coords"] = np.ones((2, 3), np.float32), np.ones((2, 2))
        del file[name]
        file.create_dataset(name, shape=(), dtype=h5py.ref_dtype)
    with pytest.raises(ShapeError, match=f"{name} have shape"):
        read_features(tmp_path / "f.h5", encoder="uni", mpp=0.5, patch_um=112.0)


def test_patches_of_a_billion_spots_that_are_not_there_are_refused(tmp_path):
    with h5py.File(tmp_path / "p.h5", "w") as file:
        file["img"], file["coords"] = np.zeros((1, 2, 2, 3), np.uint8), np.zeros((1, 2))
        file["barcode"] = np.array([b"A"])
    claim(tmp_path / "p.h5", "barcode", (SPOTS,))
    with pytest.raises(ReadError, match="barcode claims shape"), open_hest_patches(tmp_path / "p.h5"):
        pass


def test_what_is_packed_a_thousandfold_is_still_read(tmp_path):
    zeros = np.zeros((1 << 22, 5), dtype=np.float32)
    with h5py.File(tmp_path / "z.h5", "w") as file:
        file.create_dataset("zeros", data=zeros, compression="gzip", compression_opts=9)
    assert zeros.nbytes > 1 << 26
    with opened_hdf5(tmp_path / "z.h5") as file:
        assert file["zeros"].shape == zeros.shape


def test_values_in_other_files_are_refused(tmp_path, h5ad):
    (tmp_path / "secret").write_bytes(bytes(100))
    with h5py.File(h5ad, "r+") as file:
        del file["X"]
        file.create_dataset("X", shape=(4, 3), dtype="u1", external=[(tmp_path / "secret", 0, h5py.h5f.UNLIMITED)])
    with pytest.raises(ReadError, match="the values of X lie in another file"):
        read_anndata(h5ad, "AnnData")


def test_links_to_other_files_are_refused(tmp_path, h5ad):
    h5ad.rename(tmp_path / "other.h5ad")
    with h5py.File(h5ad, "w") as file:
        file["X"] = h5py.ExternalLink("other.h5ad", "X")
    with pytest.raises(ReadError, match=r"X lies in another file, other\.h5ad"):
        read_anndata(h5ad, "AnnData")


def test_a_virtual_dataset_is_refused(tmp_path, h5ad):
    layout = h5py.VirtualLayout(shape=(4, 3), dtype="f4")
    layout[:] = h5py.VirtualSource("other.h5", "X", shape=(4, 3))
    with h5py.File(h5ad, "r+") as file:
        del file["X"]
        file.create_virtual_dataset("X", layout)
    with pytest.raises(ReadError, match="the values of X lie in another file"):
        read_anndata(h5ad, "AnnData")


def test_pickles_in_an_h5ad_are_bytes_and_nothing_more(h5ad, capsys):
    with h5py.File(h5ad, "r+") as file:
        file["uns/pickled"] = np.void(pickle.dumps(Evil()))
        for key, value in {"encoding-type": "numeric-scalar", "encoding-version": "0.2.0"}.items():
            file["uns/pickled"].attrs[key] = value
    read_anndata(h5ad, "AnnData")
    assert "pickled code ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "pointers", [[0, 1 << 20, 1 << 20, 1 << 20, 12], [0, 9, 3, 6, 12], [0, 5, 5, 5, 0], [1, 3, 6, 9, 12]]
)
def test_sparse_pointers_that_lead_elsewhere_are_refused(h5ad, pointers):
    with h5py.File(h5ad, "r+") as file:
        file["X/indptr"][:] = pointers
    with pytest.raises(ReadError, match=r"made\.h5ad is not a whole h5ad file"):
        Cohort([Row("S1", "h5ad", counts=h5ad, slide=h5ad)])[0]


def test_sparse_columns_that_are_not_there_are_refused(h5ad):
    with h5py.File(h5ad, "r+") as file:
        file["X/indices"][3] = 1 << 20
    with pytest.raises(ReadError, match="is not a whole h5ad file"):
        read_anndata(h5ad, "AnnData")


def test_pointers_without_a_sign_that_decrease_are_refused():
    matrix = sp.csr_matrix(np.eye(3, dtype=np.float32))
    matrix.indptr = np.array([0, 3, 1, 3], dtype=np.uint32)
    with pytest.raises(ValueError, match="index pointers decrease"):
        check_sparse(matrix)


def heaps(content):
    found, here = [], content.find(b"GCOL\x01\0\0\0")
    while here >= 0:
        found.append(here)
        here = content.find(b"GCOL\x01\0\0\0", here + 1)
    return found


@pytest.mark.parametrize("size", [0, 2055, 1 << 40])
def test_a_text_with_another_size_does_not_hang_the_reader(h5ad, size):
    content = bytearray(h5ad.read_bytes())
    first = heaps(content)[0] + 16
    struct.pack_into("<Q", content, first + 8, size)
    if size == 0:
        struct.pack_into("<H", content, first, 0)
    h5ad.write_bytes(content)
    with pytest.raises(ReadError, match="which its heap cannot hold"):
        read_anndata(h5ad, "AnnData")


@pytest.mark.parametrize("keep", [0, 1, 8, 100, 2000, 5000])
def test_a_file_that_was_cut_is_refused(h5ad, keep):
    h5ad.write_bytes(h5ad.read_bytes()[:keep])
    with pytest.raises(ReadError, match=r"made\.h5ad is not a whole h5ad file"):
        read_anndata(h5ad, "AnnData")


def texts_of_kind(content, kind):
    """The file with its variable lengths said to be of another kind; 1 are texts."""
    of_texts = b"\x19%c\x01\0\x10\0\0\0"
    assert of_texts % 1 in content
    return content.replace(of_texts % 1, of_texts % kind)


@pytest.mark.parametrize("kind", [2, 3, 15])
def test_a_variable_length_that_is_no_text_and_no_row_does_not_crash_the_reader(h5ad, kind):
    h5ad.write_bytes(texts_of_kind(h5ad.read_bytes(), kind))
    with pytest.raises(ReadError, match=f"encoding-type of / is of a variable length of kind {kind}, which is none"):
        read_anndata(h5ad, "AnnData")


@pytest.mark.parametrize("dtype", [h5py.string_dtype(), [("a", h5py.string_dtype())], (h5py.string_dtype(), (2,))])
def test_such_a_variable_length_is_found_wherever_it_is_in_a_type(tmp_path, dtype):
    path = tmp_path / "t.h5"
    with h5py.File(path, "w") as file:
        kind = h5py.h5t.py_create(np.dtype(dtype), logical=True)
        h5py.h5d.create(file.id, b"texts", kind, h5py.h5s.create_simple((3,)))
    with opened_hdf5(path):
        pass
    path.write_bytes(texts_of_kind(path.read_bytes(), 3))
    with pytest.raises(ReadError, match="texts is of a variable length of kind 3"), opened_hdf5(path):
        pass


def test_rows_of_variable_length_stay_rows(tmp_path):
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file.create_dataset("rows", (2,), h5py.vlen_dtype(np.int32))[0] = [1, 2]
    with opened_hdf5(tmp_path / "v.h5") as file:
        np.testing.assert_array_equal(file["rows"][0], [1, 2])


def in_itself(file):
    file["uns/again"] = h5py.SoftLink("/uns")


def hard_in_itself(file):
    file["uns/again"] = file["/"]


def doubled(file):
    """40 groups, each twice in the one before: 2**40 ways to the last."""
    inner = file.create_group("uns/g")
    for number in range(40):
        outer = file.create_group(f"uns/g{number}")
        outer["a"], outer["b"], inner = inner, inner, outer


@pytest.mark.parametrize("link", [in_itself, hard_in_itself, doubled])
def test_groups_that_are_linked_twice_are_refused(h5ad, link):
    with h5py.File(h5ad, "r+") as file:
        link(file)
    with pytest.raises(ReadError, match="is a second link to a group, which is not followed"):
        read_anndata(h5ad, "AnnData")


def test_links_to_arrays_and_to_nothing_are_no_danger(h5ad):
    with h5py.File(h5ad, "r+") as file:
        file["here"], file["nowhere"] = h5py.SoftLink("/obs/kind/codes"), h5py.SoftLink("/x")
    with opened_hdf5(h5ad) as file:
        assert file["here"].shape == (4,)


@pytest.mark.parametrize("shape", [(1 << 56, 3), (-1, 3), (3, 4), (4,), 4])
@pytest.mark.parametrize("old", [False, True])
def test_a_sparse_matrix_that_claims_other_rows_is_refused(h5ad, shape, old):
    with h5py.File(h5ad, "r+") as file:
        del file["X"].attrs["shape"]
        file["X"].attrs["h5sparse_shape" if old else "shape"] = shape
        if old:
            file["X"].attrs["h5sparse_format"] = np.bytes_("csr")
            del file["X"].attrs["encoding-type"]
    with pytest.raises(ReadError, match=r"X claims shape .* with 5 index pointers; wanted one more than rows"):
        read_anndata(h5ad, "AnnData")


def test_sparse_columns_have_a_pointer_each(h5ad):
    made = anndata.read_h5ad(h5ad)
    made.X = sp.csc_matrix(made.X)
    made.write_h5ad(h5ad)
    assert read_anndata(h5ad, "AnnData").shape == (4, 3)
    with h5py.File(h5ad, "r+") as file:
        file["X"].attrs["shape"] = (4, 1 << 56)
    with pytest.raises(ReadError, match=r"X claims shape .* with 4 index pointers"):
        read_anndata(h5ad, "AnnData")


def arrays(file):
    for number in range(40):
        file.create_dataset(f"a{number}", (1000, 1000), "f8", chunks=(1000, 1000))


def links(file):
    file.create_dataset("a", (1000, 1000), "f8", chunks=(1000, 1000))
    for number in range(20):
        file[f"hard{number}"], file[f"soft{number}"] = file["a"], h5py.SoftLink("/a")


@pytest.mark.parametrize("make", [arrays, links])
def test_arrays_that_only_together_claim_too_much_are_refused(tmp_path, make):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        make(file)
    told = r"its arrays claim 0\.\d+ GiB together, which this file cannot hold"
    with pytest.raises(ReadError, match=told), opened_hdf5(tmp_path / "a.h5"):
        pass
