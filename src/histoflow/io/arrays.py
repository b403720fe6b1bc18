"""Count matrices: the formats they come in, and the check that they are counts."""

from __future__ import annotations

import gzip
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from histoflow._errors import CountsError, GeneNamesWarning, ReadError
from histoflow.io.hdf5 import READING_ERRORS, check_sparse, opened_hdf5
from histoflow.io.images import existing_file

GENE_EXPRESSION = "Gene Expression"
_MARKET = "%%matrixmarket matrix coordinate {} general"
_LONGEST_LINE = 1 << 16
_FAULTS: dict[str, Callable[[Any], Any]] = {
    "NaN or infinite": lambda values: ~np.isfinite(values),
    "negative": lambda values: values < 0,
    "not whole numbers": lambda values: values != np.rint(values),
}


def check_counts(matrix: Any, name: str, layers: Iterable[str] = (), *, genes: Sequence[str] | None = None) -> None:
    """Refuse a matrix that is not raw counts.

    Parameters
    ----------
    matrix
        (n_spots, n_genes), sparse or dense, supposed to hold counts.
    name
        The section, for texts.
    layers
        Where counts were found instead, named in the text.
    genes
        Names of the columns, for texts.

    Raises
    ------
    CountsError
        If a value is NaN or infinite, negative, or not a whole number: how many, and the first gene concerned.

    Examples
    --------
    >>> check_counts(np.array([[0, 3], [1, 0]]), "C2")
    """
    values = matrix.data if sp.issparse(matrix) else np.asarray(matrix)
    for fault, is_faulty in _FAULTS.items():
        if is_faulty(values).any():
            entries = sp.coo_matrix(matrix)
            where = is_faulty(entries.data)
            column = int(entries.col[where].min())
            first = f"column {column}" if genes is None else f"gene {genes[column]}"
            held = ", ".join(layers)
            raise CountsError(
                f"section {name} holds no raw counts: {int(where.sum())} values are {fault}, first in {first}; "
                + (f"counts are in {held}: make them X" if held else "give the raw counts")
            )


def is_counts(matrix: Any) -> bool:
    """Whether `check_counts` accepts a matrix (n_spots, n_genes)."""
    try:
        check_counts(matrix, "")
    except CountsError:
        return False
    return True


def counts_table(matrix: Any, spots: Iterable[str], genes: pd.DataFrame, source: str) -> AnnData:
    """Counts as an AnnData: X float32 in sparse rows, gene names unique.

    Parameters
    ----------
    matrix
        Counts (n_spots, n_genes).
    spots
        Ids of the rows.
    genes
        One row per column of `matrix`, indexed by gene name.
    source
        Where the counts come from, for texts.

    Raises
    ------
    ValueError
        If a spot comes more than once; the reader that called adds the file.
    """
    ids = pd.Index(list(spots), dtype=object)
    if not ids.is_unique:
        raise ValueError(f"spot {ids[ids.duplicated()][0]} comes more than once")
    genes = genes.set_axis(pd.Index(unique_names(genes.index, source), dtype=object))
    return AnnData(X=sp.csr_matrix(matrix, dtype=np.float32), obs=pd.DataFrame(index=ids), var=genes)


def unique_names(names: Iterable[str], source: str) -> list[str]:
    """Gene names made unique: the n-th repetition of ``A`` becomes ``A-n``, or the next such name not in use.

    Parameters
    ----------
    names
        Gene names in order.
    source
        Where they come from, for texts.

    Warns
    -----
    GeneNamesWarning
        If names were repeated: how many.
    """
    names = list(names)
    taken, seen, unique = set(names), Counter[str](), []
    for name in names:
        chosen = name
        if seen[name]:
            chosen = next(f"{name}-{n}" for n in count(seen[name]) if f"{name}-{n}" not in taken)
            taken.add(chosen)
        seen[name] += 1
        unique.append(chosen)
    repeated = [name for name, times in seen.items() if times > 1]
    if repeated:
        text = f"{source}: {len(repeated)} gene names are repeated and got numbers, such as {repeated[0]}-1"
        warnings.warn(text, GeneNamesWarning, stacklevel=2)
    return unique


