"""Weights from the Hugging Face hub: found where they are, fetched where they may be, else told how to get them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from histoflow._errors import MissingDependencyError, WeightsError
from histoflow._files import cache_folder

_TIMEOUT_S = 10
_ON = {"1", "ON", "YES", "TRUE"}

Files = Sequence[Sequence[str]]
"""Sets of file names or patterns, each sufficient; the first that is there is taken."""


@dataclass(frozen=True)
class Source:
    """Where the weights of an encoder come from, and on whose behalf.

    Parameters
    ----------
    encoder
        Name of the encoder, for messages.
    repository
        Hub id such as ``"MahmoodLab/UNI2-h"``.
    gated
        Whether access must be asked for.
    files
        Sets of file names or patterns of the repository, each sufficient.
    """

    encoder: str
    repository: str
    gated: bool
    files: Files

    def found(self, cache_dir: str | Path | None = None) -> Path | None:
        """Folder of the repository's files on this machine, or None; the network is not asked."""
        for cache in (_hub_cache(), _own_cache(cache_dir)):
            for patterns in self.files:
                folder = _snapshot(self.repository, patterns, cache)
                if folder is not None and all(any(folder.glob(pattern)) for pattern in patterns):
                    return folder
        return None

    def fetch(self, token: str | None = None, cache_dir: str | Path | None = None) -> Path:
        """Folder of the repository's files, downloaded if they are not here and the hub may be asked.

        Parameters
        ----------
        token
            Hub token; None for the one the hub's own settings hold.
        cache_dir
            Our cache folder, for downloads where the environment names no hub cache; None for the default.

        Raises
        ------
        WeightsError
            If they are not here and cannot be fetched: which, where they belong, and which setting finds them.
        """
        found = self.found(cache_dir)
        if found is None and offline():
            raise self.missing("HF_HUB_OFFLINE forbids to fetch them", cache_dir)
        return found or self._download(token, cache_dir)

    def _download(self, token: str | None, cache_dir: str | Path | None) -> Path:
        from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

        # The error's bases are those of the library that huggingface_hub speaks HTTP through.
        failures: Any = (*HfHubHTTPError.__bases__, OSError)
        try:
            for patterns in self.files:
                folder = _snapshot(self.repository, patterns, _download_cache(cache_dir), token=token, ask=True)
                if folder is not None and all(any(folder.glob(pattern)) for pattern in patterns):
                    return folder
        except (GatedRepoError, RepositoryNotFoundError) as err:
            raise self.missing("the hub refuses access without a token that was granted it", cache_dir) from err
        except failures as err:
            raise self.missing(f"the hub cannot be reached ({type(err).__name__})", cache_dir) from err
        raise self.missing("the repository no longer holds the expected files", cache_dir)

    def missing(self, why: str, cache_dir: str | Path | None = None) -> WeightsError:
        """The error that says what to download, where to put it and which setting finds it."""
        wanted = " or ".join(" and ".join(patterns) for patterns in self.files)
        asked = " (gated: ask for access there first)" if self.gated else ""
        return WeightsError(
            f"the weights of {self.encoder} are not on this machine and {why}. "
            f"Download {wanted} of {self.repository} from https://huggingface.co/{self.repository}{asked}, then give "
            f"the file or its folder as weights= (--weights); or set HF_HOME to a folder whose hub cache holds the "
            f"repository (looked for in {_hub_cache()} and {_own_cache(cache_dir)}); or, with a network, give token= "
            "or set HF_TOKEN and unset HF_HUB_OFFLINE"
        )


def offline() -> bool:
    """Whether ``HF_HUB_OFFLINE`` forbids the network; read each time, not when the hub's library was imported."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in _ON


def has_token() -> bool:
    """Whether the hub's own settings hold a token."""
    try:
        from huggingface_hub import get_token
    except ImportError:
        return False
    return get_token() is not None


def _hub_cache() -> Path:
    """The hub's cache, as its own settings name it now."""
    named = os.environ.get("HF_HUB_CACHE")
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "huggingface")
    return Path(named).expanduser() if named else Path(home).expanduser() / "hub"


def _own_cache(cache_dir: str | Path | None) -> Path:
    return cache_folder(cache_dir) / "weights"


def _download_cache(cache_dir: str | Path | None) -> Path:
    chosen = os.environ.get("HF_HUB_CACHE") or os.environ.get("HF_HOME")
    return _hub_cache() if chosen else _own_cache(cache_dir)


def _snapshot(
    repository: str, patterns: Sequence[str], cache: Path, *, token: str | None = None, ask: bool = False
) -> Path | None:
    """Folder of a repository's files in a cache; None where nothing of it is there and the hub may not be asked."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError as err:
        raise MissingDependencyError(
            f"weights of {repository} come through huggingface_hub; pip install 'histoflow[encoders]'"
        ) from err
    options: dict[str, Any] = {
        "allow_patterns": list(patterns),
        "cache_dir": cache,
        "token": token,
        "etag_timeout": _TIMEOUT_S,
    }
    try:
        return Path(snapshot_download(repository, local_files_only=not ask, **options))
    except LocalEntryNotFoundError:
        if ask:
            raise
        return None
