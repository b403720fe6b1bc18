"""Commands that are stopped, or lack room or memory: one line, and an exit code that says so."""

import errno
import os
import signal

import pytest
import torch
from tests.test_cli import histoflow

from histoflow import workflow
from histoflow.workflow import doctor


def stopped(monkeypatch, action):
    """A command in whose middle something happens."""
    monkeypatch.setattr(workflow, "check_machine", action)
    return histoflow("doctor")


@pytest.mark.parametrize(
    ("number", "code", "by"), [(signal.SIGINT, 130, "stopped: "), (signal.SIGTERM, 143, "stopped by SIGTERM: ")]
)
def test_a_stopped_command_says_so_in_one_line(stoppable, monkeypatch, number, code, by):
    before = signal.getsignal(signal.SIGTERM)
    done = stopped(monkeypatch, lambda: os.kill(os.getpid(), number) or doctor.check_machine())
    assert (done.code, len(done.told), done.out) == (code, 1, "")
    assert done.told[0].startswith(by)
    assert "the same command goes on from what is finished" in done.told[0]
    assert signal.getsignal(signal.SIGTERM) is before


def no_memory():
    return torch.empty(1 << 60)


@pytest.mark.parametrize(
    ("err", "text"),
    [
        (MemoryError("Unable to allocate 8 TiB"), "there is not enough memory (Unable to allocate 8 TiB)"),
        (
            OSError(errno.ESTALE, "Stale file handle", "/share/slide.tif"),
            "/share/slide.tif: Stale file handle; ",
        ),
        (OSError(errno.EIO, "Input/output error"), "error: [Errno 5] Input/output error; check that this disk"),
        (KeyError("a fault\nof ours"), "error: KeyError: 'a fault\\nof ours'; run it again with --debug"),
    ],
)
def test_what_the_machine_lacks_is_said_with_what_to_do(monkeypatch, err, text):
    def fail():
        raise err

    done = stopped(monkeypatch, fail)
    assert (done.code, len(done.told)) == (1, 1)
    assert text in done.told[0]


def test_memory_that_torch_lacks_is_told_the_same_way(monkeypatch):
    done = stopped(monkeypatch, no_memory)
    assert done.code == 1
    assert done.told[0].startswith("error: there is not enough memory (")
