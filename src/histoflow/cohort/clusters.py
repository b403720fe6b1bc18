"""Where tasks run: here, on a Dask scheduler that is there, or on a cluster that is started for them."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from histoflow._errors import ClusterError, MissingDependencyError, OptionError

CLUSTERS = ("local", "slurm", "pbs")
"""Clusters that can be started: processes of this machine, or jobs of a queue."""
GPU = "GPU"
"""Dask's name of the resource of which a task on a GPU takes one."""
_SUBMITS = {"slurm": "sbatch", "pbs": "qsub"}
_FORWARDED = ("HISTOFLOW_CACHE", "HISTOFLOW_DATA", "HF_HOME", "HF_HUB_OFFLINE")
_MEMORY, _WALLTIME = "8GB", "1-00:00:00"
_PBS_WALLTIME = "24:00:00"
_CLOSE_S = 60

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Where:
    """Where the tasks of a cohort run; with neither `scheduler` nor `cluster` in this process, without Dask.

    Parameters
    ----------
    scheduler
        Address of a Dask scheduler that is there, such as ``tcp://10.0.0.1:8786``; its workers are used as they are.
    cluster
        A cluster to start and to end: ``"local"``, processes of this machine; ``"slurm"`` or ``"pbs"``, jobs of a
        queue. What is not said here is taken from Dask's own configuration (``jobqueue.slurm``, ``jobqueue.pbs``).
    n_workers
        Workers, or jobs, of a cluster that is started; lost ones are replaced.
    threads
        Threads of one task, in torch and linear algebra. The results may depend on it, not on how many workers or
        cores there are.
    retries
        How often a task is tried again after an error that is not about its data. A task whose worker died is run
        elsewhere in any case, as often as the scheduler's ``allowed-failures`` says.
    memory
        Memory of a job, such as ``"16GB"``; None for Dask's configuration, else 8 GB.
    walltime
        Longest time of a job, as the queue writes it; None for Dask's configuration, else a day.
    queue
        Partition or queue; None for the default one.

    Raises
    ------
    OptionError
        If both are given, or a value is not offered.
    """

    scheduler: str | None = None
    cluster: str | None = None
    n_workers: int = 2
    threads: int = 1
    retries: int = 2
    memory: str | None = None
    walltime: str | None = None
    queue: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if self.scheduler and self.cluster:
            raise OptionError(f"scheduler={self.scheduler} and cluster={self.cluster} were both given; give one")
        if self.cluster is not None and self.cluster not in CLUSTERS:
            raise OptionError(f"cluster={self.cluster!r} is not offered; choose from {', '.join(CLUSTERS)}")
        for name, least in (("n_workers", 1), ("threads", 1), ("retries", 0)):
            if getattr(self, name) < least:
                raise OptionError(f"{name} is {getattr(self, name)}; give {least} or more")
        given = [name for name in ("memory", "walltime", "queue") if getattr(self, name) is not None]
        if given and self.cluster not in _SUBMITS:
            raise OptionError(f"{', '.join(given)}: of a job, so for cluster slurm or pbs; leave it out")

    @property
    def on_dask(self) -> bool:
        """Whether Dask is needed."""
        return bool(self.scheduler or self.cluster)


class Workers:
    """The workers of a Dask scheduler, or of a cluster that is started when they are first asked for.

    Parameters
    ----------
    where
        Which scheduler or cluster.
    gpu
        Whether a worker has to have one GPU.
    logs
        Folder of what jobs write on their output.
    """

    def __init__(self, where: Where, *, gpu: bool, logs: Path) -> None:
        self._where, self._gpu, self._logs = where, gpu, logs
        self._opened = ExitStack()
        self._client: Any = None
        self._cluster: Any = None

    def client(self, n_tasks: int) -> Any:
        """A Dask client whose started workers are no more than `n_tasks`; lost ones are replaced.

        Raises
        ------
        MissingDependencyError
            If Dask's libraries are not installed.
        ClusterError
            If the scheduler cannot be reached, or the cluster cannot be started.
        """
        if self._client is None:
            self._open()
        if self._cluster is not None:
            _size(self._cluster, self._where, min(self._where.n_workers, n_tasks))
        return self._client

    def everywhere(self, function: Callable[[], None]) -> None:
        """Call a function in every worker, if there are any."""
        if self._client is not None:
            self._client.run(function, on_error="ignore")

    def close(self) -> None:
        """End the client, and the cluster if it was started here."""
        self._opened.close()
        self._client = self._cluster = None

    def _open(self) -> None:
        distributed = _part("distributed")
        if self._where.scheduler:
            client = self._opened.enter_context(_reached(distributed, self._where.scheduler))
            _check_gpu(client, self._where.scheduler, gpu=self._gpu)
        else:
            with warnings.catch_warnings():  # the usual port of the page is taken: any other will do
                warnings.filterwarnings("ignore", message="Port .* is already in use", category=UserWarning)
                self._cluster = _started(self._where, gpu=self._gpu, logs=self._logs)
            self._opened.callback(_end, self._cluster)
            client = self._opened.enter_context(distributed.Client(self._cluster))
        self._client = client
        _LOG.info("dashboard of Dask: %s", client.dashboard_link)


def completed(futures: Iterable[Any]) -> Iterator[Any]:
    """The futures of a client, each as it ends."""
    return iter(_part("distributed").as_completed(futures))


