"""HDF5 from elsewhere: sizes, links and where values lie are looked at before any value is read."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anndata
import h5py
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
    names: list[str] = []
    file.visit(names.append)
    for name in names:
        thing = file[name]
        if not isinstance(thing, h5py.Dataset) or not thing.shape:
            continue
        if thing.external or thing.is_virtual:
            raise ReadError(f"the values of {name} lie in another file, which is not opened")
        if (claimed := thing.size * thing.dtype.itemsize) > most:
            raise ReadError(
                f"{name} claims shape {thing.shape}, {claimed / 2**30:.3g} GiB, in a file of {file_bytes} bytes"
            )


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
        return anndata.read_h5ad(path)
    except READING_ERRORS as err:
        raise ReadError(f"{path} is not a whole h5ad file ({err}); it may be truncated: fetch or make it anew") from err
