"""Features of many patches, block by block: each block is kept, so that a killed run is taken up where it stopped."""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from histoflow._files import IN_MEMORY, atomic_path, locked
from histoflow._progress import track
from histoflow.pp.encoders import Encoder

Floats = NDArray[np.float32]
ReadBlock = Callable[[slice], NDArray[np.uint8]]
"""Gives some of the patches, uint8 (n_some, height, width, 3)."""

BLOCK = 128
"""Patches per cached block; boundaries are fixed, so that a killed run and its successor agree."""
_DIGEST_BYTES = 32
_CHUNK_BYTES = 1 << 22


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
    float32, shape (n_patches, n_features); where they are more than 2²⁷ numbers, read-only and mapped from the file.
    """
    shape = (n_patches, encoder.n_features)
    with locked(target):
        stored = _load(target, shape)
        if stored is None:
            encode = _Encode(encoder, batch_size, device)
            parts = _encoded(target, n_patches, read, encode, num_workers, label)
            _store(target, shape, (np.load(path, allow_pickle=False) for path in parts))
            stored = _opened(target)
        # A killed run may have left an unfinished block in it, or been killed just here.
        shutil.rmtree(target.with_suffix(".parts"), ignore_errors=True)
    return stored


class _Encode:
    """From patches (n_patches, height, width, 3) to features (n_patches, n_features), some at once.

    A block goes to the device in one piece, out of pages that the device reads by itself, and its features come back in
    one piece: between batches nothing is copied and nothing is waited for.
    """

    def __init__(self, encoder: Encoder, batch_size: int, device: str) -> None:
        self.encoder, self.batch_size, self.device = encoder, batch_size, torch.device(device)

    def ready(self, patches: NDArray[np.uint8]) -> Tensor:
        """Patches as a tensor that the device takes; called where they are read."""
        images = torch.from_numpy(patches)
        return images.pin_memory() if self.device.type == "cuda" else images

    def __call__(self, patches: Tensor) -> Floats:
        images = patches.to(self.device, non_blocking=True)
        encoded = [self.encoder.encode_images(part) for part in torch.split(images, self.batch_size)]
        return torch.cat(encoded).cpu().numpy()


def _encoded(
    target: Path, n_patches: int, read: ReadBlock, encode: _Encode, num_workers: int, label: str
) -> list[Path]:
    """Encode block by block; each is kept in a file of its own."""
    folder = target.with_suffix(".parts")
    blocks = [slice(start, min(start + BLOCK, n_patches)) for start in range(0, n_patches, BLOCK)]
    paths = [folder / f"{number:06d}.npy" for number in range(len(blocks))]
    shapes = [(block.stop - block.start, encode.encoder.n_features) for block in blocks]
    missing = [i for i, path in enumerate(paths) if _load(path, shapes[i]) is None]
    wanted = [blocks[i] for i in missing]
    with closing(_read_ahead(wanted, lambda block: encode.ready(read(block)), num_workers)) as ahead:
        for i, patches in zip(track(missing, label), ahead, strict=True):
            _store(paths[i], shapes[i], [encode(patches)])
    return paths


def _read_ahead(
    blocks: list[slice], read: Callable[[slice], Tensor], num_workers: int
) -> Generator[Tensor, None, None]:
    """Blocks in order; the next ones, as many as there are workers, are read while one is encoded."""
    with ThreadPoolExecutor(num_workers) as reader:
        queue = [reader.submit(read, block) for block in blocks[:num_workers]]
        for place in range(len(blocks)):
            patches = queue.pop(0).result()
            queue += [reader.submit(read, block) for block in blocks[place + num_workers :][:1]]
            yield patches


def _load(path: Path, shape: tuple[int, int]) -> Floats | None:
    """A cached array, or None if there is none or it is not, byte for byte, what was stored."""
    if not path.is_file() or not _is_whole(path):
        return None
    try:
        stored = _opened(path)
    except (ValueError, EOFError, OSError):  # objects, which would be unpickled, are no features
        return None
    return stored if stored.shape == shape and stored.dtype == np.float32 else None


def _is_whole(path: Path) -> bool:
    """Whether a file ends with the SHA-256 of what is before."""
    digest, left = hashlib.sha256(), path.stat().st_size - _DIGEST_BYTES
    with path.open("rb") as handle:
        while left > 0 and (chunk := handle.read(min(left, _CHUNK_BYTES))):
            digest.update(chunk)
            left -= len(chunk)
        return handle.read() == digest.digest()


def _opened(path: Path) -> Floats:
    """The array in a file; mapped where it is large, as it then need not fit into memory."""
    large = path.stat().st_size > IN_MEMORY * np.dtype(np.float32).itemsize
    stored: Floats = np.load(path, mmap_mode="r" if large else None, allow_pickle=False)
    return stored


def _store(path: Path, shape: tuple[int, int], rows: Iterable[Floats]) -> None:
    """Write an array, some rows after the other, as npy, followed by the SHA-256 of it, which numpy does not mind."""
    header = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, described)
    digest = hashlib.sha256()
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        for piece in chain([header.getvalue()], (np.ascontiguousarray(some).tobytes() for some in rows)):
            digest.update(piece)
            handle.write(piece)
        handle.write(digest.digest())
