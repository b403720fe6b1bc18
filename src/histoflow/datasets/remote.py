"""Data sets fetched on request: what lies here is used, the rest is downloaded once, checked, and kept."""

from __future__ import annotations

import gzip
import importlib
import logging
import os
import re
import tarfile
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from itertools import repeat
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from anndata import AnnData

from histoflow._errors import HistoflowError, MissingDependencyError, OptionError, OutputError, ReadError
from histoflow._files import atomic_path, cache_folder, file_hash, locked, read_json, scratch_folder, write_json
from histoflow._progress import track
from histoflow.datasets.catalogue import BREAST, CHECKSUMS, HER2ST, Entry, RemoteFile
from histoflow.io import Cohort, open_section_slide

if TYPE_CHECKING:
    from wsidata import WSIData

_log = logging.getLogger(__name__)
_DATA = "HISTOFLOW_DATA"
_WAITS_S = (1.0, 2.0, 4.0, 8.0)
"""Waits before another try; a try that brings the file further starts them anew."""
_TIMEOUT_S = 60.0
_BLOCK = 1 << 16
_TEMPORARY_CODES = frozenset({408, 425, 429, 500, 502, 503, 504})


def her2st(
    sections: Sequence[str] = ("C2", "C3", "C4", "C5"), *, cache_dir: str | Path | None = None, download: bool = True
) -> Cohort:
    """HER2-positive breast tumours on legacy ST arrays; by default four serial sections of patient C.

    Files are taken from ``HISTOFLOW_DATA`` (``her2st/C2/…``) if they are there, else from the cache, else downloaded
    into it; their SHA-256 is checked every time. The sections are read when they are asked for.

    Parameters
    ----------
    sections
        Of C2, C3, C4, C5 (about 0.69 µm per pixel) and A1 (another patient, a dark image of about 3.2 µm per pixel;
        `labeled_coordinates.tsv` in its folder holds a pathologist's region labels).
    cache_dir
        Cache folder; None for the default.
    download
        Whether to download what is missing.

    Returns
    -------
    A cohort of kind st, all of it reference: the patient is the letter, the block the patient's one piece of tissue,
    the order the number. X raw counts (n_spots, n_genes); scale from the 200 µm pitch.

    Raises
    ------
    OptionError
        If there is no such section.
    ReadError
        If a file is missing and not to be downloaded, cannot be reached, or is not the one published.
    OutputError
        If the cache folder cannot be written.
    MissingDependencyError
        Without the packages that download.

    Notes
    -----
    From the repository almaan/her2st, which **states no licence**; this is logged before a download. Cite Andersson
    et al., Nat. Commun. 12, 6012 (2021), doi:10.1038/s41467-021-26271-2.

    Examples
    --------
    >>> import histoflow as hf
    >>> cohort = hf.datasets.her2st()  # doctest: +SKIP
    """
    if unknown := [str(section) for section in sections if section not in HER2ST]:
        raise OptionError(f"sections has {', '.join(unknown)}; give a sequence of names out of {', '.join(HER2ST)}")
    if not sections or len(set(sections)) < len(sections):
        raise OptionError(f"sections is {tuple(sections)}; name at least one section, and each once")
    entries = [HER2ST[section] for section in sections]
    folders = _section_folders(entries, cache_dir=cache_dir, download=download)
    rows = [entry.row(folder, entry.files) for entry, folder in zip(entries, folders, strict=True)]
    return Cohort(rows, name="her2st", cache_dir=cache_dir)


def breast(*, cache_dir: str | Path | None = None, include_image: bool = True) -> Cohort:
    """Both Visium sections of one breast tumour block, as a cohort.

    Parameters
    ----------
    cache_dir, include_image
        As in `download_breast`.

    Returns
    -------
    A cohort of kind visium, all of it reference: one patient, one block, order 1 and 2.

    Raises
    ------
    ReadError, OutputError, MissingDependencyError
        As in `download_breast`.

    Examples
    --------
    >>> import histoflow as hf
    >>> cohort = hf.datasets.breast()  # doctest: +SKIP
    """
    entries, without = list(BREAST.values()), _without(include_image)
    folders = _section_folders(entries, without=without, cache_dir=cache_dir)
    rows = [entry.row(folder, entry.files.keys() - without) for entry, folder in zip(entries, folders, strict=True)]
    return Cohort(rows, name="breast", cache_dir=cache_dir)


