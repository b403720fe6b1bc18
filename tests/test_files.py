"""Files are whole or not there: what a full disk says, what a dead process left, two folders swapped at once."""

import errno
import os
import re
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager

import anndata
import numpy as np
import pytest
from anndata import AnnData

from histoflow import _files
from histoflow._errors import OutputError, ReadError
from histoflow._files import atomic_path, scratch_folder, write_h5ad


def half_written(path, err):
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        raise err


def no_room(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "err",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError("Can't write data (file write failed: filename = 'x', errno = 28, error message = 'No space')"),
    ],
)
def test_a_full_disk_is_told_whichever_library_met_it(tmp_path, err):
    (tmp_path / "result").write_text("before")
    wanted = re.escape(f"cannot write {tmp_path / 'result'}: No space left on device; make room")
    with pytest.raises(OutputError, match=wanted):
        half_written(tmp_path / "result", err)
    assert [path.name for path in tmp_path.iterdir()] == ["result"]
    assert (tmp_path / "result").read_text() == "before"


@pytest.mark.parametrize(
    "err", [ReadError("a slide is damaged"), OSError("no number"), FileNotFoundError(errno.ENOENT, "no", "/slides/a")]
)
def test_an_error_that_is_not_of_writing_stays_what_it_is(tmp_path, err):
    with pytest.raises(type(err)) as caught, atomic_path(tmp_path / "result"):
        raise err
    assert caught.value is err


def test_a_full_disk_at_the_last_step_is_told_too(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(OutputError, match="No space left"), atomic_path(tmp_path / "result") as temporary:
        temporary.write_text("all of it")
    assert not list(tmp_path.iterdir())


def left_by(pid: int, machine: str) -> str:
    return f".tmp-result-{machine}.{pid}-abc123"


def test_what_a_dead_process_left_goes_when_the_same_name_is_written_next(tmp_path):
    child = int(subprocess.check_output([sys.executable, "-c", "import os; print(os.getpid())"]))
    here = _files._machine()
    dead, alive, elsewhere, of_other = (
        left_by(child, here),
        left_by(os.getpid(), here),
        left_by(child, "0" * 8),
        left_by(child, here).replace("result", "other"),
    )
    for name in (dead, alive, elsewhere, of_other):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").touch()
    with atomic_path(tmp_path / "result") as temporary:
        assert re.fullmatch(rf"\.tmp-result-{here}\.{os.getpid()}-\w+", temporary.name)
        temporary.write_text("whole")
    assert {path.name for path in tmp_path.iterdir()} == {"result", alive, elsewhere, of_other}


@pytest.mark.parametrize("swaps", [True, False])
def test_a_folder_takes_the_place_of_another(tmp_path, monkeypatch, swaps):
    if not swaps:
        monkeypatch.setattr(_files, "_swapped", lambda *_: False)
    for content in ("first", "second"):
        with atomic_path(tmp_path / "model") as folder:
            folder.mkdir()
            (folder / content).write_text(content)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["model", "model/second"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux swaps folders")
def test_there_is_a_folder_of_that_name_at_every_moment(tmp_path, monkeypatch):
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mark").touch()
    monkeypatch.setattr(type(tmp_path), "rename", lambda *_: pytest.fail("the old folder was moved away first"))
    _files._exchange(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "mark").exists()


@contextmanager
def room_for(n_bytes):
    """No file gets larger: writing more is an error, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def table(n_spots=200):
    made = AnnData(np.random.default_rng(0).normal(size=(n_spots, 30)).astype(np.float32))
    made.obs["patient"] = ["P1", "P2"] * (n_spots // 2)
    made.layers["std"] = made.X.copy()
    made.uns["histoflow"] = {"panel": ["A", "B"], "level": 0.9}
    return made


@pytest.mark.parametrize("n_bytes", [0, 10, 1000, 5000, 30_000, 50_000])
def test_an_h5ad_without_room_is_an_error_and_the_process_goes_on(tmp_path, n_bytes):
    write_h5ad(table(), tmp_path / "t.h5ad")
    before = (tmp_path / "t.h5ad").read_bytes()
    assert len(before) > 50_000
    with room_for(n_bytes), pytest.raises(OutputError, match=r"cannot write .*t\.h5ad: File too large"):
        write_h5ad(table(), tmp_path / "t.h5ad")
    assert [path.name for path in tmp_path.iterdir()] == ["t.h5ad"]
    assert (tmp_path / "t.h5ad").read_bytes() == before


def test_ctrl_c_comes_once_the_h5ad_is_closed(stoppable, tmp_path, monkeypatch):
    written = []

    def interrupted(h5, *_):
        signal.raise_signal(signal.SIGINT)
        h5.create_dataset("x", data=np.zeros(1000))
        written.append(h5)

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("anndata.io.write_elem", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_h5ad(table(), tmp_path / "t.h5ad")
    assert len(written) == 1
    assert not written[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert not list(tmp_path.iterdir())


def test_an_h5ad_is_what_anndata_writes(tmp_path):
    write_h5ad(table(), tmp_path / "ours.h5ad")
    table().write_h5ad(tmp_path / "theirs.h5ad")
    ours, theirs = (anndata.read_h5ad(tmp_path / f"{name}.h5ad") for name in ("ours", "theirs"))
    np.testing.assert_array_equal(ours.X, theirs.X)
    np.testing.assert_array_equal(ours.layers["std"], theirs.layers["std"])
    assert ours.obs.equals(theirs.obs)
    assert ours.var.equals(theirs.var)
    assert (list(ours.uns["histoflow"]["panel"]), ours.uns["histoflow"]["level"]) == (["A", "B"], 0.9)
    assert ours.obs["patient"].dtype == "category"


def test_an_error_of_the_table_itself_stays_what_it_is(tmp_path):
    made = table()
    made.uns["what"] = object()
    with pytest.raises(Exception, match="No method registered for writing"):
        write_h5ad(made, tmp_path / "t.h5ad")
    assert not list(tmp_path.iterdir())


def test_a_scratch_folder_is_gone_afterwards(tmp_path):
    with scratch_folder(tmp_path / "deep" / "result") as folder:
        (folder / "much").write_text("noise")
        assert folder.parent == tmp_path / "deep"
        assert folder.name.startswith(".tmp-result-")
    assert not list((tmp_path / "deep").iterdir())
