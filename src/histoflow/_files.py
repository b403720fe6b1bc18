"""Cache folder, content hash, atomic write, lock: nobody in histoflow writes a file any other way."""

from __future__ import annotations

import ctypes
import glob
import hashlib
import io
import json
import math
import mmap
import os
import platform
import re
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from histoflow._errors import HistoflowError, MissingDependencyError, OutputError, ReadError

if TYPE_CHECKING:
    import numpy as np
    from anndata import AnnData
    from numpy.typing import NDArray

_BLOCK = 1 << 20
IN_MEMORY = 1 << 27
"""Numbers that an array of features may hold in memory; larger ones lie in a file and are mapped."""
_HERE, _SWAP = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of Linux."""
_WHAT_TO_DO = "make room, or choose a folder that is writable; what was there before is unchanged"


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """Where features, converted slides and downloads are kept.

    `cache_dir` if given, else the environment's ``HISTOFLOW_CACHE``, else the platform's user cache folder.
    """
    chosen = cache_dir or os.environ.get("HISTOFLOW_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    try:
        from platformdirs import user_cache_path
    except ImportError as err:
        raise MissingDependencyError(
            "no cache folder is known: pip install 'histoflow[slides]', or set HISTOFLOW_CACHE"
        ) from err
    return Path(user_cache_path("histoflow"))


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits."""
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as handle:
            while block := handle.read(_BLOCK):
                digest.update(block)
    except OSError as err:
        raise ReadError(f"cannot read {path}: {err.strerror or err}; check the path and its permissions") from err
    return digest.hexdigest()


def value_hash(value: Any) -> str:
    """SHA-256 of a JSON-able value, independent of the order of keys, as 64 hex digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def roomy_array(shape: tuple[int, ...], folder: Path) -> NDArray[np.float32]:
    """An empty float32 array; one of more than 2²⁷ numbers lies in a file without a name that goes when the array goes.

    Parameters
    ----------
    shape
        Its shape.
    folder
        Where there is room for the file; made if need be.

    Raises
    ------
    OutputError
        If the file cannot be made.
    """
    import numpy as np

    if math.prod(shape) <= IN_MEMORY:
        return np.empty(shape, dtype=np.float32)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as handle:
            return np.memmap(handle, dtype=np.float32, mode="w+", shape=shape)
    except OSError as err:
        raise OutputError(
            f"cannot make room for {math.prod(shape) * 4 / 1e9:.1f} GB in {folder}: {err.strerror or err}; "
            "set HISTOFLOW_CACHE to a folder with more room"
        ) from err


def let_go(array: Any) -> None:
    """Let go of the pages of a mapped file, which count as memory; they are read anew where they are needed.

    Of an array that is not mapped, or whose changes no file is to see, nothing is done.
    """
    mapped = getattr(array, "_mmap", None)
    if mapped is not None and array.mode != "c" and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def file_name(name: str) -> str:
    """The name of a file for an id, which may hold a slash, or lead out of the folder."""
    quoted = quote(name, safe=" ()[]+,=@&#")
    return quoted if quoted.strip(".") else quoted.replace(".", "%2E")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path` that becomes `path` when the block ends without an error.

    The parent folder is made. On an error the temporary file or folder is removed and `path` stays as it was.
    A folder replaces a folder of the same name. A killed process leaves only a name that starts with ``.tmp-``, which
    the next one that writes `path` on the same machine removes.

    Raises
    ------
    OutputError
        If the parent folder cannot be made or written to, the disk is full, or `path` is a folder where a file should
        go.
    """
    path = Path(path)
    temporary = _temporary_beside(path)
    try:
        with _told_of(path):
            yield temporary
            if temporary.is_file():
                with temporary.open("rb") as handle:
                    os.fsync(handle.fileno())
        _replace(temporary, path)
    finally:
        _remove(temporary)


@contextmanager
def scratch_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder beside `path`, for what is needed until that is written; removed as in `atomic_path`.

    Raises
    ------
    OutputError
        If it cannot be made.
    """
    folder = _temporary_beside(Path(path))
    try:
        with _told_of(Path(path)):
            folder.mkdir()
        yield folder
    finally:
        _remove(folder)


@contextmanager
def _told_of(path: Path) -> Iterator[None]:
    """Say what could not be written, whichever library was at it; an error of another place stays what it is."""
    try:
        yield
    except HistoflowError:
        raise
    except OSError as err:
        elsewhere = err.filename is not None and _mark(path) not in str(err.filename)
        if elsewhere or not (number := system_number(err)):
            raise
        raise OutputError(f"cannot write {path}: {os.strerror(number)}; {_WHAT_TO_DO}") from err


def system_number(err: Exception) -> int:
    """The system's number of an error, also where a library tells it in words; 0 where there is none."""
    told = re.search(r"errno\D{1,4}(\d+)", str(err))
    return getattr(err, "errno", None) or (int(told[1]) if told else 0)