def load_breast(
    section: int = 1, *, cache_dir: str | Path | None = None, include_image: bool = True
) -> tuple[AnnData, WSIData | None]:
    """One Visium section of a breast tumour block, with its own slide.

    Parameters
    ----------
    section
        1 or 2.
    cache_dir, include_image
        As in `download_breast`.

    Returns
    -------
    The section as `read_visium` gives it, X raw counts (n_spots, n_genes), with the path of its slide in
    ``uns["histoflow"]``; and the opened slide, None without the image. Without it the section lies on the small hires
    image, which is said in a `ScaleWarning`.

    Raises
    ------
    OptionError, ReadError, OutputError, MissingDependencyError
        As in `download_breast`.

    Examples
    --------
    >>> import histoflow as hf
    >>> section, wsi = hf.load_breast(section=1)  # doctest: +SKIP
    """
    folder = download_breast(cache_dir, section=section, include_image=include_image)
    row = BREAST[section].row(folder, BREAST[section].files.keys() - _without(include_image))
    loaded = Cohort([row], name="breast", cache_dir=cache_dir)[0]
    return loaded, open_section_slide(loaded, cache_dir=cache_dir) if include_image else None


def download_breast(cache_dir: str | Path | None = None, *, section: int = 1, include_image: bool = True) -> Path:
    """Fetch one Visium section of a breast tumour block: counts, ``spatial/`` and the slide.

    Files are taken from ``HISTOFLOW_DATA`` (``breast/section_1/…``) if they are there, else from the cache, else
    downloaded into it; a download that was cut goes on where it stopped. 10x Genomics publishes no checksums with
    these files: their SHA-256 is recorded at the first download, in ``checksums.json`` beside them, and checked every
    time after that. So a later change is found; a first download that was wrong from the start is not, unless it is
    of another kind of file.

    Parameters
    ----------
    cache_dir
        Cache folder; None for the default.
    section
        1 or 2; each has its own folder.
    include_image
        Whether to fetch the slide, about 1.7 GB.

    Returns
    -------
    The folder, which `read_visium` reads.

    Raises
    ------
    OptionError
        If there is no such section.
    ReadError
        If a file cannot be reached, is not the one recorded, or holds what it should not.
    OutputError
        If the cache folder cannot be written.
    MissingDependencyError
        Without the packages that download.

    Notes
    -----
    10x Genomics, Human Breast Cancer (Block A Sections 1 and 2), Space Ranger 1.1.0; terms on the
    page of the data set at 10x Genomics.

    Examples
    --------
    >>> import histoflow as hf
    >>> outs = hf.download_breast(section=2)  # doctest: +SKIP
    """
    if section not in BREAST:
        raise OptionError(f"section is {section!r}; give one of {', '.join(map(str, BREAST))}")
    return _section_folders([BREAST[section]], without=_without(include_image), cache_dir=cache_dir)[0]


def _without(include_image: bool) -> frozenset[str]:
    return frozenset() if include_image else frozenset({"slide"})


def _section_folders(
    entries: Sequence[Entry],
    *,
    without: frozenset[str] = frozenset(),
    cache_dir: str | Path | None,
    download: bool = True,
) -> list[Path]:
    """The folders of sections of one data set, after downloading what is missing; every known hash is checked."""
    data = cache_folder(cache_dir).absolute() / "data"
    wanted = [[file for part, file in entry.files.items() if part not in without] for entry in entries]
    folders = [_found(entry, files, data / entry.folder) for entry, files in zip(entries, wanted, strict=True)]
    missing = [entry for entry, folder in zip(entries, folders, strict=True) if folder is None]
    if missing and not download:
        raise ReadError(
            f"section {', '.join(entry.section for entry in missing)} of {missing[0].source.name} is neither in "
            f"{data / missing[0].source.name} nor in HISTOFLOW_DATA ({os.environ.get(_DATA) or 'not set'}); "
            f"allow the download, or set HISTOFLOW_DATA to a folder with {missing[0].folder}"
        )
    if missing:
        _pooch()
        source = missing[0].source
        _log.log(logging.WARNING if source.licence is None else logging.INFO, "%s", source.terms)
    return [
        folder or _download(entry, files, data / entry.folder)
        for entry, files, folder in zip(entries, wanted, folders, strict=True)
    ]


def _found(entry: Entry, files: Sequence[RemoteFile], cached: Path) -> Path | None:
    """The folder that has all the files and knows what they must be; None where something must be downloaded."""
    if given := os.environ.get(_DATA):
        own = Path(given).expanduser().absolute() / entry.folder
        if all(file.present(own) for file in files):
            return _checked(files, own)
        _log.info("HISTOFLOW_DATA has no whole %s; looking in the cache", entry.folder)
    return _checked(files, cached) if all(_settled(file, cached) for file in files) else None


def _settled(file: RemoteFile, folder: Path) -> bool:
    """Whether the file is there and it is known what it must be; what was unpacked by hand stands for itself."""
    return file.present(folder) and (not (folder / file.name).is_file() or file.expected(folder) is not None)


