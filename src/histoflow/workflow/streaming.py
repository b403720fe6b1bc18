"""Predictions written to zarr part by part, so that memory follows neither the places nor the panel."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from tempfile import mkstemp
from typing import Any

import numpy as np
from anndata import AnnData
from anndata.io import write_elem
from numpy.typing import NDArray

from histoflow import models
from histoflow._errors import MissingDependencyError
from histoflow._files import atomic_path, let_go, scratch_folder

_CHUNK_ROWS, _CHUNK = 1 << 14, 1 << 19
"""Rows in a chunk, at most, and numbers: two megabytes."""
_ARRAY = {"encoding-type": "array", "encoding-version": "0.2.0"}
"""What anndata reads."""


def stream_zarr(
    model: models.Estimator, section: AnnData, out: Path, *, n_samples: int = 16, n_places: int | None = None
) -> tuple[int, int]:
    """Predict a section into a zarr part by part, whole or not at all.

    Parameters
    ----------
    model
        A fitted estimator that predicts in parts.
    section
        As in `Estimator.predict`; embeddings that are memory-mapped are given back after each part.
    out
        The zarr. Beside it, until it is written, lie the noise of an estimator that draws (8 bytes for each draw, place
        and gene) and numbers of parts that are not runs of rows.
    n_samples
        As in `Estimator.predict`.
    n_places
        As in `Estimator.predict_parts`.

    Returns
    -------
    How many spots and genes.

    Raises
    ------
    OptionError
        If the estimator looks at a section as a whole.
    MissingDependencyError
        If zarr is not installed.
    OutputError
        If it cannot be written.
    """
    with atomic_path(out) as temporary, scratch_folder(out) as scratch:
        frame, parts = model.predict_parts(section, n_samples=n_samples, n_places=n_places, shelf=_Shelves(scratch))
        written = _Written(write_zarr(frame, temporary), frame, _Shelves(scratch))
        for rows, part in parts:
            written.put(rows, part)
            let_go(section.obsm[model.slot] if model.slot else None)
        written.finish()
    return frame.n_obs, frame.n_vars


class _Shelf:
    """An array in a file that is mapped only while it is read or written: what is mapped counts as memory."""

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.path = path
        np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        if hasattr(os, "posix_fallocate"):
            # Where a disk is full, writing what is mapped would end the process without a word.
            with path.open("r+b") as handle:
                os.posix_fallocate(handle.fileno(), 0, path.stat().st_size)

    def __getitem__(self, key: Any) -> NDArray[np.float32]:
        return np.array(np.load(self.path, mmap_mode="r", allow_pickle=False)[key])

    def __setitem__(self, key: Any, value: Any) -> None:
        np.load(self.path, mmap_mode="r+", allow_pickle=False)[key] = value


class _Shelves:
    """Makes shelves in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, shape: tuple[int, ...]) -> _Shelf:
        descriptor, name = mkstemp(suffix=".npy", dir=self.folder)
        os.close(descriptor)
        return _Shelf(Path(name), shape)


class _Written:
    """A zarr that grows by parts: runs of rows go into its chunks, others onto a shelf first."""

    def __init__(self, root: Any, frame: AnnData, shelves: _Shelves) -> None:
        self.root, self.frame, self.shelves = root, frame, shelves
        self.arrays: dict[str, Any] = {}
        self.shelved: dict[str, _Shelf] = {}
        self.columns: dict[str, NDArray[Any]] = {}
        self.varm: dict[str, Any] = {}

    def put(self, rows: NDArray[np.int64], part: AnnData) -> None:
        """Take the rows of a part."""
        if not self.arrays:
            self._lay(rows, part)
        is_run = rows[-1] - rows[0] + 1 == len(rows)
        for name, values in _numbers(part).items():
            if is_run and name not in self.shelved:
                self.arrays[name][rows[0] : rows[-1] + 1] = values
            else:
                self.shelved[name][rows] = values
        for name, column in self.columns.items():
            column[rows] = part.obs[name].to_numpy()

    def _lay(self, rows: NDArray[np.int64], part: AnnData) -> None:
        """Lay empty arrays as the first part has them."""
        shape = self.frame.shape
        n_rows = min(shape[0], len(rows), _CHUNK_ROWS)
        chunks = (n_rows, min(shape[1], max(1, _CHUNK // n_rows)))
        for name in _numbers(part):
            self.arrays[name] = self.root.create_array(name, shape=shape, chunks=chunks, dtype="float32")
            self.arrays[name].attrs.update(_ARRAY)
            if rows[-1] - rows[0] + 1 != len(rows):
                self.shelved[name] = self.shelves(shape)
        added = part.obs.columns.difference(self.frame.obs.columns, sort=False)
        self.columns = {name: np.empty(shape[0], part.obs[name].dtype) for name in added}
        self.varm = dict(part.varm)

    def finish(self) -> None:
        """Write what was shelved, and what belongs to all parts."""
        for name, shelf in self.shelved.items():
            for start in range(0, self.frame.n_obs, _CHUNK_ROWS):
                rows = slice(start, start + _CHUNK_ROWS)
                self.arrays[name][rows] = shelf[rows]
        if self.columns:
            _write(self.root, "obs", self.frame.obs.assign(**self.columns))
        if self.varm:
            _write(self.root, "varm", self.varm)


def _numbers(part: AnnData) -> dict[str, Any]:
    """Arrays (n_rows, n_genes) of a prediction by their place in the zarr."""
    return {"X": part.X, **{f"layers/{name}": values for name, values in part.layers.items()}}


def write_zarr(predicted: AnnData, path: Path) -> Any:
    """Write an AnnData as a new zarr, and give the group back.

    Raises
    ------
    MissingDependencyError
        If zarr is not installed.
    """
    try:
        import zarr
    except ImportError as err:
        raise MissingDependencyError("writing .zarr needs zarr: pip install zarr; or name a file .h5ad") from err
    root = zarr.open_group(str(path), mode="w")
    _write(root, "/", predicted)
    return root


def _write(root: Any, key: str, value: Any) -> None:
    with warnings.catch_warnings():  # of anndata, about what its next release will do by default
        warnings.filterwarnings("ignore", message="zarr v3 autosharding", category=UserWarning)
        write_elem(root, key, value)
