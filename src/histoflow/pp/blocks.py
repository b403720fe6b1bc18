"""Features of many patches, block by block: each block is kept, so that a killed run is taken up where it stopped."""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from histoflow._files import atomic_path, locked
from histoflow._progress import track
from histoflow.pp.encoders import Encoder

Floats = NDArray[np.float32]
ReadBlock = Callable[[slice], NDArray[np.uint8]]
"""Gives some of the patches, uint8 (n_some, height, width, 3)."""

BLOCK = 128
"""Patches per cached block; boundaries are fixed, so that a killed run and its successor agree."""
_DIGEST_BYTES = 32


def cached_features(
    target: Path,
    n_patches: int,
    read: ReadBlock,
    encoder: Encoder,
    *,
    batch_size: int = 32,
    device: str = "cpu",
    num_workers: int = 1,
    label: str = "encoding",
) -> Floats:
    """Features of patches, from a file where they are there, else computed and kept in it.

    Parameters
    ----------
    target
        The file; its name must tell everything that the features depend on.
    n_patches
        How many there are.
    read
        Reads some of them, of the size that the encoder takes.
    encoder
        What describes a patch.
    batch_size
        Patches encoded at once; it never changes a number.
    device
        Where the encoder runs.
    num_workers
        Threads that read patches ahead of the encoder; it never changes a number.
    label
        What the progress bar says.

    Returns
    -------
    float32, shape (n_patches, n_features).
    """
    with locked(target):
        stored = _load(target, (n_patches, encoder.n_features))
        if stored is None:
            encode = _Encode(encoder, batch_size, device)
            stored = _encoded(target, n_patches, read, encode, num_workers, label)
            _store(target, stored)
            # A killed run may have left an unfinished block in it.
            shutil.rmtree(target.with_suffix(".parts"), ignore_errors=True)
    return stored


class _Encode:
    """From patches (n_patches, height, width, 3) to features (n_patches, n_features), some at once."""

    def __init__(self, encoder: Encoder, batch_size: int, device: str) -> None:
        self.encoder, self.batch_size, self.device = encoder, batch_size, device

    def __call__(self, patches: NDArray[np.uint8]) -> Floats:
        starts = range(0, len(patches), self.batch_size)
        return np.concatenate([self.encoder(patches[i : i + self.batch_size], self.device) for i in starts])


def _encoded(target: Path, n_patches: int, read: ReadBlock, encode: _Encode, num_workers: int, label: str) -> Floats:
    """Encode block by block, each block kept, then all of them together."""
    folder = target.with_suffix(".parts")
    blocks = [slice(start, min(start + BLOCK, n_patches)) for start in range(0, n_patches, BLOCK)]
    paths = [folder / f"{number:06d}.npy" for number in range(len(blocks))]
    shapes = [(block.stop - block.start, encode.encoder.n_features) for block in blocks]
    missing = [i for i, path in enumerate(paths) if _load(path, shapes[i]) is None]
    with ThreadPoolExecutor(num_workers) as reader:  # the next blocks are read while this one is encoded
        queue = [reader.submit(read, blocks[i]) for i in missing[:num_workers]]
        for place, i in enumerate(track(missing, label)):
            ahead = place + num_workers
            queue += [reader.submit(read, blocks[j]) for j in missing[ahead : ahead + 1]]
            _store(paths[i], encode(queue.pop(0).result()))
    return np.concatenate([np.load(path, allow_pickle=False) for path in paths])


def _load(path: Path, shape: tuple[int, int]) -> Floats | None:
    """A cached array, or None if there is none or it is not, byte for byte, what was stored."""
    if not path.is_file():
        return None
    content = path.read_bytes()
    body, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        return None
    try:
        stored: Floats = np.load(io.BytesIO(body), allow_pickle=False)
    except (ValueError, EOFError, OSError):  # objects, which would be unpickled, are no features
        return None
    return stored if stored.shape == shape and stored.dtype == np.float32 else None


def _store(path: Path, features: Floats) -> None:
    """Write an array as npy, followed by the SHA-256 of it, which numpy does not mind."""
    body = io.BytesIO()
    np.save(body, features, allow_pickle=False)
    with atomic_path(path) as temporary:
        temporary.write_bytes(body.getvalue() + hashlib.sha256(body.getvalue()).digest())