def _checked(files: Iterable[RemoteFile], folder: Path) -> Path:
    """The folder itself, once every file in it is the one it should be."""
    for file in files:
        if (folder / file.name).is_file() and file.expected(folder) is not None:
            file.check(folder)
    return folder


def _download(entry: Entry, files: Sequence[RemoteFile], folder: Path) -> Path:
    """Bring every missing file of a section into its folder; one process at a time."""
    source = entry.source
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        urls = {file.name: source.base_url + file.path for file in entry.files.values()}
        write_json(folder / "source.json", {"terms": source.terms, "files": urls})
        for file in files:
            _obtain(file, urls[file.name], folder)
    return folder


def _obtain(file: RemoteFile, url: str, folder: Path) -> None:
    """Download one file if it is not there, unpack it, and record its hash if nobody has told it."""
    if _settled(file, folder):
        _checked([file], folder)
        return
    path, expected = folder / file.name, file.expected(folder)
    got = file.check(folder) if path.is_file() else _fetch(url, path, expected, file.begins)
    if file.unpacks and not file.present(folder):
        _unpack(path, folder / file.unpacks)
    if expected is None:
        recorded = folder / CHECKSUMS
        write_json(recorded, (read_json(recorded) if recorded.is_file() else {}) | {file.name: got})


def _fetch(url: str, path: Path, expected: str | None, begins: tuple[bytes, ...]) -> str:
    """Download a file through pooch, which gives it its name only once its hash is right; return its SHA-256."""
    pooch = _pooch()
    download = _Resuming(path, begins)
    try:
        with _quiet(pooch.get_logger()), _writing(path), scratch_folder(path) as scratch:
            pooch.retrieve(url, expected, fname=path.name, path=scratch, downloader=download)
            (scratch / path.name).replace(path)
    except ValueError as err:
        if not download.sha256:
            raise
        raise ReadError(
            f"{url} is not the published file: SHA-256 expected {expected}, got {download.sha256}; nothing was kept. "
            f"Try again later or on another network, or copy the right file to {path}"
        ) from err
    _log.info("%s: fetched, SHA-256 %s", path.name, download.sha256)
    return download.sha256


