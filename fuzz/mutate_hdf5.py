"""Mutator of HDF5: arrays, attributes and links are changed through the library, so that the file stays whole."""

from __future__ import annotations

import hashlib
import io
import random
from typing import Any

import h5py
import numpy as np

from fuzz.values import BYTES, FLOATS, SIZES, TEXTS

_ERRORS = (
    OSError,
    MemoryError,
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    OverflowError,
    AttributeError,
    IndexError,
)
_DAMAGED: set[bytes] = set()
"""Digests of what came of changed bytes: the library writes into no such file, as that may break the process."""
_HUGE = (1_000_000_000, 300_000_000, 1 << 40)


def mutate_hdf5(data: bytes, rng: random.Random) -> bytes:
    """Replace, drop, swap or link one object or attribute; in half of the cases flip, cut or write bytes.

    Of a file whose bytes were changed before, bytes are changed again.
    """
    if rng.random() < 0.5 or hashlib.sha256(data).digest() in _DAMAGED:
        return _bytes(data, rng)
    buffer = io.BytesIO(data)
    try:
        with h5py.File(buffer, "r+") as file:
            names: list[str] = []
            file.visit(names.append)
            if names:
                rng.choice(_CHANGES)(file, rng.choice(sorted(names)), rng)
        return buffer.getvalue()
    except _ERRORS:
        return _bytes(data, rng)


def _bytes(data: bytes, rng: random.Random) -> bytes:
    changed = _changed_bytes(data, rng)
    if changed != data:
        _DAMAGED.add(hashlib.sha256(changed).digest())
    return changed


def _changed_bytes(data: bytes, rng: random.Random) -> bytes:
    if not data:
        return rng.choice(BYTES)
    changed = bytearray(data)
    if rng.random() < 0.15:
        return bytes(changed[: rng.randrange(len(changed))])
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        here = rng.randrange(len(changed))
        if rng.random() < 0.3:
            size = rng.choice(SIZES).to_bytes(8, "little")[: rng.choice((1, 2, 4, 8))]
            changed[here : here + len(size)] = size
        else:
            changed[here] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _replace(file: h5py.File, name: str, value: Any, **how: Any) -> None:
    attributes = dict(file[name].attrs)
    del file[name]
    file.create_dataset(name, data=value, **how) if value is not None else file.create_dataset(name, **how)
    for key, held in attributes.items():
        file[name].attrs[key] = held


def _array(file: h5py.File, name: str) -> np.ndarray | None:
    thing = file[name]
    return np.asarray(thing[()]) if isinstance(thing, h5py.Dataset) and thing.size < 1 << 16 else None


def _drop(file: h5py.File, name: str, rng: random.Random) -> None:
    del file[name]


def _rename(file: h5py.File, name: str, rng: random.Random) -> None:
    file.move(name, name.rpartition("/")[0] + "/" + rng.choice(("x", "shape", "data", "features", "coords", "é")))


def _swap(file: h5py.File, name: str, rng: random.Random) -> None:
    names: list[str] = []
    file.visit(names.append)
    other = rng.choice(names)
    file.move(name, "kept aside")
    file.move(other, name)
    file.move("kept aside", other)


def _link(file: h5py.File, name: str, rng: random.Random) -> None:
    del file[name]
    links = (h5py.SoftLink("/"), h5py.SoftLink("/nowhere"), h5py.SoftLink("/" + name), h5py.ExternalLink("x.h5", "/"))
    file[name] = rng.choice((*links, h5py.ExternalLink("/etc/passwd", "/a")))


def _group(file: h5py.File, name: str, rng: random.Random) -> None:
    """A group where a dataset was, or a dataset where a group was."""
    is_group = isinstance(file[name], h5py.Group)
    del file[name]
    file.create_dataset(name, data=1) if is_group else file.create_group(name)


