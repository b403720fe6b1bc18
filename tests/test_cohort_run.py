"""A task over a whole cohort: each slide once, whatever fails or is killed, and the same numbers wherever it runs."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Thread

import anndata
import numpy as np
import pandas as pd
import pytest
from tests.cohort import work
from tests.test_cli import Done, check_error, histoflow
from tests.test_end_to_end import stamps
from tests.test_workflow import PANEL, tiny_cohort

from histoflow import bench, io, workflow
from histoflow._errors import ClusterError, OptionError, ReadError
from histoflow.cohort import Pool, Where
from histoflow.datasets import planted
from histoflow.workflow import evaluation
from histoflow.workflow.cohort_run import SUMMARY_COLUMNS

ROOT = Path(__file__).parents[1]
N_SLIDES, BAD = 12, "bad"


@pytest.fixture(scope="session")
def manifest(cache_folder):
    return tiny_cohort(cache_folder)


def write_slides(folder: Path) -> Path:
    """Manifest of twelve very small slides, one of which cannot be read."""
    small = replace(planted._PLANS[-1], size_um=(480, 440), radius_um=200)
    plans = tuple(replace(small, section=f"S{number:02d}") for number in range(1, N_SLIDES))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planted, "_PLANS", plans)
        manifest = planted.write_toy(folder / "slides")
    rows = pd.read_csv(manifest)[["section", "kind", "slide"]]
    slide = (folder / "slides" / rows["slide"][0]).read_bytes()
    (folder / "slides" / "bad.tif").write_bytes(slide[: len(slide) // 3])
    rows.loc[len(rows)] = [BAD, "slide", "bad.tif"]
    rows.sort_values("section").to_csv(manifest, index=False)
    return manifest


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    return write_slides(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def alone(slides, tmp_path_factory):
    """What this process makes of the slides, one after the other."""
    out = tmp_path_factory.mktemp("alone") / "out"
    return out, workflow.run_cohort(slides, out, task="embed", encoder="color")


def environment(folder: Path) -> dict[str, str]:
    """Of a process of its own, with a cache of its own, so that it takes over nothing."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    own = {"HISTOFLOW_CACHE": str(folder / "cache"), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return os.environ | own | {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"}


@contextmanager
def dask_process(*arguments, folder: Path):
    """A part of a Dask cluster, ended with the block."""
    command = [sys.executable, "-m", "dask", *map(str, arguments)]
    with (folder / f"{arguments[0]}-{time.monotonic_ns()}.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment(folder), cwd=folder, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def worker(address: str, name: str, folder: Path):
    """A worker that nobody starts anew."""
    own = ("--no-nanny", "--nthreads", 1, "--name", name, "--no-dashboard", "--host", "127.0.0.1")
    return dask_process("worker", address, *own, "--local-directory", folder / name, folder=folder)


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory):
    """Address of a Dask scheduler without workers, and its folder."""
    folder = tmp_path_factory.mktemp("dask")
    told = folder / "scheduler.json"
    place = ("--host", "127.0.0.1", "--port", 0, "--no-dashboard", "--scheduler-file", told)
    with dask_process("scheduler", *place, folder=folder):
        until(told.exists, "the scheduler")
        yield json.loads(told.read_text())["address"], folder


