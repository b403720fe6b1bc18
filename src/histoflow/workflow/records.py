"""What a run over a cohort keeps beside its results: of the folder what was asked, of each task what it was made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from histoflow._errors import HistoflowError, OptionError, ReadError
from histoflow._files import file_hash, file_name, read_json, value_hash, write_json
from histoflow.io import Row, slide_id

ASKED = "cohort.json"
_FORMAT = 1
_RECORDS = "records"
_OF_OUTS = ("filtered_feature_bc_matrix*", "spatial")
"""What is read of a folder of counts; the rest, such as alignments, may be huge."""


@dataclass(frozen=True)
class Task:
    """One result to be made; plain values, so that it can travel.

    Attributes
    ----------
    name
        Of the section, or of the part of an evaluation.
    kind
        What is to be done.
    out
        The folder of the run.
    result
        Path of the result in it; empty where there is none but the record.
    row
        The row of the manifest as `plain_row` makes it; empty for a part of an evaluation.
    options
        Everything that the result depends on but the files of the row, and nothing else: no path.
    arguments
        What the work needs beside that: paths, where it runs.
    """

    name: str
    kind: str
    out: str
    result: str
    row: dict[str, Any]
    options: dict[str, Any]
    arguments: dict[str, Any]

    @property
    def target(self) -> Path:
        """Where the result goes."""
        return Path(self.out) / self.result

    @property
    def record(self) -> Path:
        """Where the record goes."""
        return Path(self.out) / _RECORDS / self.kind / f"{file_name(self.name)}.json"

    def plain(self) -> dict[str, Any]:
        """The task as a dict of plain values."""
        return asdict(self)

    def key(self) -> str:
        """Hash of everything but what is in the files of the row."""
        told = {name: value for name, value in self.row.items() if name not in _FILES}
        return value_hash([_FORMAT, self.kind, self.name, told, self.options])


_FILES = ("slide", "counts", "spots")


def plain_row(row: Row) -> dict[str, Any]:
    """A row of a manifest as plain values, those that are not given left out."""
    given = {name: value for name, value in asdict(row).items() if value is not None}
    return {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}


def row_of(plain: Mapping[str, Any]) -> Row:
    """The row that `plain_row` told."""
    told: dict[str, Any] = {name: Path(value) if name in _FILES else value for name, value in plain.items()}
    return Row(**told)


def fingerprints(row: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Content hash of every file of a row that is read, with size and time, by column and name.

    Raises
    ------
    ReadError
        If one is missing or cannot be read.
    """
    return {name: {**_stamp(path), "content": _content(name, path)} for name, path in _files(row).items()}


def stamps(row: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Size and time of every file of a row that is read; raises as `fingerprints`."""
    return {name: _stamp(path) for name, path in _files(row).items()}


def finished(task: Task) -> dict[str, Any] | None:
    """The record of a task, if its result is there as it was written, of these files and options; else None."""
    try:
        record = read_json(task.record)
        if not isinstance(record, dict) or record.get("key") != task.key() or not _same(record["inputs"], task.row):
            return None
        if task.result and (record["result"] != task.result or record["sha256"] != file_hash(task.target)):
            return None
    except (HistoflowError, OSError, KeyError, TypeError):
        return None
    return record


def keep_record(task: Task, inputs: Mapping[str, Any], told: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Write the record of a task whose result is there."""
    record = {
        "name": task.name,
        "task": task.kind,
        "key": task.key(),
        "inputs": inputs,
        "result": task.result,
        "sha256": file_hash(task.target) if task.result else None,
        "seconds": round(seconds, 3),
        "told": told,
        "versions": {"histoflow": version("histoflow")},
    }
    write_json(task.record, record)
    return record


def same_options(out: Path, asked: Mapping[str, Any]) -> None:
    """Write what is asked for into the folder of a run, or refuse to mix it with what was asked before.

    Raises
    ------
    OptionError
        Naming each option that differs.
    """
    path = out / ASKED
    if not path.is_file():
        write_json(path, {"format": _FORMAT, "asked": asked})
        return
    told = read_json(path)
    before = told.get("asked") if isinstance(told, dict) and told.get("format") == _FORMAT else None
    if not isinstance(before, dict):
        raise ReadError(f"{path} is not of a run over a cohort, or of another version; choose another folder")
    differing = [name for name in sorted({*before, *asked}) if before.get(name) != asked.get(name)]
    if differing:
        said = "; ".join(f"{name} is {asked.get(name)!r} and was {before.get(name)!r}" for name in differing)
        raise OptionError(f"--out {out} holds results of other options: {said}; choose another folder, or the same")


def _files(row: Mapping[str, Any]) -> dict[str, Path]:
    """The files of a row by column, those in a folder of counts by column and name."""
    found: dict[str, Path] = {}
    for column in _FILES:
        if column not in row:
            continue
        path = Path(row[column])
        if not path.is_dir():
            found[column] = path
            continue
        nested = path if (path / "spatial").is_dir() or not (path / "outs").is_dir() else path / "outs"
        tops = [top for pattern in _OF_OUTS for top in sorted(nested.glob(pattern))]
        files = [file for top in tops for file in ([top] if top.is_file() else sorted(top.rglob("*")))]
        found |= {f"{column}/{file.relative_to(nested)}": file for file in files if file.is_file()}
    return found


def _stamp(path: Path) -> dict[str, int]:
    try:
        stat = path.stat()
    except OSError as err:
        raise ReadError(f"cannot read {path}: {err.strerror or err}; check the path and its permissions") from err
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _content(name: str, path: Path) -> str:
    """Hash of a file; of a slide its quick content id."""
    return slide_id(path) if name == "slide" else file_hash(path)


def _same(recorded: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Whether the files are what they were: by size and time, else by content."""
    files = _files(row)
    if set(files) != set(recorded):
        return False
    for name, path in files.items():
        known = recorded[name]
        stamped = _stamp(path).items() <= known.items()
        if not stamped and known["content"] != _content(name, path):
            return False
    return True