def _temporary_beside(path: Path) -> Path:
    """A free name beside `path`, which says who makes it; what dead processes of this machine left is removed."""
    prefix = _mark(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f"{glob.escape(prefix)}*"):
            if _is_abandoned(left.name.removeprefix(prefix)):
                _remove(left)
        folder = tempfile.mkdtemp(prefix=f"{prefix}{_machine()}.{os.getpid()}-", dir=path.parent)
        os.rmdir(folder)
    except OSError as err:
        raise OutputError(
            f"cannot write {path}: {err.strerror or err}; choose a folder that exists and is writable"
        ) from err
    return Path(folder).with_name(Path(folder).name + path.suffix)


def _mark(path: Path) -> str:
    """How temporary names for `path` begin."""
    return f".tmp-{path.name}-"


def _is_abandoned(maker: str) -> bool:
    """Whether the process that made a temporary name is one of this machine that has ended."""
    told = re.match(r"([0-9a-f]{8})\.(\d+)-", maker)
    if told is None or told[1] != _machine() or os.name != "posix":
        return False
    try:
        os.kill(int(told[2]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


@cache
def _machine() -> str:
    """What tells process numbers from those of another machine, container or start of this one: 8 hex digits."""
    known = [platform.node()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with suppress(OSError):
            known.append(os.readlink(path) if path.endswith("pid") else Path(path).read_text())
    return value_hash(known)[:8]


def _replace(temporary: Path, path: Path) -> None:
    try:
        if temporary.is_dir() and path.is_dir():
            _exchange(temporary, path)
        else:
            temporary.replace(path)
    except OSError as err:
        raise OutputError(f"cannot write {path}: {err.strerror or err}; choose another name") from err


def _exchange(new: Path, old: Path) -> None:
    """Put a folder in the place of another, so that there is one of that name at every moment where the system can."""
    if _swapped(new, old):
        return
    aside = _temporary_beside(old)
    old.rename(aside)
    new.rename(old)
    _remove(aside)


def _swapped(one: Path, other: Path) -> bool:
    """Swap two folders in one step; False where system or file system cannot."""
    swap = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
    return swap is not None and swap(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _SWAP) == 0


def _remove(path: Path) -> None:
    """Remove what may be there; failing to must not hide the error that came before."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file atomically, keys in their order, readable by a person."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_h5ad(adata: AnnData, path: str | Path) -> None:
    """Write an AnnData, whole or not at all; its columns of strings become categories, as anndata makes them.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    import h5py
    from anndata.io import write_elem

    adata.strings_to_categoricals()
    with atomic_path(path) as temporary, _Patient(temporary, "w+") as file:
        try:
            with _unstopped(), h5py.File(file, "w") as h5:
                write_elem(h5, "/", adata)
        except Exception:
            if file.error is None:
                raise
        if file.error is not None:
            raise file.error


@contextmanager
def _unstopped() -> Iterator[None]:
    """Put off Ctrl-C and SIGTERM to the end of a block in which a library in C calls us, and drops what we raise."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {n: signal.signal(n, lambda number, _: came.append(number)) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for late in came:
            signal.raise_signal(late)


class _Patient(io.FileIO):
    """A file that keeps its first error to itself: HDF5 ends the whole process where it cannot finish a file."""

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write all of it, until the first error; after that, nothing."""
        whole = memoryview(data).cast("B")
        left = whole
        try:
            while len(left) and self.error is None:
                left = left[super().write(left) or 0 :]
        except OSError as err:
            self.error = err
        return len(whole)

    def truncate(self, size: int | None = None, /) -> int:
        """As `write`."""
        try:
            return super().truncate(size) if self.error is None else int(size or 0)
        except OSError as err:
            self.error = err
            return int(size or 0)

    def readinto(self, buffer: Any, /) -> int:
        """Read what is there, and zeros where a write has failed."""
        if self.error is None:
            return super().readinto(buffer) or 0
        whole = memoryview(buffer).cast("B")
        whole[:] = bytes(len(whole))
        return len(whole)


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises
    ------
    ReadError
        If the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text())
    except OSError as err:
        raise ReadError(f"cannot read {path}: {err.strerror or err}") from err
    except (ValueError, RecursionError) as err:
        raise ReadError(f"{path} is not valid JSON ({err}); it may be truncated: restore or remake it") from err


@contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Hold the lock that belongs to `path`; a lock of a dead process is taken over by the operating system."""
    from filelock import FileLock

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(path.name + ".lock")):
        yield