def job_script(where: Where, *, gpu: bool = False, logs: str | Path = "logs") -> str:
    """Return the script of one job, as it would be handed to the queue.

    Parameters
    ----------
    where
        Of cluster slurm or pbs.
    gpu
        Whether a job takes one GPU.
    logs
        Folder of what jobs write on their output.

    Raises
    ------
    OptionError
        If the cluster is no queue.
    MissingDependencyError
        If Dask's libraries are not installed.
    """
    if where.cluster not in _SUBMITS:
        raise OptionError(f"cluster={where.cluster!r} has no jobs; choose from {', '.join(_SUBMITS)}")
    with _queue_class(where)(**_queue_options(where, gpu=gpu, logs=Path(logs))) as cluster:
        return str(cluster.job_script())


def _part(name: str) -> Any:
    try:
        return __import__(name)
    except ImportError as err:
        raise MissingDependencyError(f"{name} is not installed: pip install 'histoflow[cluster]'") from err


def _reached(distributed: Any, address: str) -> Any:
    try:
        return distributed.Client(address)
    except (OSError, ValueError, TimeoutError) as err:
        raise ClusterError(
            f"the Dask scheduler {address} cannot be reached ({err or type(err).__name__}); start one with "
            "`dask scheduler`, and give the address that it prints"
        ) from err


def _check_gpu(client: Any, address: str, *, gpu: bool) -> None:
    """Refuse workers of which none will ever take a task."""
    offered = [worker.get("resources", {}) for worker in client.scheduler_info(n_workers=-1)["workers"].values()]
    if gpu and offered and not any(resources.get(GPU) for resources in offered):
        raise ClusterError(
            f"no worker of {address} offers the resource {GPU}; start one for each GPU with "
            f"`dask worker {address} --nthreads 1 --resources GPU=1`"
        )


def _started(where: Where, *, gpu: bool, logs: Path) -> Any:
    """A cluster, without workers to begin with."""
    if where.cluster == "local":
        return _local(where.n_workers, gpu=gpu)
    submit = _SUBMITS[str(where.cluster)]
    if shutil.which(submit) is None:
        raise ClusterError(f"cluster {where.cluster}: there is no {submit} here; run it on a node that submits jobs")
    logs.mkdir(parents=True, exist_ok=True)
    cluster = _queue_class(where)(**_queue_options(where, gpu=gpu, logs=logs))
    if where.cluster == "slurm":  # Dask would ask for a refused job again and again
        asked = subprocess.run(
            [submit, "--test-only"], input=cluster.job_script(), capture_output=True, text=True, check=False
        )
        if asked.returncode:
            cluster.close()
            raise ClusterError(f"cluster slurm refuses the jobs: {' '.join(asked.stderr.split())}")
    return cluster


def _end(cluster: Any) -> None:
    """Close a cluster; one that lost a worker shortly before may wait for it for ever."""
    try:
        cluster.close(timeout=_CLOSE_S)
    except TimeoutError:
        _LOG.warning("the cluster did not end within %d s; what is left of it ends with this process", _CLOSE_S)


def _size(cluster: Any, where: Where, n_workers: int) -> None:
    """Give a cluster so many workers; Dask submits jobs, or starts processes, anew that end too early."""
    if where.cluster == "local":
        cluster.scale(n_workers)
    else:
        cluster.adapt(minimum_jobs=n_workers, maximum_jobs=n_workers)


def _local(n_workers: int, *, gpu: bool) -> Any:
    if gpu and n_workers > 1:
        raise OptionError(
            f"n_workers={n_workers} on the GPUs of one machine: give 1; or start one worker for each GPU, with "
            "CUDA_VISIBLE_DEVICES and --resources GPU=1, and give the scheduler"
        )
    resources: dict[str, Any] = {"resources": {GPU: 1}} if gpu else {}
    options = {"threads_per_worker": 1, "processes": True, "host": "127.0.0.1", **resources}
    options["memory_limit"] = 1.0 / n_workers  # its part of the machine's
    return _part("distributed").LocalCluster(n_workers=0, **options)


def _queue_class(where: Where) -> Any:
    jobqueue = _part("dask_jobqueue")
    return jobqueue.SLURMCluster if where.cluster == "slurm" else jobqueue.PBSCluster


def _queue_options(where: Where, *, gpu: bool, logs: Path) -> dict[str, Any]:
    """Arguments of a cluster of jobs: one worker, one task at a time in each."""
    import dask

    known: Mapping[str, Any] = dask.config.get(f"jobqueue.{where.cluster}", {})
    told = known.get("walltime")  # half an hour is Dask's own default, not the user's
    day = _WALLTIME if where.cluster == "slurm" else _PBS_WALLTIME
    walltime = where.walltime or (day if told in (None, "00:30:00") else told)
    options: dict[str, Any] = {
        "cores": where.threads,
        "processes": 1,
        "memory": where.memory or known.get("memory") or _MEMORY,
        "walltime": walltime,
        "log_directory": str(logs),
        "worker_extra_args": ["--nthreads", "1"],
        "job_script_prologue": [
            *known.get("job-script-prologue", ()),
            *(f"export {name}='{os.environ[name]}'" for name in _FORWARDED if name in os.environ),
        ],
    }
    if where.queue:
        options["queue"] = where.queue
    if gpu:
        options["worker_extra_args"] += ["--resources", f"{GPU}=1"]
        if where.cluster == "slurm":
            options["job_extra_directives"] = [*known.get("job-extra-directives", ()), "--gres=gpu:1"]
    return options
