"""The HEST-Benchmark's folder: its tasks and splits, and each of its samples as a section of patches and counts.

A task is a folder of ``splits/train_0.csv``, ``splits/test_0.csv`` … with columns `sample_id`, `patches_path`,
`expr_path` (paths from the task's folder), ``var_50genes.json``, the HDF5 files of patches with `img`, `coords` (upper
left corner in level-0 pixels) and `barcode`, and the h5ad of raw counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from histoflow._errors import HistoflowError, OptionError, ReadError, ShapeError, SplitError
from histoflow._files import file_hash, read_json
from histoflow.io.hdf5 import READING_ERRORS, opened_hdf5
from histoflow.io.images import existing_file

COLUMNS = ("sample_id", "patches_path", "expr_path")
GENES = "var_50genes.json"

_SPLITS = "splits"
_IMAGES, _BARCODES = ("img", "imgs"), ("barcode", "barcodes")


@dataclass(frozen=True)
class HestSample:
    """One sample of a task: its patches and its counts.

    Attributes
    ----------
    sample
        Its id.
    patches, counts
        HDF5 file of patches, h5ad of raw counts.
    """

    sample: str
    patches: Path
    counts: Path


@dataclass(frozen=True)
class HestTask:
    """One task of the benchmark.

    Attributes
    ----------
    name
        Name of its folder.
    folder
        The folder.
    genes
        The genes that are predicted, in the order of its list.
    folds
        Ids of training and test samples, fold by fold.
    samples
        Every sample of the folds, by id.
    """

    name: str
    folder: Path
    genes: tuple[str, ...]
    folds: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    samples: dict[str, HestSample]


class HestImages:
    """The images of an opened file of patches, read slice by slice.

    Parameters
    ----------
    path
        The file.
    dataset
        Its dataset of images.
    """

    def __init__(self, path: Path, dataset: h5py.Dataset) -> None:
        self._path, self._dataset = path, dataset

    @property
    def shape(self) -> tuple[int, ...]:
        """(n_patches, side, side, 3)."""
        return tuple(self._dataset.shape)

    @property
    def dtype(self) -> Any:
        """uint8."""
        return self._dataset.dtype

    def __getitem__(self, some: slice) -> NDArray[np.uint8]:
        """Some of them, uint8, (n_some, side, side, 3).

        Raises
        ------
        ReadError
            If the file is damaged there.
        """
        try:
            return np.asarray(self._dataset[some])
        except READING_ERRORS as err:
            raise _damaged(self._path, err) from err


@dataclass(frozen=True)
class HestPatches:
    """An opened file of patches.

    Attributes
    ----------
    path
        The file.
    images
        RGB, uint8, (n_patches, side, side, 3), read from the file slice by slice.
    corners
        Upper left corners, shape (n_patches, 2), x, y in level-0 pixels.
    barcodes
        Spot of each patch, shape (n_patches,); some may come more than once.
    attributes
        What the file records of itself, its images and its places.
    """

    path: Path
    images: HestImages
    corners: NDArray[np.float64]
    barcodes: NDArray[np.str_]
    attributes: dict[str, Any]

    def content_id(self) -> str:
        """SHA-256 of the file."""
        return file_hash(self.path)

    def number(self, *names: str) -> float | None:
        """The first of these attributes that is a number above 0; None where there is none."""
        for name in names:
            try:
                value = float(np.ravel(self.attributes[name])[0])
            except (KeyError, IndexError, TypeError, ValueError):
                continue
            if 0 < value < math.inf:
                return value
        return None


def read_hest_bench(folder: str | Path, tasks: Sequence[str] | None = None) -> list[HestTask]:
    """Read what a benchmark folder holds, and see that every file it names is there; patches and counts stay unread.

    Parameters
    ----------
    folder
        A folder of tasks, or one task itself.
    tasks
        Names of the tasks wanted; None for all, by name.

    Returns
    -------
    The tasks, in the order asked for.

    Raises
    ------
    ReadError
        If there is no task, or a file of one is missing, damaged or of another layout.
    OptionError
        If a task asked for is not there.
    SplitError
        If a fold tests on a sample that it trains on.
    """
    root = Path(folder).expanduser().absolute()
    found = [root] if (root / _SPLITS).is_dir() else sorted(p.parent for p in root.glob(f"*/{_SPLITS}") if p.is_dir())
    if not found:
        raise ReadError(
            f"{folder} holds no task: neither it nor a folder in it has {_SPLITS}/train_0.csv; give the benchmark's "
            "folder, or that of one task"
        )
    by_name = {path.name: path for path in found}
    wanted = list(by_name) if tasks is None else list(dict.fromkeys(tasks))
    if lacking := [name for name in wanted if name not in by_name]:
        raise OptionError(f"tasks {', '.join(lacking)} are not in {folder}; choose from {', '.join(by_name)}")
    return [_task(by_name[name]) for name in wanted]


def _task(folder: Path) -> HestTask:
    splits = folder / _SPLITS
    numbers = sorted({int(p.stem[6:]) for p in splits.glob("train_*.csv") if p.stem[6:].isdigit()})
    if not numbers:
        raise ReadError(f"{splits} has no train_0.csv; give a folder with the benchmark's splits")
    samples: dict[str, HestSample] = {}
    folds = []
    for number in numbers:
        train, test = (_split(splits / f"{side}_{number}.csv", folder, samples) for side in ("train", "test"))
        if shared := sorted(set(train) & set(test)):
            raise SplitError(
                f"task {folder.name}, fold {number} trains and tests on {', '.join(shared)}; mend {splits}"
            )
        folds.append((train, test))
    return HestTask(folder.name, folder, _genes(folder / GENES), tuple(folds), samples)


def _split(path: Path, folder: Path, samples: dict[str, HestSample]) -> tuple[str, ...]:
    """Ids of one side of a fold; its samples are added to those known."""
    path = existing_file(path, "split")
    try:
        table = pd.read_csv(path, dtype=str)
    except READING_ERRORS as err:
        raise ReadError(f"split {path} is not a table ({err}); fetch it anew") from err
    lacking = [column for column in COLUMNS if column not in table]
    if lacking or table.empty or table[list(COLUMNS)].isna().any(axis=None):
        what = f"lacks the columns {', '.join(lacking)}" if lacking else "has no rows, or empty cells"
        raise ReadError(f"split {path} {what}; wanted {', '.join(COLUMNS)}, filled in for every sample")
    for sample, *names in table[list(COLUMNS)].to_numpy(dtype=str):
        files = [existing_file(folder / name, "file of the benchmark") for name in names]
        made = HestSample(str(sample), *files)
        if samples.setdefault(made.sample, made) != made:
            raise ReadError(f"split {path} gives sample {sample} other files than another split; mend it")
    ids = tuple(table["sample_id"])
    if len(set(ids)) < len(ids):
        raise ReadError(f"split {path} names a sample more than once; remove the repetition")
    return ids


def _genes(path: Path) -> tuple[str, ...]:
    listed = read_json(path)
    genes = listed.get("genes") if isinstance(listed, dict) else None
    if not isinstance(genes, list) or not genes or not all(isinstance(gene, str) for gene in genes):
        raise ReadError(f'{path} holds no gene list; wanted {{"genes": [names]}}')
    if len(set(genes)) < len(genes):
        raise ReadError(f"{path} names a gene more than once; remove the repetition")
    return tuple(genes)


@contextmanager
def open_hest_patches(path: str | Path) -> Iterator[HestPatches]:
    """Open a file of patches; its images are read when they are asked for.

    Parameters
    ----------
    path
        HDF5 file with `img` (or `imgs`), `coords` and `barcode` (or `barcodes`).

    Raises
    ------
    ReadError
        If it is missing, truncated, empty, or holds no patches.
    ShapeError
        If its parts do not fit each other.
    """
    path = existing_file(path, "file of patches")
    with ExitStack() as stack:
        try:
            patches = _opened(path, stack.enter_context(opened_hdf5(path)))
        except READING_ERRORS as err:
            raise err if isinstance(err, HistoflowError) else _damaged(path, err) from err
        yield patches


def _opened(path: Path, file: h5py.File) -> HestPatches:
    names = [next((n for n in offered if n in file), None) for offered in (_IMAGES, ("coords",), _BARCODES)]
    if None in names:
        held = ", ".join(sorted(file)) or "nothing"
        raise ReadError(f"{path} holds {held}; wanted the patches' img, coords and barcode")
    images = HestImages(path, file[names[0]])
    try:
        corners = np.asarray(file[names[1]][()], dtype=np.float64)
        barcodes = [v.decode() if isinstance(v, bytes) else str(v) for v in np.ravel(file[names[2]][()])]
        told = {k: v for part in (file, file[names[0]], file[names[1]]) for k, v in part.attrs.items()}
    except READING_ERRORS as err:
        raise _damaged(path, err) from err
    if images.dtype != np.uint8 or len(images.shape) != 4 or not images.shape[0]:
        came = f"{images.shape} of {images.dtype}"
        raise ShapeError(f"{path}: {names[0]} has shape {came}, wanted uint8 (n_patches, side, side, 3)")
    n_patches = images.shape[0]
    if corners.shape != (n_patches, 2) or len(barcodes) != n_patches or not np.isfinite(corners).all():
        came = f"{n_patches} images, coords of shape {corners.shape}, {len(barcodes)} barcodes"
        raise ShapeError(f"{path} holds {came}; wanted a finite x, y and a barcode for each image")
    return HestPatches(path, images, corners, np.array(barcodes), told)


def _damaged(path: Path, err: Exception) -> ReadError:
    return ReadError(f"{path} is not a whole HDF5 file of patches ({err}); it may be truncated: fetch it anew")
