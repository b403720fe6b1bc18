"""Run a function on many arguments: what fails is told and leaves the others alone."""

from __future__ import annotations

import hashlib
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from histoflow._errors import ClusterError, HistoflowError, HistoflowWarning
from histoflow.cohort.clusters import GPU, Where, Workers, completed
from histoflow.cohort.threads import fixed_threads

Work = Callable[[dict[str, Any]], dict[str, Any]]
"""Takes plain values and gives plain values: they travel to another machine."""

_LOG = logging.getLogger(__name__)
_DIED = "its worker died {n} times while at it: give a worker more memory, and read the workers' logs"
_LOST = "it was lost with the scheduler, or was cancelled there; run it again"


@dataclass(frozen=True)
class Outcome:
    """What became of one task.

    Attributes
    ----------
    name
        Of the task.
    seconds
        How long it took, by the worker's clock; 0 where that is not known.
    told
        What it gave; None where it failed.
    error
        Class of the error; empty where there is none.
    message
        What the error says, in one line.
    warnings
        Our own warnings.
    """

    name: str
    seconds: float = 0.0
    told: dict[str, Any] | None = None
    error: str = ""
    message: str = ""
    warnings: list[str] = field(default_factory=list)


class Pool:
    """Runs functions on many arguments, in this process or on a cluster that is started when it is first needed.

    Used in a ``with`` statement: what was started ends with it.

    Parameters
    ----------
    where
        Where tasks run; None for this process.
    gpu
        Whether a task takes one GPU of a worker.
    logs
        Folder of what jobs of a queue write on their output.
    """

    def __init__(self, where: Where | None = None, *, gpu: bool = False, logs: str | Path = "logs") -> None:
        self.where = Where() if where is None else where
        self.gpu = gpu
        self._workers = Workers(self.where, gpu=gpu, logs=Path(logs))
        self._forget: list[Callable[[], None]] = []

    def __enter__(self) -> Self:
        """Start nothing yet."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Let every process forget, and end what was started."""
        for forget in self._forget:
            forget()
            self._workers.everywhere(forget)
        self._workers.close()

    def at_the_end(self, forget: Callable[[], None]) -> None:
        """Call a function in every process when all is done."""
        self._forget.append(forget)

    def run(self, work: Work, calls: Mapping[str, dict[str, Any]]) -> Iterator[Outcome]:
        """Call a function with each of some arguments, and give what became of it, in the order in which they end.

        Parameters
        ----------
        work
            A function of a module that workers can import. An error of ours is a result, told at once; after any other
            the task is tried again.
        calls
            Arguments by name: strings, numbers, lists and dicts of them.

        Raises
        ------
        MissingDependencyError
            If Dask is asked for and not installed.
        ClusterError
            If the scheduler cannot be reached, or the cluster cannot be started.
        """
        if not self.where.on_dask:
            for name, arguments in calls.items():
                yield _here(work, name, arguments, self.where)
        elif calls:
            client = self._workers.client(len(calls))
            futures = {self._submit(client, work, arguments): name for name, arguments in calls.items()}
            for future in completed(futures):
                yield _outcome(future, futures[future])
                future.release()  # what it gave need not stay in the scheduler's memory

    def _submit(self, client: Any, work: Work, arguments: dict[str, Any]) -> Any:
        # The key tells the task, so that two runs at once on one scheduler share it.
        told = repr((work.__module__, work.__qualname__, self.where.threads, sorted(arguments.items())))
        return client.submit(
            call,
            work,
            arguments,
            self.where.threads,
            version("histoflow"),
            key=f"histoflow-{hashlib.sha256(told.encode()).hexdigest()}",
            retries=self.where.retries,
            resources={GPU: 1} if self.gpu else None,
        )


def call(work: Work, arguments: dict[str, Any], threads: int, of_version: str) -> dict[str, Any]:
    """Call a function as a worker does: with a fixed number of threads, its errors of ours as values."""
    if (own := version("histoflow")) != of_version:
        raise ClusterError(f"this worker has histoflow {own} and was asked by {of_version}; install the same")
    start = time.monotonic()
    told: dict[str, Any] = {}
    with fixed_threads(threads), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", HistoflowWarning)
        try:
            told["told"] = work(arguments)
        except HistoflowError as err:
            told["error"], told["message"] = told_of(err)
    said = list(dict.fromkeys(_one_line(warning.message) for warning in caught))
    return told | {"seconds": time.monotonic() - start, "warnings": said}


def told_of(err: BaseException) -> tuple[str, str]:
    """The class of an error, and what it says in one line."""
    return type(err).__name__, _one_line(err)


def _one_line(said: object) -> str:
    return " ".join(str(said).split())


def _here(work: Work, name: str, arguments: dict[str, Any], where: Where) -> Outcome:
    for left in range(where.retries, -1, -1):
        try:
            return Outcome(name, **call(work, arguments, where.threads, version("histoflow")))
        except Exception as err:  # noqa: BLE001  whatever it is, it is told, and the others go on, as on Dask
            _LOG.debug("%s failed, %d more tries", name, left, exc_info=True)
            error, message = told_of(err)
    return Outcome(name, error=error, message=message)


def _outcome(future: Any, name: str) -> Outcome:
    if future.status == "finished":
        return Outcome(name, **future.result())
    if future.status != "error":
        return Outcome(name, error="ClusterError", message=_LOST)
    err = future.exception()
    error, message = told_of(err)
    if error == "KilledWorker":
        message = _DIED.format(n=getattr(err, "allowed_failures", 0) + 1)
    return Outcome(name, error=error, message=message)
