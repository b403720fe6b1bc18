"""Count matrices: every format gives the same counts, and what is not counts is refused."""

import gzip

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from histoflow._errors import CountsError, GeneNamesWarning, ReadError
from histoflow.io.arrays import (
    check_counts,
    is_counts,
    read_10x_h5,
    read_10x_mtx,
    read_counts_table,
    unique_names,
)

COUNTS = np.array([[0.0, 3, 1], [2, 0, 5]])


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csc_array])
def test_counts_pass_in_every_form(form):
    check_counts(form(COUNTS), "S")


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix])
@pytest.mark.parametrize(
    ("value", "text"),
    [(np.nan, "NaN or infinite"), (np.inf, "NaN or infinite"), (-1, "negative"), (0.5, "not whole numbers")],
)
def test_other_values_are_counted_and_their_gene_named(form, value, text):
    wrong = COUNTS.copy()
    wrong[:, 2] = value
    with pytest.raises(CountsError, match=f"section S holds no raw counts: 2 values are {text}, first in gene C"):
        check_counts(form(wrong), "S", genes=list("ABC"))


def test_layers_with_counts_are_named():
    with pytest.raises(CountsError, match=r'first in column 0; counts are in layers\["counts"\]: make them X'):
        check_counts(np.log1p(COUNTS), "S", ['layers["counts"]'])
    assert is_counts(COUNTS)
    assert not is_counts(np.log1p(COUNTS))


@given(st.lists(st.sampled_from(["A", "B", "A-1", "A-2", "B-1"]), max_size=12))
@pytest.mark.filterwarnings("ignore::histoflow._errors.GeneNamesWarning")
def test_names_become_unique_and_first_ones_stay(names):
    unique = unique_names(names, "S")
    assert len(set(unique)) == len(names)
    for place, (before, after) in enumerate(zip(names, unique, strict=True)):
        assert after.startswith(before)
        assert (after == before) == (before not in names[:place])


def test_repeated_names_are_counted():
    with pytest.warns(GeneNamesWarning, match="S: 2 gene names are repeated"):
        assert unique_names(list("ABACB"), "S") == ["A", "B", "A-1", "C", "B-1"]


@pytest.mark.parametrize("matrix", ["h5", "h5-v2", "mtx"])
def test_ten_x_formats_hold_the_same(make_outs, matrix):
    outs = make_outs(matrix=matrix)
    read, suffix = (read_10x_mtx, "") if matrix == "mtx" else (read_10x_h5, ".h5")
    with pytest.warns(GeneNamesWarning):
        counts = read(outs.folder / f"filtered_feature_bc_matrix{suffix}")
    n_genes = 7 if matrix == "h5-v2" else 6  # version 2 knew no other features
    assert counts.obs_names.tolist() == outs.barcodes
    assert counts.var_names.tolist()[:6] == ["ACTB", "MT-CO1", "ACTB-2", "KRT8", "ACTB-1", "IGKC"]
    assert counts.var["gene_ids"].tolist() == [f"ENSG{i}" for i in range(n_genes)]
    np.testing.assert_array_equal(counts.X.toarray(), outs.counts[:, :n_genes])
    assert counts.X.format == "csr"
    assert counts.X.dtype == np.float32


