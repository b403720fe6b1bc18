"""The table of the benchmarks: it says what was reached, what was not, and what was not measured."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def runner():
    """`benchmarks/__main__.py` as a module."""
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("benchmarks_main", FOLDER / "__main__.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(FOLDER))
        sys.modules.pop("rows")


def row(runner, name):
    return next(one for one in runner.rows(quick=True) if one.name == name)


def kept(row, *told):
    return {
        command: {"told": one, "load": 0.5, "at": "2026-01-01 00:00 UTC", "source": "now"}
        for command, one in zip(row.commands, told, strict=True)
    }


def test_every_row_names_benchmarks_that_are_there(runner):
    for quick in (True, False):
        for one in runner.rows(quick=quick):
            assert all((FOLDER.parent / command.split()[0]).is_file() for command in one.commands)


@pytest.mark.parametrize(("seconds", "told"), [(170.0, "| 170 s"), (190.0, "**no**")])
def test_a_row_says_whether_what_is_asked_was_reached(runner, seconds, told):
    fit = row(runner, "fit")
    lines = runner.lines_of(fit, kept(fit, {"seconds": seconds, "cpu_seconds": 300.0, "peak_gb": 1.0}), "", "now")
    assert len(lines) == 1
    assert told in lines[0]
    assert ("yes" in lines[0]) == (seconds < 180)


def test_what_failed_or_was_not_measured_is_said(runner, monkeypatch):
    fit, card = row(runner, "fit"), row(runner, "graphics card")
    assert "not measured yet" in runner.lines_of(fit, {}, "", "now")[0]
    failed = {fit.commands[0]: {"error": "ValueError: no", "load": 0.0, "at": ""}}
    assert "failed: ValueError: no" in runner.lines_of(fit, failed, "", "now")[0]
    monkeypatch.setattr(runner.torch.cuda, "is_available", lambda: False)
    assert "no graphics card" in runner.why_not(card, None)
    assert "real sections" in runner.why_not(fit, None)


def test_a_cut_run_keeps_its_rows_and_is_taken_up(runner, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "RESULTS", tmp_path / "RESULTS.md")
    monkeypatch.setattr(runner, "KEPT", tmp_path / "results.json")
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--only", "many spots"])
    run = []

    def measured(command, data):
        run.append(command)
        if len(run) == 3:
            raise KeyboardInterrupt
        told = {"ours": {"sample_rss_gb": 0.3, "cpu_sample_s": 1.0}}
        return {"told": told, "load": 0.1, "at": "2026-01-01 00:00 UTC"}

    monkeypatch.setattr(runner, "output", measured)
    with pytest.raises(KeyboardInterrupt):
        runner.main()
    assert len(json.loads((tmp_path / "results.json").read_text())) == 2
    runner.main()
    assert run == [*row(runner, "many spots").commands, run[2]]
    table = (tmp_path / "RESULTS.md").read_text()
    assert "drawing 100,000 spots | < 2 GB | 0.3 GB" in table
    assert "nothing was timed on a GPU" in table or runner.torch.cuda.is_available()


def test_a_row_of_an_earlier_source_says_so_and_is_measured_again(runner, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "RESULTS", tmp_path / "RESULTS.md")
    monkeypatch.setattr(runner, "KEPT", tmp_path / "results.json")
    fit = row(runner, "fit")
    told = {"seconds": 99.0, "cpu_seconds": 100.0, "peak_gb": 1.0}
    assert "; earlier source now, 2026-01-01" in runner.lines_of(fit, kept(fit, told), "", "later")[0]
    assert "earlier" not in runner.lines_of(fit, kept(fit, told), "", "now")[0]
    (tmp_path / "results.json").write_text(json.dumps(kept(fit, told)))
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--only", "fit", "--data", str(tmp_path)])
    monkeypatch.setattr(
        runner, "output", lambda command, data: {"told": told, "load": 0.1, "at": "2026-02-02 00:00 UTC"}
    )
    runner.main()
    assert "earlier source" not in (tmp_path / "RESULTS.md").read_text().split("| `fit`")[1].split("\n")[0]