def _pooch() -> Any:
    try:
        return importlib.import_module("pooch")
    except ImportError as err:
        raise MissingDependencyError(
            "downloading data needs pooch, which is not installed: pip install 'histoflow[slides]'"
        ) from err


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Hold back what is not a warning: pooch's logger writes to standard error whatever the caller has set up."""
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Say where it was if writing fails; a failing connection is no failure to write."""
    try:
        yield
    except (HistoflowError, ConnectionError):
        raise
    except OSError as err:
        raise OutputError(
            f"cannot write {path}: {err.strerror or err}; make room, or give another folder with cache_dir"
        ) from err


class _Resuming:
    """A downloader for pooch that continues what an earlier try or call has left.

    The unfinished file and the validator (ETag or date) of the version it belongs to lie beside the final name. The
    rest is asked for with ``Range`` and ``If-Range`` (RFC 9110, section 13.1.5), so a file that has changed meanwhile,
    and any file of a server that knows no ranges, comes anew from its beginning.

    Parameters
    ----------
    path
        The final name.
    begins
        How the file may begin; not looked at when empty.
    """

    def __init__(self, path: Path, begins: tuple[bytes, ...] = ()) -> None:
        self.path, self.begins = path, begins
        self.partial = path.with_name(f".tmp-{path.name}.part")
        self.validator = path.with_name(f".tmp-{path.name}.json")
        self.sha256 = ""

    def __call__(self, url: str, output_file: str, pooch: object) -> None:
        """Download `url` to `output_file`; `pooch` is not used."""
        self._receive_all(url)
        with self.partial.open("rb") as handle:
            start = handle.read(max(map(len, self.begins), default=0))
        if self.begins and not start.startswith(self.begins):
            self._discard()
            raise ReadError(
                f"{url} sent a file that begins with {start!r}, which is no {''.join(self.path.suffixes[-2:])}; "
                "nothing was kept. A login page of the network may stand in between: try again, or on another one"
            )
        self.sha256 = file_hash(self.partial)
        self.partial.replace(output_file)
        self._discard()

    def _discard(self) -> None:
        self.partial.unlink(missing_ok=True)
        self.validator.unlink(missing_ok=True)

    def _have(self) -> int:
        return self.partial.stat().st_size if self.partial.is_file() else 0

    def _receive_all(self, url: str) -> None:
        """Receive, and after a cut try again; give up after a few tries that brought nothing."""
        farthest, waits = self._have(), iter(_WAITS_S)
        while True:
            try:
                return self._receive(url)
            except ConnectionError as err:
                have, cut = self._have(), err
            if have > farthest:
                farthest, waits = have, iter(_WAITS_S)
            wait_s = next(waits, None)
            if wait_s is None:
                raise ReadError(
                    f"cannot fetch {url} ({cut}); {have} bytes are kept, and the next call goes on from there. "
                    f"Without a connection, copy the file to {self.path}, or set HISTOFLOW_DATA to a folder with it"
                ) from cut
            _log.info("%s: %s after %d bytes; trying again in %g s", self.path.name, cut, have, wait_s)
            time.sleep(wait_s)

    def _receive(self, url: str) -> None:
        """Receive the whole file, or the rest of it; what has arrived before a `ConnectionError` is kept."""
        response = self._open(url)
        if response is None:
            return
        with response, _writing(self.partial):
            total = self._begin(response)
            with self.partial.open("ab") as handle:
                for block in _blocks(response, handle.tell(), total, self.path.name):
                    handle.write(block)
        if total is not None and self._have() < total:
            raise ConnectionError("the connection was cut")

    def _open(self, url: str) -> HTTPResponse | None:
        """Ask for what is missing; None if nothing is."""
        try:
            response: HTTPResponse = urlopen(Request(url, headers=self._headers()), timeout=_TIMEOUT_S)
        except HTTPError as err:
            with err:
                self._refused(err)
            return None
        except (OSError, HTTPException) as err:
            raise ConnectionError(f"{getattr(err, 'reason', err)}") from err
        return response

    def _headers(self) -> dict[str, str]:
        headers = {"User-Agent": "histoflow", "Accept-Encoding": "identity"}
        if (have := self._have()) and self.validator.is_file():
            headers |= {"Range": f"bytes={have}-", "If-Range": read_json(self.validator)["validator"]}
        return headers

    def _refused(self, err: HTTPError) -> None:
        """What an error of the server means: all is here already, try again, or never."""
        if err.code == 416:
            if err.headers.get("Content-Range") == f"bytes */{self._have()}":
                return
            self._discard()
        elif err.code not in _TEMPORARY_CODES:
            raise ReadError(
                f"the server answers {err.code} {err.reason} for {err.url}; "
                f"the file may have moved: copy it to {self.path}, or set HISTOFLOW_DATA to a folder with it"
            )
        raise ConnectionError(f"the server answers {err.code} {err.reason}")

    def _begin(self, response: HTTPResponse) -> int | None:
        """Make the partial file ready for what comes; return the size of the whole file in bytes, if it is told."""
        if response.status == 206:
            told = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
            if told is None or int(told[1]) != self._have():
                self._discard()
                raise ConnectionError("the server sent another part than was asked for")
            return int(told[2])
        self._discard()
        etag, date = response.headers.get("ETag", "W/"), response.headers.get("Last-Modified")
        if validator := date if etag.startswith("W/") else etag:  # a weak tag may stand for other bytes
            write_json(self.validator, {"validator": validator})
        return None if response.length is None else int(response.length)


def _blocks(response: HTTPResponse, start: int, total: int | None, name: str) -> Iterator[bytes]:
    """The bytes of a response, block by block; progress is told where the size is known."""
    steps: Iterable[object] = repeat(None) if total is None else track(range(start, total, _BLOCK), name)
    for _ in steps:
        try:
            block = response.read(_BLOCK)
        except (OSError, HTTPException) as err:
            raise ConnectionError(f"the connection failed: {err}") from err
        if not block:
            return
        yield block


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack the one folder of an archive that is wanted, whole or not at all; a harmful archive is removed."""

    def wanted(member: tarfile.TarInfo, destination: str) -> tarfile.TarInfo | None:
        if not (member.isfile() or member.isdir()):
            raise tarfile.TarError(f"{member.name} is neither a file nor a folder")
        tarfile.data_filter(member, destination)
        top, *rest = PurePosixPath(member.name).parts or (".",)
        inner = member.replace(name="/".join(rest) or ".", deep=False)
        return tarfile.data_filter(inner, destination) if top == folder.name else None

    with _writing(folder):
        try:
            with gzip.open(archive) as whole:
                while whole.read(_BLOCK):  # its checksum comes last, behind what tarfile reads
                    pass
            with atomic_path(folder) as temporary, tarfile.open(archive) as tar:
                temporary.mkdir()
                tar.extractall(temporary, filter=wanted)
                if not any(temporary.iterdir()):
                    raise tarfile.TarError(f"it has no folder {folder.name}")
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as err:
            archive.unlink()
            raise ReadError(
                f"{archive} cannot be unpacked ({err}); it was removed: call again to fetch it anew, and if that "
                f"fails too, unpack a copy you trust to {folder}"
            ) from err
