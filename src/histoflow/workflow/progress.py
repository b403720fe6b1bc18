"""How far a fit is, kept in a folder beside the model that it makes, so that a killed one is taken up. Thin."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any

from anndata import AnnData
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from histoflow import io, models
from histoflow._errors import HistoflowWarning, OutputError
from histoflow._files import atomic_path, read_json, scratch_folder, value_hash, write_json
from histoflow._keys import section_name
from histoflow.bench.parts import content_of
from histoflow.models.arrays import Arrays
from histoflow.workflow.cohorts import planned_fit

_FORMAT = 2
_ABOUT, _ENDING = "progress.json", ".progress"
_LIBRARIES = ("histoflow", "torch", "numpy", "scikit-learn")

_LOG = logging.getLogger(__name__)


class ProgressFolder:
    """Keeps in a folder how far the trainings of one fit are, each in a safetensors file.

    What lies there of other data, settings or versions is removed, which is told.

    Parameters
    ----------
    path
        The folder; made when something is written first.
    identity
        Hash of everything that the fit depends on.

    Raises
    ------
    OutputError
        If the folder is there and no progress of a fit.
    """

    def __init__(self, path: str | Path, identity: str) -> None:
        self.path, self.identity, self._laying = Path(path), identity, Lock()
        if not self.path.exists() or _holds_nothing(self.path):
            return
        about = read_json(self.path / _ABOUT) if (self.path / _ABOUT).is_file() else None
        if not isinstance(about, dict) or about.get("format") not in range(1, _FORMAT + 1):
            raise OutputError(
                f"{self.path} is no progress of a fit, and that is to go there; move it, or choose another"
            )
        if about["identity"] == identity:
            _LOG.info("taking up the fit that %s was left in", self.path)
            return
        warnings.warn(
            f"{self.path} is of a fit of other data, settings or versions, which cannot be taken up; it is removed",
            HistoflowWarning,
            stacklevel=2,
        )
        self.remove()

    def read(self, name: str) -> Arrays | None:
        """Give what was written last under a name; None where there is nothing, or nothing whole."""
        path = self._file(name)
        try:
            return load_file(path) if path.is_file() else None
        except (SafetensorError, FileNotFoundError) as err:
            _LOG.warning("%s is damaged (%s); this training starts anew", path, err)
            return None

    def write(self, name: str, arrays: Arrays) -> None:
        """Keep arrays under a name, in place of those before, whole or not at all.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        try:
            self._put(name, arrays)
        except OutputError:
            if self._is_laid():
                raise
            # Another process has ended the same fit meanwhile, and has removed the folder.
            self._put(name, arrays)

    def remove(self) -> None:
        """Remove the folder, once what it was kept for is done."""
        with suppress(OSError), scratch_folder(self.path) as aside:
            self.path.rename(aside / self.path.name)

    def _put(self, name: str, arrays: Arrays) -> None:
        with self._laying:  # trainings on several threads write
            if not self._is_laid():
                with atomic_path(self.path) as folder:
                    folder.mkdir()
                    write_json(folder / _ABOUT, {"format": _FORMAT, "identity": self.identity})
        with atomic_path(self._file(name)) as temporary:
            temporary.write_bytes(save(arrays))

    def _is_laid(self) -> bool:
        return (self.path / _ABOUT).is_file()

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.safetensors"


def _holds_nothing(folder: Path) -> bool:
    """Whether a folder is empty but for what a killed process was about to write."""
    return folder.is_dir() and all(path.name.startswith(".tmp-") for path in folder.iterdir())


def fit_to_folder(cohort: io.Cohort | AnnData | Sequence[AnnData], out: str | Path, **options: Any) -> models.Estimator:
    """Fit as `fit` does and save the model; a fit that was killed is taken up at its last epoch, to the same bits.

    Parameters
    ----------
    cohort
        As in `fit`.
    out
        Folder of the model. Until it is there, ``<out>.progress`` beside it keeps how far its trainings are.
    **options
        Arguments of `fit`.

    Returns
    -------
    The fitted estimator, saved.

    Raises
    ------
    OptionError
        As `fit`.
    OutputError
        If the folder cannot be written.
    """
    out = Path(out)
    estimator, references, how = planned_fit(cohort, **options)
    beside = out.with_name(out.name + _ENDING)
    progress = ProgressFolder(beside, _identity(estimator, references, how))
    fitted = estimator.with_progress(progress).fit(references, **how)
    fitted.save(out)
    progress.remove()
    return fitted


def _identity(estimator: models.Estimator | models.Auto, sections: Sequence[AnnData], how: dict[str, Any]) -> str:
    """Hash of everything that a fit depends on: options, data, and what computes it."""
    content = [[section_name(section), content_of(section)] for section in sections]
    told = [estimator.name, estimator.identity(), list(how["panel"].genes), how["min_counts"], how["missing"]]
    return value_hash([_FORMAT, told, content, {name: version(name) for name in _LIBRARIES}])
