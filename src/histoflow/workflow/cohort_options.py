"""The options of a run over a cohort: what each task offers, and what of it a folder records."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from histoflow import models
from histoflow._errors import OptionError, ReadError
from histoflow._files import file_hash, value_hash
from histoflow.pp import DenseEmbedder, Panel, embedding_facts
from histoflow.workflow.cohort_tasks import chosen_embedder
from histoflow.workflow.evaluation import LEVEL

EMBED, PREDICT, EVALUATE = "embed", "predict", "evaluate"
_ENCODER = {"encoder": "scatter", "amp": False}
_FILES = ("model", "weights", "stpath_weights", "vocabulary")
_DEFAULTS: Mapping[str, dict[str, Any]] = {
    EMBED: {**_ENCODER, "weights": None, "step_um": 112.0},
    PREDICT: {"model": None, "weights": None, "samples": 16, "at": None},
    EVALUATE: {
        **_ENCODER,
        "weights": None,
        "by": "section",
        "buffer_um": None,
        "models": ("mean", "library_size", "color", "hest_fm", "stflow"),
        "panel": 50,
        "normalize": "library",
        "min_counts": 0,
        "missing": "error",
        "seeds": 1,
        "level": LEVEL,
        "stpath_weights": None,
        "vocabulary": None,
        "organ": None,
        "tech": None,
    },
}
TASKS = tuple(_DEFAULTS)


@dataclass(frozen=True)
class Asked:
    """What a run is asked for, checked.

    Attributes
    ----------
    task
        ``"embed"``, ``"predict"`` or ``"evaluate"``.
    options
        Every option but files, as plain values.
    files
        Absolute paths of the options that name files; None where one is not given.
    device
        Where encoders run.
    """

    task: str
    options: dict[str, Any]
    files: dict[str, str | None]
    device: str

    @property
    def gpu(self) -> bool:
        """Whether a task takes a GPU."""
        return self.device.startswith("cuda")

    def identity(self) -> dict[str, Any]:
        """Everything that results depend on: the options, and what the files hold; no path."""
        told = self.options | {name: _held(path) for name, path in self.files.items()} | {"device": self.device}
        if self.task == EMBED:
            made = chosen_embedder(self.options, self.files["weights"], self.device)
            is_dense = isinstance(made, DenseEmbedder)
            told["embedding"] = (made.facts() if is_dense else embedding_facts(made.encoder, made.recipe))["id"]
        plain: dict[str, Any] = json.loads(json.dumps(told))
        return plain


def asked_for(task: str, device: str, given: Mapping[str, Any]) -> Asked:
    """Check the options of a task, and fill in those that are not given.

    Raises
    ------
    OptionError
        If the task or an option is not offered, or does not go with another.
    """
    if task not in _DEFAULTS:
        raise OptionError(f"task={task!r} is not offered; choose from {', '.join(TASKS)}")
    if unknown := sorted(set(given) - set(_DEFAULTS[task])):
        raise OptionError(f"{', '.join(unknown)}: not of task {task}, which takes {', '.join(sorted(_DEFAULTS[task]))}")
    chosen = _DEFAULTS[task] | dict(given)
    files = {name: _absolute(chosen.pop(name)) for name in _FILES if name in chosen}
    asked = Asked(task, {name: _plain(value) for name, value in chosen.items()}, files, device)
    _check(asked)
    return asked


def _check(asked: Asked) -> None:
    options = asked.options
    if asked.task == PREDICT:
        if asked.files["model"] is None:
            raise OptionError("task predict needs a model; give the folder of a fitted one")
        models.load(asked.files["model"])  # a damaged one is refused once, and not for every slide
        if options["at"] not in (None, "spots", "tiles"):
            raise OptionError(f"at={options['at']!r} is not offered; choose from spots, tiles")
    if asked.task == EVALUATE:
        if options["buffer_um"] is not None and options["by"] != "area":
            raise OptionError(f"buffer_um is for by=area, not for by={options['by']}; leave it out")
        if asked.device != "cpu":
            raise OptionError(f"device={asked.device!r}: task evaluate computes on cpu; run task embed there before it")


def _plain(value: Any) -> Any:
    if isinstance(value, Panel):
        return list(value.genes)
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    return list(value) if is_list else value


def _absolute(path: str | Path | None) -> str | None:
    return None if path is None else str(Path(path).expanduser().absolute())


def _held(path: str | None) -> str | None:
    """Hash of what a file, or every file of a folder, holds."""
    if path is None:
        return None
    place = Path(path)
    if place.is_file():
        return file_hash(place)[:12]
    files = sorted(file for file in place.rglob("*") if file.is_file())
    if not files:
        raise ReadError(f"there is no {place}; check the path")
    return value_hash({str(file.relative_to(place)): file_hash(file) for file in files})[:12]
