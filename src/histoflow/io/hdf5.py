"""HDF5 from elsewhere: sizes, links and where values lie are looked at before any value is read."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anndata
import h5py
import scipy.sparse as sp
from anndata import AnnData
from anndata._io.specs.registry import IORegistryError

from histoflow._errors import ReadError
from histoflow.io.images import existing_file

READING_ERRORS = (
    *(OSError, EOFError, LookupError, RuntimeError, TypeError, ValueError, AttributeError, ArithmeticError),
    *(zlib.error, IORegistryError, AssertionError),
)
"""What libraries raise on a file that is damaged, or is another one than it seems."""

_SMALL_BYTES = 1 << 26
_MOST_ATTRIBUTE = 1 << 26
_MOST_PACKED = 1100
"""Deflate makes no file smaller than a part in 1032; what claims more than that was never written."""


@contextmanager
def opened_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open a file to read, once nothing in it lies elsewhere or claims to be larger than it can be.

    Raises
    ------
    ReadError
        Naming what is refused. Other errors are those of h5py.
    """
    with h5py.File(path, "r") as file:
        _check_links(file)
        _check_sizes(file, path.stat().st_size)
        yield file


def _check_links(file: h5py.File) -> None:
    names: list[str] = []
    file.visit_links(names.append)  # nothing may be raised while the library walks
    for name in names:
        link = file.get(name, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise ReadError(f"{name} lies in another file, {link.filename}, which is not opened")


def _check_sizes(file: h5py.File, file_bytes: int) -> None:
    most = max(_SMALL_BYTES, _MOST_PACKED * file_bytes)
    names = ["/"]
    file.visit(names.append)
    for name in names:
        thing = file[name]
        for key in thing.attrs:
            attribute = thing.attrs.get_id(key)
            _check_size(f"attribute {key} of {name}", attribute.shape, attribute.dtype.itemsize, _MOST_ATTRIBUTE)
        if not isinstance(thing, h5py.Dataset) or not thing.shape:
            continue
        if thing.external or thing.is_virtual:
            raise ReadError(f"the values of {name} lie in another file, which is not opened")
        _check_size(name, thing.shape, thing.dtype.itemsize, most)


def _check_size(name: str, shape: tuple[int, ...] | None, itemsize: int, most: int) -> None:
    claimed = math.prod(shape or ()) * itemsize
    if claimed > most:
        raise ReadError(f"{name} claims shape {shape}, {claimed / 2**30:.3g} GiB, which this file cannot hold")


def _checked(table: AnnData) -> AnnData:
    """The table itself, once its sparse matrices point to rows and columns that are there: scipy does not look."""
    raw = None if table.raw is None else table.raw.X
    for matrix in (table.X, *table.layers.values(), *table.obsm.values(), *table.obsp.values(), raw):
        if sp.issparse(matrix) and hasattr(matrix, "check_format"):
            matrix.check_format(full_check=True)
    return table


def read_anndata(path: str | Path, what: str) -> AnnData:
    """Read an h5ad file, once it is seen to be no larger than it looks.

    Parameters
    ----------
    path
        The file.
    what
        Its part, for texts.

    Raises
    ------
    ReadError
        If it is missing, damaged, or lies in other files in part.
    """
    path = existing_file(path, what)
    try:
        with opened_hdf5(path):
            pass
        return _checked(anndata.read_h5ad(path))
    except READING_ERRORS as err:
        raise ReadError(f"{path} is not a whole h5ad file ({err}); it may be truncated: fetch or make it anew") from err