def until(done, what: str, *, seconds: float = 60) -> None:
    """Wait for something, or fail."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"{what} did not come"
        time.sleep(0.02)


def whole(paths) -> list[Path]:
    """The files that are whole: a killed worker may leave half of one, under a name that says so."""
    return sorted(path for path in paths if not path.name.startswith(".tmp-"))


def records(out: Path) -> list[str]:
    return [path.stem for path in whole(out.glob("records/*/*.json"))]


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in whole((out / "embeddings").iterdir())}


def test_here_the_bad_slide_is_told_and_the_others_are_done(slides, alone):
    out, table = alone
    assert list(table.columns) == list(SUMMARY_COLUMNS)
    assert table["status"].value_counts().to_dict() == {"done": N_SLIDES - 1, "failed": 1}
    bad = table.set_index("name").loc[BAD]
    assert (bad["status"], bad["error"], bad["result"]) == ("failed", "ReadError", "")
    assert "bad.tif" in bad["message"]
    assert "\n" not in bad["message"]
    pd.testing.assert_frame_equal(pd.read_csv(out / "summary.csv", keep_default_na=False), table, check_dtype=False)
    made = anndata.read_h5ad(out / "embeddings" / "S01.h5ad")
    wsi = io.open_wsi(slides.parent / "S01" / "HE.tif")
    expected = workflow.embedder("color").tiles(wsi, 112.0)
    np.testing.assert_array_equal(made.obsm["color"], expected.obsm["color"])


def test_a_killed_worker_a_bad_slide_and_a_second_run(slides, alone, scheduler, tmp_path, caplog):
    address, folder = scheduler
    out = tmp_path / "out"
    command = ["cohort", "run", slides, "--task", "embed", "--encoder", "color", "--out", out, "--scheduler", address]
    readable = [f"S{number:02d}" for number in range(1, N_SLIDES)]
    n_before = []

    def kill_in_the_middle(process):
        until(lambda: records(out), "the first result")
        process.send_signal(signal.SIGKILL)
        n_before.append(len(records(out)))

    with worker(address, "first", folder) as first, worker(address, "second", folder):
        killing = Thread(target=kill_in_the_middle, args=[first])
        killing.start()
        with caplog.at_level("INFO"):
            done = histoflow(*command, "--json")
        killing.join()
        assert n_before[0] < len(readable)
        assert "dashboard of Dask: http://" in caplog.text

        assert (done.code, counted(done)) == (1, (len(readable), 0, 1))
        assert f"error: 1 of {N_SLIDES} failed: {BAD} (ReadError: " in done.err
        assert records(out) == readable
        assert contents(out) == contents(alone[0])  # bit for bit, by workers with another cache

        before = stamps(out / "embeddings") | stamps(out / "records")
        again = histoflow(*command, "--json")
        assert (again.code, counted(again)) == (1, (0, len(readable), 1))
        assert stamps(out / "embeddings") | stamps(out / "records") == before
        bad = pd.DataFrame(again.json["tasks"]).set_index("name").loc[BAD]
        assert bad[["status", "error"]].tolist() == ["failed", "ReadError"]

        gpu = {"where": Where(scheduler=address), "device": "cuda"}
        with pytest.raises(ClusterError, match="offers the resource GPU; start one for each GPU with `dask worker"):
            workflow.run_cohort(slides, tmp_path / "gpu", task="embed", encoder="color", **gpu)


def counted(done) -> tuple[int, int, int]:
    return done.json["n_done"], done.json["n_kept"], done.json["n_failed"]


def test_a_task_that_kills_its_workers_is_told_and_the_others_go_on(scheduler, tmp_path):
    address, folder = scheduler
    killer, *others = {"killer": {"file": str(tmp_path / "calls")}}.items(), *({"number": n} for n in range(3))
    with worker(address, "third", folder), worker(address, "fourth", folder), Pool(Where(scheduler=address)) as pool:
        killed = next(iter(pool.run(work.die, dict(killer))))
    with worker(address, "fifth", folder), Pool(Where(scheduler=address)) as pool:
        left = list(pool.run(work.double, {str(n): one for n, one in enumerate(others)}))
    assert (killed.error, killed.told) == ("KilledWorker", None)
    assert killed.message.startswith("its worker died 2 times while at it: give a worker more memory")
    assert (tmp_path / "calls").read_text() == "xx"
    assert sorted(one.told["doubled"] for one in left) == [0, 2, 4]


@pytest.fixture
def run_of(slides, alone, tmp_path):
    """A finished run of its own, and the command that made it."""
    out = tmp_path / "out"
    shutil.copytree(alone[0], out)

    def again(**options):
        table = workflow.run_cohort(slides, out, task="embed", encoder="color", **options)
        return table.set_index("name")["status"]

    return out, again


def test_what_is_damaged_or_has_no_record_is_made_again_and_nothing_else(run_of, alone):
    out, again = run_of
    half = out / "embeddings" / "S01.h5ad"
    half.write_bytes(half.read_bytes()[:-100])
    (out / "embeddings" / "S02.h5ad").unlink()
    (out / "records" / "embed" / "S03.json").unlink()
    (out / "records" / "embed" / "S04.json").write_text("{")
    (out / "embeddings" / ".tmp-S05.h5ad-killed.h5ad").write_bytes(b"half")
    status = again()
    assert status[status == "done"].index.tolist() == ["S01", "S02", "S03", "S04"]
    assert contents(out) == contents(alone[0])
    assert set(again()) == {"kept", "failed"}


def test_a_slide_counts_by_its_content_not_by_its_time(run_of, slides):
    _, again = run_of
    touched, changed = (slides.parent / name / "HE.tif" for name in ("S05", "S06"))
    original = changed.read_bytes()
    os.utime(touched)
    changed.write_bytes((slides.parent / "S07" / "HE.tif").read_bytes())
    try:
        status = again()
    finally:
        changed.write_bytes(original)
    assert status["S05"] == "kept"
    assert status[status == "done"].index.tolist() == ["S06"]


def test_without_resume_everything_is_made_again(run_of, alone):
    out, again = run_of
    assert set(again(resume=False)) == {"done", "failed"}
    assert contents(out) == contents(alone[0])


def test_a_slide_that_is_mended_is_done_by_the_next_run(run_of, slides):
    out, again = run_of
    bad = slides.parent / "bad.tif"
    broken = bad.read_bytes()
    bad.write_bytes((slides.parent / "S01" / "HE.tif").read_bytes())
    try:
        assert again().value_counts().to_dict() == {"kept": N_SLIDES - 1, "done": 1}
    finally:
        bad.write_bytes(broken)
    assert BAD in records(out)


def test_a_slide_that_is_not_there_is_told_like_one_that_cannot_be_read(slides, tmp_path):
    rows = pd.read_csv(slides)[:2]
    rows["slide"] = [slides.parent / "S01" / "HE.tif", "nowhere.tif"]
    rows.to_csv(tmp_path / "cohort.csv", index=False)
    table = workflow.run_cohort(tmp_path / "cohort.csv", tmp_path / "out", task="embed", encoder="color")
    assert table["status"].tolist() == ["done", "failed"]
    assert "nowhere.tif" in table["message"][1]


def test_other_options_are_refused_and_named(run_of, slides):
    out, _ = run_of
    command = ["cohort", "run", slides, "--task", "embed", "--out", out]
    text = "encoder is 'scatter' and was 'color'"
    check_error(histoflow(*command, "--encoder", "scatter"), 2, text)
    check_error(
        histoflow(*command, "--encoder", "color", "--threads", "2"), 2, "threads is 2 and was 1; choose another"
    )
    check_error(
        histoflow(*command, "--encoder", "color", "--samples", "3"), 2, "samples: not of task embed, which takes"
    )
    done = histoflow(*command, "--encoder", "color")
    check_error(replace(done, out=""), 1, f"1 of {N_SLIDES} failed: {BAD} (ReadError: ")
    assert done.out.startswith(f"{N_SLIDES - 1} kept, 1 failed; the table is ")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"task": "train"}, "task='train' is not offered; choose from embed, predict, evaluate"),
        ({"task": "embed", "encoder": "magic"}, "magic"),
        ({"task": "predict"}, "task predict needs a model"),
        ({"task": "evaluate", "device": "cuda"}, "task evaluate computes on cpu"),
        ({"task": "evaluate", "buffer_um": 100.0}, "buffer_um is for by=area, not for by=section"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(slides, tmp_path, options, text):
    with pytest.raises(OptionError, match=re.escape(text)):
        workflow.run_cohort(slides, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_refused(slides, tmp_path):
    (tmp_path / "cohort.json").write_text('{"format": 7}')
    with pytest.raises(ReadError, match="is not of a run over a cohort, or of another version"):
        workflow.run_cohort(slides, tmp_path, task="embed", encoder="color")


@pytest.fixture(scope="module")
def model(manifest, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "probe"
    cohort = io.read_cohort(manifest)
    workflow.fit(cohort, model="hest_fm", encoder="color", panel=PANEL, level=None).save(folder)
    return folder


def test_predictions_are_those_of_predict_and_need_the_same_model(manifest, model, tmp_path):
    out = tmp_path / "out"
    table = workflow.run_cohort(manifest, out, task="predict", model=model)
    assert table[["name", "status"]].to_numpy().tolist() == [["P2_B", "done"], ["P2_C", "done"]]
    for section in table["name"]:
        single = tmp_path / f"{section}.h5ad"
        assert histoflow("predict", model, manifest, "--section", section, "--out", single).code == 0
        assert single.read_bytes() == (out / "predictions" / f"{section}.h5ad").read_bytes()
    other = tmp_path / "other"
    workflow.fit(io.read_cohort(manifest), model="mean", panel=PANEL, level=None).save(other)
    with pytest.raises(OptionError, match=r"model is '[0-9a-f]{12}' and was '[0-9a-f]{12}'"):
        workflow.run_cohort(manifest, out, task="predict", model=other)


def test_where_all_are_references_all_are_predicted(manifest, model, tmp_path, caplog):
    rows = pd.read_csv(manifest)[lambda read: read["kind"] == "visium"][["section", "kind", "slide", "counts"]]
    for column in ("slide", "counts"):
        rows[column] = [manifest.parent / cell for cell in rows[column]]
    rows[:1].to_csv(tmp_path / "cohort.csv", index=False)
    with caplog.at_level("INFO"):
        table = workflow.run_cohort(tmp_path / "cohort.csv", tmp_path / "out", task="predict", model=model, at="tiles")
    assert table["status"].tolist() == ["done"]
    assert "all 1 sections of cohort are references: all of them are predicted" in caplog.text


EVALUATION = {"models": ("mean", "hest_fm"), "encoder": "color", "panel": PANEL, "level": None}


def in_own_process(*arguments, folder: Path) -> Done:
    """Run a command as a user does; a scheduler then shares no port, and no warning about it, with other tests."""
    command = [sys.executable, "-c", "from histoflow.cli import main; main()", *map(str, arguments)]
    ended = subprocess.run(command, env=environment(folder), capture_output=True, text=True, check=False)
    return Done(ended.returncode, ended.stdout, ended.stderr)


@pytest.mark.filterwarnings("ignore::histoflow._errors.TrainingWarning")
def test_an_evaluation_is_that_of_evaluate_and_a_second_run_keeps_it(manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "draw_evaluation", lambda *arguments: [])  # seconds, and no numbers
    cohort = io.read_cohort(manifest)
    same = {"panel": PANEL}
    chosen = workflow.models_for(cohort, ["mean", "hest_fm"], encoder="color", level=None)
    expected = workflow.evaluate(cohort, tmp_path / "expected", estimators=chosen, **same)
    out = tmp_path / "out"
    first = workflow.run_cohort(manifest, out, task="evaluate", **EVALUATION)
    assert first["status"].unique().tolist() == ["done"]
    pd.testing.assert_frame_equal(pd.read_parquet(out / bench.runner.RESULTS), expected, check_exact=True)
    parts = {path.name: path.read_bytes() for path in (tmp_path / "expected" / "parts").iterdir()}
    assert {path.name: path.read_bytes() for path in (out / "parts").iterdir()} == parts

    before = stamps(out / "parts") | stamps(out / "records") | stamps(out / "predictions")
    again = workflow.run_cohort(manifest, out, task="evaluate", **EVALUATION)
    assert again["status"].unique().tolist() == ["kept"]
    assert stamps(out / "parts") | stamps(out / "records") | stamps(out / "predictions") == before


def without(manifest: Path, section: str, folder: Path) -> Path:
    """The same manifest, but the slide of a section cannot be read."""
    rows = pd.read_csv(manifest).set_index("section")
    for column in ("slide", "counts", "spots"):
        rows[column] = [cell if pd.isna(cell) else manifest.parent / cell for cell in rows[column]]
    (folder / "broken.tif").write_bytes(b"II*\0")
    rows.loc[section, "slide"] = folder / "broken.tif"
    rows.to_csv(folder / "cohort.csv")
    return folder / "cohort.csv"


def test_a_section_that_cannot_be_read_is_in_no_fold(manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "draw_evaluation", lambda *arguments: [])
    table = workflow.run_cohort(without(manifest, "P1_A", tmp_path), tmp_path / "out", task="evaluate", **EVALUATION)
    assert table.set_index("name")["status"].drop("P1_A").unique().tolist() == ["done"]
    assert table.set_index("name").loc["P1_A", "status"] == "failed"
    assert list(bench.read_protocol(tmp_path / "out")["sections"]) == ["P1_B", "P2_A", "P2_B"]


def test_without_its_only_held_out_section_nothing_else_is_held_out(manifest, tmp_path):
    with pytest.raises(OptionError, match=r"no held-out section of cohort can be read \(P2_B\)"):
        workflow.run_cohort(without(manifest, "P2_B", tmp_path), tmp_path / "out", task="evaluate", **EVALUATION)
