"""Shared fixtures: the real sections, a throw-away cache, fixed torch threads."""

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numba
import pytest
import torch
from hypothesis import settings
from tests import torchvision_stub  # noqa: F401  what it repairs is repaired by importing it

from histoflow.models import Network, Training
from histoflow.models.recipes import RECIPES

settings.register_profile("any machine", deadline=None)  # how long an example takes says nothing about the code
settings.load_profile("any machine")
# Two workers share two cores: small operations spin otherwise, and so do the threads that numba starts for scanpy.
torch.set_num_threads(1)
numba.set_num_threads(1)


def required(part: str) -> bool:
    """Whether a missing `part` is a failure here rather than a skip."""
    return part in os.environ.get("HISTOFLOW_REQUIRE", "").split(",")


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Folder of the real paired sections, from HISTOFLOW_DATA."""
    folder = os.environ.get("HISTOFLOW_DATA")
    if folder and Path(folder).is_dir():
        return Path(folder)
    message = f"HISTOFLOW_DATA is {folder!r}: set it to the folder of the real sections to run this test"
    if required("data"):
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keep everything that is cached inside the test run's temporary folder, once for all its workers."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "cache"
    os.environ["HISTOFLOW_CACHE"] = str(folder)
    return folder


@pytest.fixture
def stoppable() -> Iterator[None]:
    """Ctrl-C as on a terminal: a shell has what runs in its background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def small_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The flow of the default recipe, so small that it is fitted in a second."""
    network = Network(hidden_dim=8, pairwise_dim=8, n_layers=1, n_heads=2, n_components=4)
    training = Training(max_epochs=1, crops_per_section=1, n_members=2, n_searches=1)
    monkeypatch.setitem(RECIPES, "default", replace(RECIPES["default"], network=network, training=training))
