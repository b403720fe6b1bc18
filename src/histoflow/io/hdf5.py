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
import numpy as np
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
_SPARSE = {"csr": 0, "csr_matrix": 0, "csc": 1, "csc_matrix": 1}
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
        _check_heaps(path)
        _check_things(file, path.stat().st_size)
        yield file


def _check_things(file: h5py.File, file_bytes: int) -> None:
    """Look at all that is in a file; its groups make a tree, or who follows them may never come to an end."""
    most, claimed = max(_SMALL_BYTES, MOST_PACKED * file_bytes), 0
    groups: set[int] = set()
    for name, thing in _things(file):
        _check_attributes(name, thing)
        if isinstance(thing, h5py.Dataset):
            claimed += _check_dataset(name, thing, most)
        elif isinstance(thing, h5py.Group):
            _check_group(name, thing, groups)
    if claimed > most:
        raise ReadError(f"its arrays claim {claimed / 2**30:.3g} GiB together, which this file cannot hold")


def _things(file: h5py.File) -> Iterator[tuple[str, Any]]:
    """The file and what every link in it leads to; of soft links that lead nowhere, nothing."""
    names: list[str] = []
    file.visit_links(names.append)  # nothing may be raised while the library walks
    links = {name: file.get(name, getlink=True) for name in names}
    for name, link in links.items():  # all of them before the first is followed
        if isinstance(link, h5py.ExternalLink):
            raise ReadError(f"{name} lies in another file, {link.filename}, which is not opened")
    yield "/", file
    for name, link in links.items():
        if not isinstance(link, h5py.SoftLink):
            yield name, file[name]
        elif (thing := file.get(name)) is not None:
            yield name, thing


def _check_group(name: str, group: h5py.Group, known: set[int]) -> None:
    """Refuse a group that was met before; `known` holds where each lies."""
    address = h5py.h5o.get_info(group.id).addr
    if address in known:
        raise ReadError(f"{name} is a second link to a group, which is not followed")
    known.add(address)
    _check_pointers(name, group)


def _check_dataset(name: str, dataset: h5py.Dataset, most: int) -> int:
    """Refuse one that claims more than `most` bytes; give back how many it does."""
    _check_type(name, dataset.id.get_type())
    if dataset.shape and (dataset.external or dataset.is_virtual):
        raise ReadError(f"the values of {name} lie in another file, which is not opened")
    return _check_size(name, dataset.shape, dataset.dtype.itemsize, most)


def _check_attributes(name: str, thing: h5py.HLObject) -> None:
    for key in thing.attrs:
        attribute, called = thing.attrs.get_id(key), f"attribute {key} of {name}"
        _check_type(called, attribute.get_type())
        _check_size(called, attribute.shape, attribute.dtype.itemsize, _MOST_ATTRIBUTE)


def _check_type(name: str, kind: Any) -> None:
    """Refuse values of variable length that are neither texts nor rows: the library calls functions that are not there.

    After the HDF5 file format, IV.A.2.d: the lowest four bits of a class of variable length tell which of the two it
    is. An encoded type begins with two bytes of its own, and a byte with the class.
    """
    if isinstance(kind, h5py.h5t.TypeCompoundID):
        for number in range(kind.get_nmembers()):
            _check_type(name, kind.get_member_type(number))
    elif isinstance(kind, h5py.h5t.TypeArrayID | h5py.h5t.TypeVlenID):
        if isinstance(kind, h5py.h5t.TypeVlenID) and (told := kind.encode()[3] & 15):  # texts are TypeStringID
            raise ReadError(f"{name} is of a variable length of kind {told}, which is none; wanted 0 or 1")
        _check_type(name, kind.get_super())


def _check_pointers(name: str, group: h5py.Group) -> None:
    """Refuse a sparse matrix of other rows than it has pointers for: room for these is made before they are read."""
    pointers, known = group.get("indptr"), group.attrs
    kind = known.get("encoding-type", known.get("h5sparse_format"))
    axis = _SPARSE.get(kind.decode() if isinstance(kind, bytes) else str(kind))
    if axis is None or not isinstance(pointers, h5py.Dataset):
        return
    shape: Any = known.get("shape", known.get("h5sparse_shape"))
    if np.shape(shape) != (2,) or int(shape[axis]) + 1 != pointers.size:
        raise ReadError(f"{name} claims shape {shape} with {pointers.size} index pointers; wanted one more than rows")


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


def _check_size(name: str, shape: tuple[int, ...] | None, itemsize: int, most: int) -> int:
    claimed = 0 if shape is None else math.prod(shape) * itemsize
    if claimed > most:
        raise ReadError(f"{name} claims shape {shape}, {claimed / 2**30:.3g} GiB, which this file cannot hold")
    return claimed


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
