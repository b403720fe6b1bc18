"""Importing histoflow is free, a part loads little of the others, and the public names are the ones that are listed."""

import os
import subprocess
import sys

import pytest

import histoflow
import histoflow.pp


def test_import_loads_neither_torch_nor_lazyslide():
    code = "import sys, histoflow; print({'torch', 'lazyslide', 'anndata', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_graph_is_made_without_loading_what_embeds_and_scores():
    code = "import sys, histoflow.pp.graph; print({'torch', 'sklearn', 'anndata', 'scipy.stats'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "histoflow", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith(histoflow.__version__)


@pytest.mark.parametrize("policy", [None, "ACTIVE"])
def test_threads_that_wait_sleep_in_commands_unless_told_otherwise(policy):
    tell = "import os, atexit; atexit.register(lambda: print(os.environ['OMP_WAIT_POLICY']))"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": policy} if policy else {}
    command = [sys.executable, "-c", f"{tell}; from histoflow.cli import main; main()", "--version"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == (policy or "PASSIVE")


@pytest.mark.parametrize("package", [histoflow, histoflow.pp], ids=["histoflow", "pp"])
def test_every_public_name_is_there_and_documented(package):
    assert set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        assert getattr(package, name).__doc__, name