def test_a_damaged_h5_is_named(make_outs):
    path = make_outs().folder / "filtered_feature_bc_matrix.h5"
    whole = path.read_bytes()
    for part in (whole[: len(whole) // 2], whole[:100], b"text"):
        path.write_bytes(part)
        with pytest.raises(ReadError, match=r"filtered_feature_bc_matrix\.h5 is not a whole 10x count matrix"):
            read_10x_h5(path)
    path.unlink()
    with pytest.raises(ReadError, match="does not exist"):
        read_10x_h5(path)


@pytest.mark.parametrize(
    ("key", "value"), [("shape", [10**9, 10**9]), ("indptr", [0, 10**9]), ("indices", [0]), ("barcodes", [b"A"])]
)
def test_sizes_are_compared_before_anything_is_loaded(make_outs, key, value):
    import h5py

    path = make_outs().folder / "filtered_feature_bc_matrix.h5"
    with h5py.File(path, "a") as file:
        del file["matrix"][key]
        file["matrix"][key] = np.array(value)
    with pytest.raises(ReadError, match=r"not a whole 10x count matrix \(.* genes and .* barcodes"):
        read_10x_h5(path)


def test_a_gene_number_out_of_range_is_refused(make_outs):
    import h5py

    path = make_outs().folder / "filtered_feature_bc_matrix.h5"
    with h5py.File(path, "a") as file:
        file["matrix/indices"][0] = 99
    with pytest.raises(ReadError, match="not a whole 10x count matrix"):
        read_10x_h5(path)


@pytest.mark.parametrize(
    ("line", "damaged"),
    [
        (-1, b"1 1 2\0\xca\x9a; 2"),  # scipy's reader crashes the process on such lines
        (-1, b"1 1"),
        (-1, b"1 1 2 3"),
        (-1, b"0 1 2"),
        (-1, b"1 99999 2"),
        (-1, b"1 1 two"),
        (-1, b""),
        (0, b"%%MatrixMarket matrix array integer general"),
        (0, b"%%MatrixMarket matrix coordinate integer symmetric"),
    ],
)
def test_a_damaged_mtx_is_refused(line, damaged, make_outs):
    folder = make_outs(matrix="mtx").folder / "filtered_feature_bc_matrix"
    lines = gzip.decompress((folder / "matrix.mtx.gz").read_bytes()).splitlines()
    lines[line] = damaged
    (folder / "matrix.mtx.gz").write_bytes(gzip.compress(b"\n".join(lines)))
    with pytest.raises(ReadError, match="is not a whole 10x count matrix"):
        read_10x_mtx(folder)


def test_damaged_mtx_parts_are_named(make_outs):
    folder = make_outs(matrix="mtx").folder / "filtered_feature_bc_matrix"
    matrix = folder / "matrix.mtx.gz"
    whole = matrix.read_bytes()
    matrix.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ReadError, match="filtered_feature_bc_matrix is not a whole 10x count matrix"):
        read_10x_mtx(folder)
    matrix.write_bytes(gzip.compress(gzip.decompress(whole).replace(b"7 ", b"8 ", 1)))
    with pytest.raises(ReadError, match="not a whole 10x count matrix"):
        read_10x_mtx(folder)
    (folder / "barcodes.tsv.gz").unlink()
    with pytest.raises(ReadError, match=r"barcodes\.tsv does not exist"):
        read_10x_mtx(folder)


TABLE = pd.DataFrame(COUNTS.astype(int), index=["1x2", "3x4"], columns=list("ABC"))


@pytest.mark.parametrize("name", ["c.tsv", "c.tsv.gz", "c.csv", "c.csv.gz"])
def test_tables_are_read_in_every_form(tmp_path, name):
    TABLE.to_csv(tmp_path / name, sep="," if "csv" in name else "\t")
    counts = read_counts_table(tmp_path / name)
    np.testing.assert_array_equal(counts.X.toarray(), COUNTS)
    assert counts.obs_names.tolist() == ["1x2", "3x4"]
    assert counts.var_names.tolist() == list("ABC")


def test_a_header_may_lack_the_corner(tmp_path):
    (tmp_path / "c.tsv").write_text("A\tB\n1x1\t4\t5\n")
    counts = read_counts_table(tmp_path / "c.tsv")
    assert counts.var_names.tolist() == ["A", "B"]
    np.testing.assert_array_equal(counts.X.toarray(), [[4, 5]])


def test_repeated_columns_are_not_lost(tmp_path):
    (tmp_path / "c.tsv").write_text("\tA\tA\n1x1\t4\t5\n")
    with pytest.warns(GeneNamesWarning):
        counts = read_counts_table(tmp_path / "c.tsv")
    assert counts.var_names.tolist() == ["A", "A-1"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "No columns"),
        ("\tA\tB\n", "No columns"),
        ("\tA\tB\n1x1\t1\tmany\n", "many"),
        ("\tA\tB\tC\n1x1\t1\t2\n", "4 names in the header, 1 rows of 2 numbers"),
        ("\tA\n1x1\t1\n1x1\t2\n", "spot 1x1 comes more than once"),
    ],
)
def test_what_is_no_table_of_counts_is_named(tmp_path, text, fault):
    (tmp_path / "c.tsv").write_text(text)
    with pytest.raises(ReadError, match=rf"c\.tsv is not a table of numbers.*{fault}"):
        read_counts_table(tmp_path / "c.tsv")


def test_a_truncated_gzip_is_named(tmp_path):
    TABLE.to_csv(tmp_path / "c.tsv.gz", sep="\t")
    whole = (tmp_path / "c.tsv.gz").read_bytes()
    (tmp_path / "c.tsv.gz").write_bytes(whole[:-10])
    with pytest.raises(ReadError, match="it may be truncated"):
        read_counts_table(tmp_path / "c.tsv.gz")