def read_10x_h5(path: str | Path) -> AnnData:
    """Read a 10x count matrix in HDF5 (Cell Ranger 3+ and 2), gene expression only.

    Parameters
    ----------
    path
        The ``filtered_feature_bc_matrix.h5``.

    Returns
    -------
    X counts (n_spots, n_genes), ``var`` with ``gene_ids``, ``feature_types`` and ``genome`` where the file has them.

    Raises
    ------
    ReadError
        If the file is missing, truncated, or not such a matrix.
    """
    path = existing_file(path, "count matrix")
    try:
        with opened_hdf5(path) as file:
            return _from_10x(file, str(path))
    except READING_ERRORS as err:
        raise ReadError(f"{path} is not a whole 10x count matrix ({err}); it may be truncated: fetch it again") from err


def _from_10x(file: h5py.File, source: str) -> AnnData:
    if "matrix" in file:
        group, features = file["matrix"], file["matrix/features"]
        columns = {"gene_ids": "id", "feature_types": "feature_type", "genome": "genome"}
        names = features["name"]
    else:
        genomes = [key for key in file if "barcodes" in file[key]]
        if len(genomes) != 1:
            raise ValueError(f"holds {len(genomes)} matrices, one is wanted")
        group = features = file[genomes[0]]
        columns, names = {"gene_ids": "genes"}, features["gene_names"]
    genes = pd.DataFrame({c: _text(features[key]) for c, key in columns.items() if key in features}, index=_text(names))
    shape = _checked_shape(group, len(names))
    matrix = sp.csr_matrix((group["data"][:], group["indices"][:], group["indptr"][:]), shape=shape)
    check_sparse(matrix)
    return _expression_table(matrix, _text(group["barcodes"]), genes, source)


def _checked_shape(group: h5py.Group, n_genes: int) -> tuple[int, int]:
    """Shape (n_spots, n_genes), once the sizes of all parts agree: nothing has been loaded yet."""
    n_spots, n_values = len(group["barcodes"]), len(group["data"])
    claimed = tuple(int(n) for n in group["shape"][:])
    if claimed != (n_genes, n_spots) or len(group["indptr"]) != n_spots + 1:
        raise ValueError(f"shape {claimed} for {n_genes} genes and {n_spots} barcodes")
    if len(group["indices"]) != n_values or n_values > n_genes * n_spots or int(group["indptr"][-1]) != n_values:
        raise ValueError(f"{n_values} values for {n_genes} genes and {n_spots} barcodes")
    return n_spots, n_genes


def _text(dataset: h5py.Dataset) -> list[str]:
    return [value.decode() for value in dataset[:]]


def read_10x_mtx(folder: Path) -> AnnData:
    """Read a 10x count matrix in Matrix Market form, gene expression only.

    Parameters
    ----------
    folder
        Holds ``matrix.mtx``, ``features.tsv`` and ``barcodes.tsv``, gzipped or not.

    Returns
    -------
    X counts (n_spots, n_genes), ``var`` with ``gene_ids`` and ``feature_types``.

    Raises
    ------
    ReadError
        If a file is missing or truncated, or their sizes disagree.
    """
    parts = {part: _gzipped_or_not(folder / part) for part in ("matrix.mtx", "features.tsv", "barcodes.tsv")}
    try:
        genes = pd.read_csv(parts["features.tsv"], sep="\t", header=None, dtype=str)
        spots = pd.read_csv(parts["barcodes.tsv"], sep="\t", header=None, dtype=str)[0]
        genes = genes.rename(columns={0: "gene_ids", 1: "name", 2: "feature_types"}).set_index("name")
        matrix = _matrix_market(parts["matrix.mtx"], (len(genes), len(spots))).T
        return _expression_table(matrix, spots, genes[genes.columns[:2]], str(folder))
    except READING_ERRORS as err:
        raise ReadError(
            f"{folder} is not a whole 10x count matrix ({err}); it may be truncated: fetch it again"
        ) from err


