"""A task over all slides of a cohort: what is finished is kept, what fails is told, the others go on. Thin."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from histoflow import bench, io
from histoflow._errors import OptionError
from histoflow._files import file_name
from histoflow.cohort import Outcome, Pool, Where
from histoflow.workflow.cohort_options import EMBED, EVALUATE, PREDICT, Asked, asked_for
from histoflow.workflow.cohort_tasks import chosen_models, forget, jobs_of, perform, scales_of
from histoflow.workflow.cohorts import FEATURES
from histoflow.workflow.evaluation import counted_part, evaluate
from histoflow.workflow.records import Task, finished, plain_row, same_options, stamps
from histoflow.workflow.tables import write_csv

SUMMARY = "summary.csv"
SUMMARY_COLUMNS = ("name", "task", "status", "seconds", "error", "message", "warnings", "result")
DONE, KEPT, FAILED, LEFT = "done", "kept", "failed", "not run"
_PREPARE, _RESULTS = "prepare", "results.parquet"
_FOLDERS = {EMBED: "embeddings", PREDICT: "predictions"}

_LOG = logging.getLogger(__name__)


def run_cohort(
    manifest: str | Path,
    out: str | Path,
    *,
    task: str,
    where: Where | None = None,
    device: str = "cpu",
    resume: bool = True,
    **options: Any,
) -> pd.DataFrame:
    """Embed, predict or evaluate all of a cohort: slide by slide, here or on a cluster, each once.

    A slide that cannot be read is told in the table, and the others go on. A later run into the same folder does what
    is missing: a result counts as finished if its file is as it was written, of the same options and of files with the
    same content. Results do not depend on where they are made, only on `where.threads`.

    Parameters
    ----------
    manifest
        CSV or TSV as `read_cohort` takes it, on a file system that all workers see, as `out`.
    out
        Folder: ``embeddings/`` or ``predictions/`` with one h5ad a section, or the folder of an evaluation; beside
        them ``summary.csv``, a record of every result in ``records/``, and ``cohort.json``, what was asked for.
    task
        ``"embed"``: every row, sections at their spots, slides on a grid. ``"predict"``: the rows that are not
        references; all of them where there is no other. ``"evaluate"``: every estimator on every fold with every seed
        is one task, after a task for the embeddings of each section; rows to predict are left alone. A section that
        cannot be read is in no fold.
    where
        A `histoflow.cohort.Where`; None for this process.
    device
        Where the encoder runs, as torch names it; for ``"cuda"`` a task takes one GPU of its worker.
    resume
        Whether finished results are kept; if not, all are made anew.
    **options
        Of embed: `encoder`, `weights`, `amp`, and `step_um` between tiles of a slide. Of predict: `model`, a folder;
        `weights` of its encoder; `samples`; `at`, ``"tiles"`` for a grid where there are spots. Of evaluate: `encoder`,
        `weights`, `amp`, `by`, `buffer_um`, `models`, `panel`, `normalize`, `min_counts`, `missing`, `seeds`, their
        number, `level`, and of STPath `stpath_weights`, `vocabulary`, `organ`, `tech`; each as in `evaluate`.

    Returns
    -------
    One row per section, and of an evaluation per part: `name`, `task`, `status` (done, kept, failed or not run),
    `seconds`, class of the `error` and its `message`, `warnings`, and path of the `result` in `out`.

    Raises
    ------
    OptionError
        If an option is not offered, or differs from those of the folder's earlier runs: it says which.
    ReadError, ManifestError, ModelFormatError, WeightsError
        If manifest, model or encoder cannot be used at all.
    ClusterError, MissingDependencyError
        If the scheduler or the cluster cannot be used.

    Examples
    --------
    >>> from histoflow.cohort import Where
    >>> from histoflow.workflow import run_cohort
    >>> where = Where(cluster="slurm", n_workers=8)
    >>> run_cohort("cohort.csv", "embedded/", task="embed", where=where)  # doctest: +SKIP
    """
    folder, chosen = Path(out).absolute(), Where() if where is None else where
    asked = asked_for(task, device, options)
    cohort = io.read_cohort(manifest, missing=asked.options.get("missing", "error"), check_files=False)
    identity = asked.identity()
    same_options(folder, {"task": task, **identity, "threads": chosen.threads})
    with Pool(chosen, gpu=asked.gpu, logs=folder / "logs") as pool:
        pool.at_the_end(forget)
        ledger = _Ledger(folder, partial(pool.run, perform), resume=resume)
        if task == EVALUATE:
            _evaluate(cohort, asked, identity, ledger)
        else:
            ledger.settle([_task(row, asked, identity, folder) for row in _rows(cohort, task)])
        return ledger.table()


class _Ledger:
    """What became of every task, written into the folder whenever one ends."""

    def __init__(
        self, out: Path, run: Callable[[dict[str, dict[str, Any]]], Iterable[Outcome]], *, resume: bool
    ) -> None:
        self.out, self._run, self._resume = out, run, resume
        self._rows: dict[tuple[str, str], dict[str, Any]] = {}

    def settle(self, tasks: Sequence[Task], *, keep: Callable[[Task], bool] | None = None) -> list[str]:
        """Run the tasks that are not finished, and give the names of those that failed."""
        for task in tasks:
            self._add(task, LEFT)
        pending = {task.name: task for task in tasks if not self._kept(task, keep)}
        self._write()
        calls = {name: task.plain() for name, task in pending.items()}
        for number, outcome in enumerate(self._run(calls), start=1):
            status = FAILED if outcome.told is None else DONE
            self._add(pending[outcome.name], status, outcome)
            said = f"{outcome.error}: {outcome.message}" if outcome.error else f"{outcome.seconds:.1f} s"
            _LOG.info("%s (%d of %d): %s, %s", outcome.name, number, len(pending), status, said)
            self._write()
        return [task.name for task in tasks if self._rows[task.kind, task.name]["status"] == FAILED]

    def table(self) -> pd.DataFrame:
        """All tasks, in the order in which they were planned."""
        return pd.DataFrame(list(self._rows.values()), columns=list(SUMMARY_COLUMNS))

    def _kept(self, task: Task, keep: Callable[[Task], bool] | None) -> bool:
        """Whether a task is finished, as its record says, or else `keep`."""
        if not self._resume:
            for path in (task.record, *([task.target] if task.result else [])):
                path.unlink(missing_ok=True)
            return False
        record = finished(task)
        if keep is not None and not keep(task):
            return False
        if record is None and keep is None:
            return False
        self._add(task, KEPT, Outcome(task.name, float((record or {}).get("seconds", 0.0))))
        return True

    def _add(self, task: Task, status: str, outcome: Outcome | None = None) -> None:
        told = outcome or Outcome(task.name)
        self._rows[task.kind, task.name] = {
            "name": task.name,
            "task": task.kind,
            "status": status,
            "seconds": round(told.seconds, 3),
            "error": told.error,
            "message": told.message,
            "warnings": "; ".join(told.warnings),
            "result": task.result if status in (DONE, KEPT) else "",
        }

    def _write(self) -> None:
        write_csv(self.out / SUMMARY, self.table())


def _rows(cohort: io.Cohort, task: str) -> list[io.Row]:
    """The rows that a task is about."""
    if task == EMBED:
        rows = [row for row in cohort.rows if row.kind != FEATURES]
        if left := len(cohort.rows) - len(rows):
            _LOG.info("%d sections came as patch features and have nothing to embed", left)
    else:
        rows = [row for row in cohort.rows if row.role != "reference"]
        if not rows:
            rows = cohort.rows
            _LOG.info("all %d sections of %s are references: all of them are predicted", len(rows), cohort.name)
    if not rows:
        raise OptionError(f"cohort {cohort.name} has no section for task {task}")
    return rows


def _task(row: io.Row, asked: Asked, identity: Mapping[str, Any], out: Path) -> Task:
    """The task of one section; one that prepares an evaluation leaves its record, and its embeddings in the cache."""
    kind = _PREPARE if asked.task == EVALUATE else asked.task
    return Task(
        name=row.section,
        kind=kind,
        out=str(out),
        result=f"{_FOLDERS[kind]}/{file_name(row.section)}.h5ad" if kind in _FOLDERS else "",
        row=plain_row(row),
        options=dict(identity),
        arguments={**asked.files, "device": asked.device},
    )


def _evaluate(cohort: io.Cohort, asked: Asked, identity: Mapping[str, Any], ledger: _Ledger) -> None:
    """Embed every section, then score part by part, then put the table together."""
    counted = counted_part(cohort)
    failed = ledger.settle([_task(row, asked, identity, ledger.out) for row in counted.rows])
    whole = _without(counted, failed)
    chosen = chosen_models(whole, asked.options, asked.files)
    jobs = jobs_of(whole, chosen, asked.options)
    shared = _shared(whole, asked)
    tasks = {name: _part(name, job, shared, ledger.out) for name, job in jobs.items()}
    kept = {name for name, job in jobs.items() if bench.is_finished(job, ledger.out)}
    if ledger.settle(list(tasks.values()), keep=lambda task: task.name in kept):
        _LOG.info("%s is made when every part is done: run it again", _RESULTS)
        return
    evaluate(whole, ledger.out, estimators=chosen, **scales_of(asked.options))


def _without(cohort: io.Cohort, failed: Sequence[str]) -> io.Cohort:
    """The cohort without sections that cannot be read, if it can be evaluated so."""
    if not failed:
        return cohort
    left = cohort.select(sections=[row.section for row in cohort.rows if row.section not in failed])
    if cohort.held_out_ids and not left.held_out_ids:
        raise OptionError(
            f"no held-out section of {cohort.name} can be read ({', '.join(failed)}): see {SUMMARY}, mend them, and "
            "run it again"
        )
    _LOG.info("evaluated without %s, which cannot be read", ", ".join(failed))
    return left


def _shared(cohort: io.Cohort, asked: Asked) -> dict[str, Any]:
    """What every part of an evaluation needs: the cohort, as its files are now, and the options."""
    rows = [plain_row(row) for row in cohort.rows]
    as_they_are = [stamps(row) for row in rows]
    return {"rows": rows, "stamps": as_they_are, "name": cohort.name, "options": asked.options, "files": asked.files}


def _part(name: str, job: bench.Job, shared: dict[str, Any], out: Path) -> Task:
    key = job.key()
    return Task(name, EVALUATE, str(out), f"parts/{key}.parquet", {}, {"part": key}, shared)
