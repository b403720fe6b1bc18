"""The jobs of a real SLURM: two slides, the numbers of this process, and a refused job told in one line."""

import os
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from tests.conftest import required
from tests.test_cli import check_error
from tests.test_cohort_run import contents, in_own_process, write_slides

from histoflow import workflow

CONF = Path("/tmp/histoflow-slurm/slurm.conf")


@pytest.fixture(scope="module")
def slurm():
    """A SLURM that answers, with the environment that its commands and workers need."""
    with pytest.MonkeyPatch.context() as patch:
        if CONF.exists():
            patch.setenv("SLURM_CONF", os.environ.get("SLURM_CONF", str(CONF)))
        patch.setenv("DASK_JOBQUEUE__SLURM__INTERFACE", "lo")
        try:
            subprocess.run(["sinfo"], check=True, capture_output=True, timeout=10)
        except (OSError, subprocess.SubprocessError) as err:
            message = f"no SLURM answers here ({type(err).__name__}): start one with tests/slurm/start.sh"
            if required("slurm"):
                pytest.fail(message)
            pytest.skip(message)
        yield


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    manifest = write_slides(tmp_path_factory.mktemp("cohort"))
    pd.read_csv(manifest)[:2].to_csv(manifest, index=False)
    return manifest


@pytest.mark.slurm
def test_two_slides_are_embedded_by_jobs_as_they_are_here(slurm, two, tmp_path):
    workflow.run_cohort(two, tmp_path / "here", task="embed", encoder="color")
    command = ["cohort", "run", two, "--task", "embed", "--encoder", "color", "--out", tmp_path / "jobs"]
    done = in_own_process(*command, "--cluster", "slurm", "--memory", "1500MB", "--json", folder=tmp_path)
    assert (done.code, done.json["n_done"]) == (0, 2)
    assert contents(tmp_path / "jobs") == contents(tmp_path / "here")
    logs = list((tmp_path / "jobs" / "logs").glob("dask-worker-*.err"))
    assert logs
    assert all("Registered to" in log.read_text() for log in logs)
    left = subprocess.run(["squeue", "--noheader", "--states=PD,R"], capture_output=True, text=True, check=True)
    assert left.stdout == ""


@pytest.mark.slurm
def test_a_job_that_the_queue_refuses_is_one_line(slurm, two, tmp_path):
    command = ["cohort", "run", two, "--task", "embed", "--encoder", "color", "--out", tmp_path / "jobs"]
    done = in_own_process(*command, "--cluster", "slurm", "--queue", "nowhere", folder=tmp_path)
    check_error(done, 1, "cluster slurm refuses the jobs: ")
