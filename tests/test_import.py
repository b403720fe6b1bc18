"""Importing histoflow is free, and its public names are the ones it lists."""

import subprocess
import sys

import histoflow


def test_import_loads_neither_torch_nor_lazyslide():
    code = "import sys, histoflow; print({'torch', 'lazyslide', 'anndata', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "histoflow", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith(histoflow.__version__)


def test_every_public_name_is_there_and_documented():
    assert set(histoflow.__all__) <= set(dir(histoflow))
    for name in histoflow.__all__:
        assert getattr(histoflow, name).__doc__, name
