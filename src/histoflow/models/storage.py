"""A saved model on disk: a description and its arrays, sealed by hashes that are checked before either is used."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from histoflow._errors import ModelFormatError, OutputError, ReadError
from histoflow._files import atomic_path, file_hash, read_json, value_hash, write_json
from histoflow.models.arrays import Arrays

MODEL_JSON, WEIGHTS = "model.json", "weights.safetensors"
FORMAT = 1
"""Of the folder; a model of another one is refused by name of the version that wrote it."""
HASHES = "sha256"
"""Entry of the description: hashes of the arrays' file and of everything else in the description."""

_VERSION = re.compile(r"\d+(?:\.\d+)*(?:[.+-]?[a-z0-9]+){0,4}")


def write_model(path: str | Path, described: Mapping[str, Any], arrays: Arrays) -> None:
    """Write a model as a folder, whole or not at all.

    Parameters
    ----------
    path
        The folder.
    described
        What is known of the model, as JSON holds it, without format and hashes.
    arrays
        Everything learned.

    Raises
    ------
    OutputError
        If the folder cannot be written.
    """
    with atomic_path(path) as folder:
        folder.mkdir()
        try:
            save_file({key: np.ascontiguousarray(value) for key, value in arrays.items()}, folder / WEIGHTS)
        except SafetensorError as err:
            raise OutputError(f"cannot write model {path}: {err}; make room, or choose another folder") from err
        write_json(folder / MODEL_JSON, sealed({"format": FORMAT, **described}, file_hash(folder / WEIGHTS)))


def sealed(described: Mapping[str, Any], weights_hash: str) -> dict[str, Any]:
    """A description with the hashes of the arrays' file and of itself, as JSON holds it."""
    plain: dict[str, Any] = json.loads(json.dumps({key: held for key, held in described.items() if key != HASHES}))
    return {**plain, HASHES: {WEIGHTS: weights_hash, MODEL_JSON: value_hash(plain)}}


def read_model(path: str | Path, estimators: Collection[str]) -> tuple[dict[str, Any], Arrays]:
    """Description and arrays of a model, each as it was written.

    Parameters
    ----------
    path
        The folder.
    estimators
        Names of those that are known.

    Raises
    ------
    ReadError
        If the folder or a file in it is missing.
    ModelFormatError
        If a file is not the one that was written, the estimator is unknown, or a newer version wrote the model.
    """
    folder = Path(path)
    described = read_json(folder / MODEL_JSON)
    _check_format(folder, described, estimators)
    if not (folder / WEIGHTS).is_file():
        raise ReadError(f"model {folder} has no {WEIGHTS}; copy the whole folder")
    _check_hashes(folder, described)
    try:
        return described, load_file(folder / WEIGHTS)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as err:
        raise ModelFormatError(f"model {folder}: {WEIGHTS} is damaged ({err}); copy it anew") from err


def _check_format(folder: Path, described: Any, estimators: Collection[str]) -> None:
    if not isinstance(described, dict) or "format" not in described:
        raise ModelFormatError(f"model {folder}: {MODEL_JSON} describes no model; give a folder that histoflow saved")
    found, estimator = described["format"], described.get("estimator")
    if found != FORMAT or isinstance(found, bool):
        raise ModelFormatError(
            f"model {folder} has format {str(found)[:40]}, and this is histoflow {version('histoflow')}, which reads "
            f"format {FORMAT}: {_reads_it(described)}"
        )
    if not isinstance(estimator, str) or estimator not in estimators:
        raise ModelFormatError(
            f"model {folder} has estimator {str(estimator)[:40]!r}, and histoflow {version('histoflow')} knows "
            f"{', '.join(estimators)}: {_reads_it(described)}"
        )


def _reads_it(described: Mapping[str, Any]) -> str:
    """Which version reads a model: at least the one that wrote it."""
    versions = described.get("versions")
    writer = versions.get("histoflow") if isinstance(versions, dict) else None
    if not isinstance(writer, str) or len(writer) > 40 or not _VERSION.fullmatch(writer):
        return "it does not tell which version wrote it; save it anew, or update histoflow"
    return f"histoflow {writer} wrote it and reads it; pip install 'histoflow=={writer}', or a newer one"


def _check_hashes(folder: Path, described: Mapping[str, Any]) -> None:
    hashes = described.get(HASHES)
    if not isinstance(hashes, dict):
        raise ModelFormatError(f"model {folder}: {MODEL_JSON} has no {HASHES}, so nothing tells whether it is whole")
    found = {
        WEIGHTS: file_hash(folder / WEIGHTS),
        MODEL_JSON: value_hash({key: held for key, held in described.items() if key != HASHES}),
    }
    if changed := [name for name, digest in found.items() if hashes.get(name) != digest]:
        raise ModelFormatError(
            f"model {folder}: {' and '.join(changed)} {'is' if len(changed) == 1 else 'are'} damaged, or changed since "
            f"the model was saved (SHA-256 differs from the one in {MODEL_JSON}); copy the folder anew, or fit again"
        )
