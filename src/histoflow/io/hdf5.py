"""HDF5 from elsewhere: sizes, links and where values lie are looked at before any value is read."""

from __future__ import annotations

import math
import mmap
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata
import h5py
import scipy.sparse as sp
from anndata import AnnData
from anndata._io.specs.registry import IORegistryError

from histoflow._errors import ReadError
from histoflow.io.images import MOST_PACKED, existing_file

READING_ERRORS = (
    *(OSError, EOFError, LookupError, RuntimeError, TypeError, ValueError, AttributeError, ArithmeticError),
    *(zlib.error, IORegistryError, AssertionError),
)
"""What libraries raise on a file that is damaged, or is another one than it seems."""

_SMALL_BYTES = 1 << 26
_MOST_ATTRIBUTE = 1 << 26
_MOST_SCANNED = 1 << 32
_HEAP = b"GCOL\x01\0\0\0"


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
        _check_heaps(path)
        yield file


def _check_links(file: h5py.File) -> None:
    names: list[str] = []
    file.visit_links(names.append)  # nothing may be raised while the library walks
    for name in names:
        link = file.get(name, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise ReadError(f"{name} lies in another file, {link.filename}, which is not opened")


def _check_sizes(file: h5py.File, file_bytes: int) -> None:
    most = max(_SMALL_BYTES, MOST_PACKED * file_bytes)
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


def _check_heaps(path: Path) -> None:
    """Refuse texts whose sizes do not fit their heap: the library walks on for ever where one says 0.

    A global heap collection after the HDF5 file format, III.E: ``GCOL``, version 1, its size, and objects of index,
    count, size and data up to a multiple of 8 bytes; index 0 is what is left.
    """
    if not 0 < path.stat().st_size <= _MOST_SCANNED:
        return
    with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as held:
        here = held.find(_HEAP)
        while here >= 0:
            _check_heap(held, here)
            here = held.find(_HEAP, here + 1)


def _check_heap(held: mmap.mmap, start: int) -> None:
    if start + 16 > len(held):
        return
    end = start + int(struct.unpack_from("<Q", held, start + 8)[0])
    here = start + 16
    while here + 16 <= min(end, len(held)):
        index, _, size = struct.unpack_from("<HH4xQ", held, here)
        step = size if index == 0 else 16 + (size + 7) // 8 * 8
        if step < 16 or here + step > end or (index == 0 and here + step != end):
            raise ReadError(f"a text at byte {here} has a size of {size}, which its heap cannot hold")
        here += step


def _check_size(name: str, shape: tuple[int, ...] | None, itemsize: int, most: int) -> None:
    claimed = math.prod(shape or ()) * itemsize
    if claimed > most:
        raise ReadError(f"{name} claims shape {shape}, {claimed / 2**30:.3g} GiB, which this file cannot hold")


def _checked(table: AnnData) -> AnnData:
    """The table itself, once its sparse matrices point to rows and columns that are there: scipy does not look."""
    raw = None if table.raw is None else table.raw.X
    for matrix in (table.X, *table.layers.values(), *table.obsm.values(), *table.obsp.values(), raw):
        if sp.issparse(matrix) and hasattr(matrix, "indptr"):
            check_sparse(matrix)
    return table


def check_sparse(matrix: Any) -> None:
    """Refuse a compressed matrix whose pointers lead elsewhere; scipy would follow them out of its memory.

    Raises
    ------
    ValueError
        The reader that called adds the file.
    """
    pointers = matrix.indptr
    if pointers.dtype.kind != "i" or (pointers[1:] < pointers[:-1]).any():  # which scipy does not always see
        raise ValueError("index pointers decrease, or are no numbers with a sign")
    matrix.check_format(full_check=True)


def read_anndata(path: str | Path, what: str) -> AnnData:
    """Read an h5ad file, once it is seen to be no larger than it looks.

    Parameters
    ----------
    path
        The file.
    what
        Its part, for texts.

    Returns
    -------
    As `anndata.read_h5ad`, in memory.

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
