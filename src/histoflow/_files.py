"""Cache folder, content hash, atomic write, lock: nobody in histoflow writes a file any other way."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from histoflow._errors import MissingDependencyError, OutputError, ReadError

_BLOCK = 1 << 20


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


def file_name(name: str) -> str:
    """The name of a file for an id, which may hold a slash, or lead out of the folder."""
    quoted = quote(name, safe=" ()[]+,=@&#")
    return quoted if quoted.strip(".") else quoted.replace(".", "%2E")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path` that becomes `path` when the block ends without an error.

    The parent folder is made. On an error the temporary file or folder is removed and `path` stays as it was.
    A folder replaces a folder of the same name. A killed process leaves only a name that starts with ``.tmp-``.

    Raises
    ------
    OutputError
        If the parent folder cannot be made or written to, or `path` is a folder where a file should go.
    """
    path = Path(path)
    temporary = _temporary_beside(path)
    try:
        yield temporary
        if temporary.is_file():
            with temporary.open("rb") as handle:
                os.fsync(handle.fileno())
        _replace(temporary, path)
    finally:
        _remove(temporary)


def _temporary_beside(path: Path) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(prefix=f".tmp-{path.name}-", dir=path.parent)
    except OSError as err:
        raise OutputError(
            f"cannot write {path}: {err.strerror or err}; choose a folder that exists and is writable"
        ) from err
    os.rmdir(folder)
    return Path(folder).with_name(Path(folder).name + path.suffix)


def _replace(temporary: Path, path: Path) -> None:
    try:
        if temporary.is_dir() and path.is_dir():
            old = _temporary_beside(path)
            path.rename(old)
            temporary.rename(path)
            _remove(old)
        else:
            temporary.replace(path)
    except OSError as err:
        raise OutputError(f"cannot write {path}: {err.strerror or err}; choose another name") from err


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file atomically, keys in their order, readable by a person."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


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