def _shape(file: h5py.File, name: str, rng: random.Random) -> None:
    values = _array(file, name)
    if values is not None and values.ndim:
        short = values[: rng.randrange(len(values) + 1)] if len(values) else values
        shaped = (
            short,
            values[None],
            values.T,
            values.reshape(-1),
            values[..., None],
            np.concatenate([values, values]),
        )
        _replace(file, name, rng.choice((*shaped, values.reshape(-1)[0] if values.size else 0)))


def _values(file: h5py.File, name: str, rng: random.Random) -> None:
    values = _array(file, name)
    if values is None or not values.size:
        return
    flat = values.reshape(-1).copy()
    for _ in range(rng.choice((1, 1, 3, flat.size))):
        place = rng.randrange(flat.size)
        if flat.dtype.kind == "f":
            flat[place] = rng.choice(FLOATS)
        elif flat.dtype.kind in "iu":
            limits = np.iinfo(flat.dtype)
            flat[place] = rng.choice((0, 1, limits.min, limits.max, flat.size, rng.randint(-3 if limits.min else 0, 9)))
        elif flat.dtype.kind in "SO":
            flat[place] = rng.choice((rng.choice(TEXTS).encode("utf-8", "surrogatepass"), b"\xff\xfe", flat[0]))
    _replace(file, name, flat.reshape(values.shape), dtype=file[name].dtype)


def _type(file: h5py.File, name: str, rng: random.Random) -> None:
    values = _array(file, name)
    if values is None:
        return
    kinds = ("f2", "f4", "f8", "i1", "u1", "i8", "u8", "?", "c16", "S3", ">f4", "V4")
    if rng.random() < 0.2:
        _replace(file, name, None, shape=values.shape, dtype=h5py.ref_dtype if rng.random() < 0.5 else [("a", "f4")])
    elif values.dtype.kind in "fiub":
        with np.errstate(all="ignore"):
            _replace(file, name, values.astype(rng.choice(kinds[:9])))
    else:
        _replace(file, name, np.zeros(values.shape, rng.choice(kinds)))


def _huge(file: h5py.File, name: str, rng: random.Random) -> None:
    """A header that claims what is not there: chunks that were never written."""
    thing = file[name]
    if not isinstance(thing, h5py.Dataset):
        return
    shape = list(thing.shape) or [1]
    shape[rng.randrange(len(shape))] = rng.choice(_HUGE)
    dtype = thing.dtype
    _replace(file, name, None, shape=tuple(shape), dtype=dtype, chunks=tuple(min(side, 1000) or 1 for side in shape))


def _huge_and_packed(file: h5py.File, name: str, rng: random.Random) -> None:
    """As many megabytes of zeros as fit into an input once they are packed."""
    thing = file[name]
    if isinstance(thing, h5py.Dataset) and thing.dtype.kind in "fiu":
        values = np.zeros((1 << 16, *thing.shape[1:]), thing.dtype)
        if values.nbytes < 1 << 22:
            _replace(file, name, values, compression="gzip", compression_opts=1)


def _external(file: h5py.File, name: str, rng: random.Random) -> None:
    """Values that lie in another file."""
    thing = file[name]
    if isinstance(thing, h5py.Dataset) and thing.size:
        _replace(file, name, None, shape=thing.shape, dtype="u1", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])


def _attribute(file: h5py.File, name: str, rng: random.Random) -> None:
    attributes = rng.choice((file.attrs, file[name].attrs))
    keys = sorted(attributes)
    if not keys:
        return
    key = rng.choice(keys)
    what = rng.randrange(5)
    if what == 0:
        del attributes[key]
    elif what == 1:
        attributes[key] = rng.choice(TEXTS).replace("\0", "")
    elif what == 2:
        attributes[key] = rng.choice(FLOATS)
    elif what == 3:
        attributes[key] = rng.choice((np.arange(3), np.zeros(0), np.void(b"\x80\x02."), [b"\xff"], -1, 1 << 62))
    else:
        attributes[key] = attributes[rng.choice(keys)]


_CHANGES = (
    *(_drop, _rename, _swap, _link, _group, _shape, _shape, _values, _values, _values, _type, _type, _huge),
    *(_huge_and_packed, _external, _attribute, _attribute, _attribute),
)