def _matrix_market(path: Path, shape: tuple[int, int]) -> sp.coo_matrix:
    """Read a matrix (n_genes, n_spots) of counts; scipy's own reader may crash the process on a damaged file."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as handle:
        kind = handle.readline(_LONGEST_LINE).lower().split()
        if kind not in (_MARKET.format(field).split() for field in ("integer", "real")):
            raise ValueError(f"{path.name} begins with {' '.join(kind)[:80]!r}, not {_MARKET.format('integer')!r}")
        line = handle.readline(_LONGEST_LINE)
        while line.startswith("%"):
            line = handle.readline(_LONGEST_LINE)
        *claimed, n_values = (int(number) for number in line.split())
        if tuple(claimed) != shape or not 0 <= n_values <= shape[0] * shape[1]:
            raise ValueError(
                f"{n_values} values of shape {tuple(claimed)} for {shape[0]} genes and {shape[1]} barcodes"
            )
        dtypes = {0: np.int64, 1: np.int64, 2: np.int64 if kind[3] == "integer" else np.float64}
        table = (
            pd.read_csv(handle, sep=r"\s+", header=None, dtype=dtypes)
            if n_values
            else pd.DataFrame([], None, [0, 1, 2])
        )
    places = table[[0, 1]].to_numpy(np.int64).T - 1
    if table.shape != (n_values, 3) or (places < 0).any() or (places >= np.array(shape)[:, None]).any():
        raise ValueError(f"{len(table)} lines of {table.shape[1]} numbers for {n_values} values of shape {shape}")
    return sp.coo_matrix((table[2].to_numpy(), tuple(places)), shape=shape)


def _gzipped_or_not(path: Path) -> Path:
    zipped = path.with_name(path.name + ".gz")
    return zipped if zipped.is_file() else existing_file(path, "count matrix")


def _expression_table(matrix: Any, spots: Iterable[str], genes: pd.DataFrame, source: str) -> AnnData:
    """Counts (n_spots, n_genes) of the features that are genes: no antibodies, no control probes."""
    if "feature_types" in genes:
        wanted = (genes["feature_types"] == GENE_EXPRESSION).to_numpy()
        matrix, genes = sp.csr_matrix(matrix)[:, wanted], genes[wanted]
    return counts_table(matrix, spots, genes, source)


def read_counts_table(path: str | Path) -> AnnData:
    """Read a table of counts, one row per spot and one column per gene, tab- or comma-separated, gzipped or not.

    Parameters
    ----------
    path
        The first line names the genes, the first column the spots (``XxY`` for legacy ST).

    Returns
    -------
    X counts (n_spots, n_genes).

    Raises
    ------
    ReadError
        If the table is missing, truncated, empty, has text in it, or rows and header do not fit.
    """
    path = existing_file(path, "counts table")
    separator = table_separator(path)
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt") as handle:
            header = handle.readline().rstrip("\r\n").split(separator)
        table = pd.read_csv(path, sep=separator, header=None, skiprows=1, index_col=0, dtype={0: str}, low_memory=False)
        genes = [gene.strip('"') for gene in header[-table.shape[1] :]]
        if table.size == 0 or len(header) - len(genes) not in (0, 1):
            raise ValueError(f"{len(header)} names in the header, {table.shape[0]} rows of {table.shape[1]} numbers")
        return counts_table(table.to_numpy(np.float32), table.index, pd.DataFrame(index=genes), str(path))
    except READING_ERRORS as err:
        raise ReadError(
            f"{path} is not a table of numbers, a row per spot and a column per gene ({err}); "
            "it may be truncated: fetch it again"
        ) from err


def table_separator(path: Path) -> str:
    """Comma for a name with ``.csv`` in its endings, else a tab."""
    return "," if ".csv" in [suffix.lower() for suffix in path.suffixes] else "\t"
