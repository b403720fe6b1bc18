"""The parts of an evaluation: one estimator on one fold each, kept with its predictions and taken up by a later run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
from anndata import AnnData

from histoflow._errors import ReadError
from histoflow._files import atomic_path, file_name, value_hash, write_h5ad
from histoflow._keys import EMBEDDINGS, SPATIAL_UM, TISSUE, UNS, Missing, facts, section_name
from histoflow.models import Auto, Estimator
from histoflow.pp.expression import Panel
from histoflow.stats.splits import Fold

MEASURED = "measured"
"""``layers`` entry of kept predictions: what was measured at the same spots, on the same scale."""
_FORMAT = 3
_KEY = "evaluation"


@dataclass(frozen=True)
class Job:
    """One estimator, fitted on the training part of one fold.

    Attributes
    ----------
    fold
        The fold, named.
    train, test
        Its sections.
    panel
        The genes.
    model
        Name of the estimator in the table.
    estimator
        An estimator, or a choice among estimators, not fitted.
    missing
        What a gene is that a section's table lacks, as in `Estimator.fit`.
    """

    fold: Fold
    train: list[AnnData]
    test: list[AnnData]
    panel: Panel
    model: str
    estimator: Estimator | Auto
    missing: Missing = "error"

    def key(self) -> str:
        """Hash of everything the scores depend on."""
        sections = [
            [[section_name(section), content_of(section)] for section in part] for part in (self.train, self.test)
        ]
        told = [type(self.estimator).__name__, self.estimator.identity(), self.panel.genes, self.fold.name]
        told += [self.missing] if self.missing != "error" else []
        return value_hash([_FORMAT, self.model, told, sections])


class Keeper:
    """Keeps what a job made in a folder, or, without one, nothing.

    Parameters
    ----------
    job
        The job.
    out
        Folder of the evaluation; None to keep nothing.
    """

    def __init__(self, job: Job, out: Path | None) -> None:
        self._job, self._out = job, out
        self._key = "" if out is None else job.key()

    def model(self, fitted: Estimator) -> None:
        """Keep the fitted estimator."""
        if self._out is not None:
            job = self._job
            fitted.save(model_path(self._out, fold=job.fold.name, model=job.model, seed=job.estimator.seed))

    def prediction(self, predicted: AnnData, measured: np.ndarray, *, section: AnnData, model: str) -> None:
        """Keep what was predicted of a section, and what was measured there, (n_spots, n_genes)."""
        if self._out is None:
            return
        kept = predicted.copy()
        kept.layers[MEASURED] = measured
        kept.uns[UNS][_KEY] = self._key
        path = _prediction_path(self._out, self._job.fold.name, section_name(section), model, self._job.estimator.seed)
        write_h5ad(kept, path)

    def rows(self, score: Callable[[Job, Keeper], pd.DataFrame]) -> pd.DataFrame:
        """The rows of the job, from the folder where an earlier run has finished it, else as `score` makes them.

        Rows get the columns fold, seed and shares; columns section, model and error are needed.
        """
        part = None if self._out is None else part_path(self._out, self._key)
        rows = None if part is None else self._finished(part)
        if rows is None:
            rows = score(self._job, self).assign(fold=self._job.fold.name, seed=self._job.estimator.seed)
            if part is not None:
                write_table(rows, part)
        return rows.assign(shares=self._job.fold.shares)

    def finished(self) -> bool:
        """Whether an earlier run has finished the job in this folder."""
        return self._out is not None and self._finished(part_path(self._out, self._key)) is not None

    def _finished(self, part: Path) -> pd.DataFrame | None:
        """The rows of a part, if the predictions beside it are still its own: other options write the same names."""
        if not part.is_file() or self._out is None:
            return None
        rows = pd.read_parquet(part)
        scored = rows.loc[(rows["error"] == "") & (rows["section"] != ""), ["fold", "section", "model", "seed"]]
        kept = [_prediction_path(self._out, *row) for row in scored.drop_duplicates().itertuples(index=False)]
        return rows if all(_key_of(path) == self._key for path in kept) else None


def _prediction_path(out: Path, fold: str, section: str, model: str, seed: int) -> Path:
    return out / "predictions" / f"{file_name(f'{fold}-{section}-{model}-{seed}')}.h5ad"


def _key_of(prediction: Path) -> str | None:
    """Key of the job that wrote a prediction, or None if there is none."""
    if not prediction.is_file():
        return None
    with h5py.File(prediction) as file:
        stored = file.get(f"uns/{UNS}/{_KEY}")
        return None if stored is None else str(stored.asstr()[()])


def part_path(out: Path, key: str) -> Path:
    """Where the rows of a job are kept, by its `Job.key`."""
    return out / "parts" / f"{key}.parquet"


def model_path(folder: str | Path, *, fold: str, model: str, seed: int = 0) -> Path:
    """Where `run` kept a fitted model, for `models.load`.

    Parameters
    ----------
    folder
        The ``out`` of that run.
    fold, model, seed
        As in its table.
    """
    return Path(folder) / "models" / file_name(f"{fold}-{model}-{seed}")


def read_prediction(folder: str | Path, *, fold: str, section: str, model: str, seed: int = 0) -> AnnData:
    """Read a prediction that `run` kept.

    Parameters
    ----------
    folder
        The ``out`` of that run.
    fold, section, model, seed
        As in its table.

    Returns
    -------
    As `Estimator.predict`, and ``layers["measured"]``: what was measured at the same spots, on the same scale.

    Raises
    ------
    ReadError
        If there is none.
    """
    path = _prediction_path(Path(folder), fold, section, model, seed)
    if not path.is_file():
        raise ReadError(f"there is no prediction {path}; run the evaluation with this model and seed")
    return anndata.read_h5ad(path)


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as parquet, whole or not at all."""
    with atomic_path(path) as temporary:
        table.to_parquet(temporary, index=False)


def content_of(section: AnnData) -> dict[str, str]:
    """Hashes of counts, names, places, pieces of tissue, scale, and how each embedding was made, of a section."""
    counts = section.X.tocsr()
    digest = hashlib.sha256(counts.data.tobytes() + counts.indices.tobytes() + counts.indptr.tobytes())
    made = {name: [str(m.get("id")), str(m.get("slide_id"))] for name, m in facts(section).get(EMBEDDINGS, {}).items()}
    known = facts(section)
    return {
        "counts": digest.hexdigest(),
        "names": value_hash([list(section.obs_names), list(section.var_names)]),
        "places": hashlib.sha256(np.ascontiguousarray(section.obsm[SPATIAL_UM]).tobytes()).hexdigest(),
        "scale": value_hash([str(known.get(key)) for key in ("mpp_x", "mpp_y", "pitch_um")]),
        "pieces": value_hash([str(piece) for piece in section.obs.get(TISSUE, ())]),
        "embeddings": value_hash(made),
    }
