"""The engine without slides: what fails is told, threads are fixed, jobs are written as asked, Dask is optional."""

import os
import subprocess
import sys
from pathlib import Path

import dask
import distributed  # noqa: F401  its settings have to be there before one of them is changed
import pytest
import torch
from tests.cohort import work

from histoflow._errors import ClusterError, MissingDependencyError, OptionError
from histoflow.cohort import CLUSTERS, Pool, Where, job_script
from histoflow.cohort.clusters import _end


def outcomes(function, calls, **options):
    with Pool(**options) as pool:
        return {outcome.name: outcome for outcome in pool.run(function, calls)}


def test_every_call_gets_its_own_answer():
    found = outcomes(work.double, {"a": {"number": 1}, "b": {"number": 3}})
    assert {name: one.told for name, one in found.items()} == {"a": {"doubled": 2}, "b": {"doubled": 6}}
    assert all(one.error == "" and one.seconds >= 0 for one in found.values())


def test_an_error_of_ours_is_told_in_one_line_and_not_tried_again(tmp_path):
    found = outcomes(work.refuse, {"bad": {"file": str(tmp_path / "calls")}}, where=Where(retries=3))
    assert (found["bad"].error, found["bad"].message, found["bad"].told) == ("ReadError", "no such slide", None)
    assert (tmp_path / "calls").read_text() == "x"


@pytest.mark.parametrize(("n_failures", "told", "error"), [(2, {}, ""), (3, None, "ZeroDivisionError")])
def test_another_error_is_tried_again_as_often_as_asked(tmp_path, n_failures, told, error):
    arguments = {"file": str(tmp_path / "calls"), "n_failures": n_failures}
    found = outcomes(work.fail_at_first, {"a": arguments}, where=Where(retries=2))
    assert (found["a"].told, found["a"].error) == (told, error)
    assert len((tmp_path / "calls").read_text()) == 3


@pytest.mark.parametrize("n_threads", [1, 2])
def test_threads_are_those_of_the_task_and_are_given_back(n_threads):
    before = torch.get_num_threads()
    told = outcomes(work.threads, {"a": {}}, where=Where(threads=n_threads))["a"].told
    assert told == {"torch": n_threads, "blas": [n_threads]}
    assert torch.get_num_threads() == before


def test_our_warnings_are_told_and_those_of_others_left_out():
    assert outcomes(work.warn, {"a": {}})["a"].warnings == ["the scale is doubtful"]


def test_every_process_forgets_at_the_end():
    forgotten = []
    with Pool() as pool:
        pool.at_the_end(lambda: forgotten.append("here"))
        list(pool.run(work.double, {"a": {"number": 1}}))
        assert forgotten == []
    assert forgotten == ["here"]


def test_without_a_cluster_dask_is_not_imported():
    code = (
        "import sys\nfrom histoflow.cohort import Pool\n"
        "with Pool() as pool:\n    assert [one.told for one in pool.run(dict, {'a': {'b': 1}})] == [{'b': 1}]\n"
        "assert not {'dask', 'distributed', 'dask_jobqueue'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_local_worker_that_dies_is_replaced_and_its_task_is_run_again(tmp_path):
    script, calls = Path(work.__file__).with_name("local.py"), tmp_path / "calls"
    path = os.pathsep.join([str(script.parents[2]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(script), str(calls)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True)
    assert sorted(done.stdout.splitlines()) == [f"{n} {{'doubled': {2 * n}}}" for n in range(4)]
    assert calls.read_text() == "xx"


def test_a_cluster_that_does_not_end_is_left_after_a_while(caplog):
    class Endless:
        def close(self, timeout):
            raise TimeoutError(f"timed out after {timeout}")

    _end(Endless())
    assert caplog.messages == ["the cluster did not end within 60 s; what is left of it ends with this process"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"scheduler": "tcp://a:1", "cluster": "local"}, "both given; give one"),
        ({"cluster": "lsf"}, "cluster='lsf' is not offered; choose from local, slurm, pbs"),
        ({"n_workers": 0}, "n_workers is 0; give 1 or more"),
        ({"threads": 0}, "threads is 0; give 1 or more"),
        ({"retries": -1}, "retries is -1; give 0 or more"),
        ({"cluster": "local", "queue": "gpu", "memory": "1GB"}, "memory, queue: of a job, so for cluster slurm or pbs"),
    ],
)
def test_where_refuses_what_cannot_be(options, text):
    with pytest.raises(OptionError, match=text):
        Where(**options)


def test_a_scheduler_that_is_not_there_is_an_error_that_says_what_to_do():
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(ClusterError, match=r"tcp://127.0.0.1:9 cannot be reached .* start one with `dask scheduler`"),
    ):
        outcomes(work.double, {"a": {"number": 1}}, where=Where(scheduler="tcp://127.0.0.1:9"))


@pytest.mark.parametrize(("where", "part"), [("local", "distributed"), ("pbs", "dask_jobqueue")])
def test_a_missing_library_is_an_error_that_says_how_to_get_it(monkeypatch, where, part):
    monkeypatch.setitem(sys.modules, part, None)
    monkeypatch.setattr("shutil.which", lambda name: name)
    with pytest.raises(MissingDependencyError, match=rf"{part} is not installed: pip install 'histoflow\[cluster\]'"):
        outcomes(work.double, {"a": {"number": 1}}, where=Where(cluster=where))


def test_a_queue_that_is_not_here_is_an_error(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ClusterError, match="there is no qsub here; run it on a node that submits jobs"):
        outcomes(work.double, {"a": {"number": 1}}, where=Where(cluster="pbs"))


def test_several_workers_do_not_share_the_gpu_of_a_machine():
    with pytest.raises(OptionError, match="n_workers=2 on the GPUs of one machine: give 1"):
        outcomes(work.double, {"a": {"number": 1}}, where=Where(cluster="local"), gpu=True)


@pytest.mark.parametrize(("cluster", "directive"), [("slurm", "#SBATCH"), ("pbs", "#PBS")])
def test_a_job_has_one_worker_that_takes_one_task_at_a_time(monkeypatch, cluster, directive):
    monkeypatch.setenv("HISTOFLOW_CACHE", "/shared/cache")
    where = Where(cluster=cluster, threads=4, memory="6GB", walltime="02:00:00", queue="long")
    script = job_script(where, gpu=True, logs="out/logs")
    lines = script.splitlines()
    assert lines[0].startswith("#!")
    assert "export HISTOFLOW_CACHE='/shared/cache'" in lines
    assert sys.executable in lines[-1]
    for words in ("--nthreads 1", "--resources GPU=1", "--memory-limit 5.59GiB"):
        assert words in lines[-1]
    wanted = {
        "slurm": ["-p long", "--cpus-per-task=4", "--mem=6G", "-t 02:00:00", "--gres=gpu:1", "-o out/logs"],
        "pbs": ["-q long", "-l select=1:ncpus=4:mem=5723MB", "-l walltime=02:00:00"],
    }
    directives = "\n".join(line for line in lines if line.startswith(directive))
    for words in wanted[cluster]:
        assert words in directives


def test_only_a_queue_has_jobs():
    assert set(CLUSTERS) == {"local", "slurm", "pbs"}
    with pytest.raises(OptionError, match="cluster='local' has no jobs; choose from slurm, pbs"):
        job_script(Where(cluster="local"))
