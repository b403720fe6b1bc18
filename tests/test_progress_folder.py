"""`fit` that is killed: what lies beside the model, taken up to the same bytes, and refused for other data."""

import json
import signal

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.test_cli import histoflow
from tests.test_end_to_end import in_new_process
from tests.test_workflow import PANEL, tiny_cohort

from histoflow._errors import HistoflowWarning, OutputError
from histoflow.workflow import ProgressFolder, progress

SMALL = """
from dataclasses import replace
from histoflow.models import Network, Training, recipes

network = Network(hidden_dim=8, pairwise_dim=8, n_layers=1, n_heads=1, n_components=4)
training = Training(max_epochs=3, crops_per_section=1, n_members=2, n_searches=1)
recipes.RECIPES["default"] = replace(recipes.RECIPES["default"], network=network, training=training)
"""
KILLED = (
    SMALL
    + """
import os, signal
from histoflow.cli import main
from histoflow.workflow import ProgressFolder

written, write = [], ProgressFolder.write

def killed(self, name, arrays):
    write(self, name, arrays)
    written.append(name)
    if len(written) == 5:  # in the middle of the first of two members
        os.kill(os.getpid(), signal.SIGKILL)

ProgressFolder.write = killed
main()
"""
)


@pytest.fixture
def command(cache_folder, tmp_path):
    genes = tmp_path / "genes.txt"
    genes.write_text("\n".join(PANEL.genes))
    return ["fit", tiny_cohort(cache_folder), "--encoder", "color", "--panel", genes, "--out"]


@pytest.fixture
def small_flow(monkeypatch):
    from histoflow.models import recipes

    monkeypatch.setattr(recipes, "RECIPES", dict(recipes.RECIPES))
    monkeypatch.setattr("histoflow.models.stflow.recipe_from_name", lambda name: recipes.RECIPES[name])
    exec(SMALL)


def test_a_killed_fit_goes_on_to_the_same_bytes(command, small_flow, tmp_path, monkeypatch, caplog):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = in_new_process(KILLED, *command, killed)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert not killed.exists()
    beside = tmp_path / "killed.progress"
    kept = sorted(path.name for path in beside.iterdir())
    assert len(kept) == 3  # one search, one member half-way, and what they are of
    assert kept[-1] == "progress.json"
    assert sum(int(load_file(path)["finished"]) for path in beside.glob("*.safetensors")) == 1

    written, write = [], ProgressFolder.write
    monkeypatch.setattr(ProgressFolder, "write", lambda *a: written.append(a) or write(*a))
    assert histoflow(*command, whole).code == 0
    n_whole = len(written)
    with caplog.at_level("INFO"):
        assert histoflow(*command, killed).code == 0
    assert f"taking up the fit that {beside} was left in" in caplog.text
    assert len(written) - n_whole == n_whole - 5
    for name in ("model.json", "weights.safetensors"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["genes.txt", "killed", "whole"]


def test_progress_of_other_settings_is_removed_aloud(tmp_path):
    left = ProgressFolder(tmp_path / "m.progress", "one")
    left.write("a", {})
    with pytest.warns(HistoflowWarning, match=r"m\.progress is of a fit of other data, settings or versions"):
        found = ProgressFolder(tmp_path / "m.progress", "two")
    assert found.read("a") is None
    assert not (tmp_path / "m.progress").exists()


@pytest.mark.parametrize("content", ["", "{}", json.dumps({"format": 99, "identity": "one"})])
def test_a_folder_that_is_none_of_ours_stays(tmp_path, content):
    (tmp_path / "m.progress").mkdir()
    name = "progress.json" if content else "thesis.txt"
    (tmp_path / "m.progress" / name).write_text(content)
    with pytest.raises(OutputError, match=r"m\.progress is no progress of a fit"):
        ProgressFolder(tmp_path / "m.progress", "one")
    assert (tmp_path / "m.progress").is_dir()


def test_a_folder_that_another_process_removed_is_laid_anew(tmp_path, monkeypatch):
    one, other = (ProgressFolder(tmp_path / "m.progress", "one") for _ in range(2))
    one.write("a", {})
    replace = type(tmp_path).replace

    def removed_meanwhile(self, target):
        monkeypatch.setattr(type(tmp_path), "replace", replace)
        other.remove()
        return replace(self, target)

    monkeypatch.setattr(type(tmp_path), "replace", removed_meanwhile)
    one.write("b", {"x": np.arange(3)})
    assert sorted(path.name for path in one.path.iterdir()) == ["b.safetensors", "progress.json"]
    np.testing.assert_array_equal(ProgressFolder(tmp_path / "m.progress", "one").read("b")["x"], np.arange(3))
    one.remove()
    one.remove()
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_had_only_begun_is_no_hindrance(tmp_path):
    (tmp_path / "m.progress" / ".tmp-a-0123").mkdir(parents=True)
    ProgressFolder(tmp_path / "m.progress", "one").write("a", {})
    assert (tmp_path / "m.progress" / "a.safetensors").is_file()


def test_a_damaged_file_is_as_if_it_were_not_there(tmp_path, caplog):
    folder = ProgressFolder(tmp_path / "m.progress", "one")
    folder.write("a", {})
    whole = (folder.path / "a.safetensors").read_bytes()
    (folder.path / "a.safetensors").write_bytes(whole[: len(whole) // 2])
    assert folder.read("a") is None
    assert "a.safetensors is damaged" in caplog.text


def test_the_identity_is_of_data_and_options(monkeypatch):
    seen = []
    monkeypatch.setattr(progress, "value_hash", lambda told: seen.append(told) or "hash")
    from tests.models.conftest import make_section

    from histoflow import models
    from histoflow.pp import Panel

    how = {"panel": Panel(("G0",)), "min_counts": 0, "missing": "error"}
    first, second = make_section("A", 0), make_section("A", 1)
    for model, section in ((models.STFlow(), first), (models.STFlow(seed=1), first), (models.STFlow(), second)):
        progress._identity(model, [section], how)
    assert seen[0] != seen[1]
    assert seen[0] != seen[2]
