"""The whole way: fit here, predict in a new process; twice is once; a killed run is taken up where it was."""

import inspect
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from tests.models.conftest import GENES, make_section
from tests.test_cli import histoflow, part_of
from tests.test_workflow import PANEL, tiny_cohort

from histoflow import io, models, pp, workflow
from histoflow.bench import run, runner
from histoflow.models import RidgeProbe
from histoflow.pp import Panel, blocks

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def manifest(cache_folder):
    return tiny_cohort(cache_folder)


@pytest.fixture
def panel_file(tmp_path):
    path = tmp_path / "genes.txt"
    path.write_text("\n".join(PANEL.genes))
    return path


def in_new_process(code: str, *arguments, **environment) -> subprocess.CompletedProcess[str]:
    """Run Python code with arguments in a process of its own, with one thread as here."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    told = {"OMP_NUM_THREADS": "1", "PYTHONPATH": path} | {key: str(value) for key, value in environment.items()}
    return subprocess.run(command, env=os.environ | told, capture_output=True, text=True, check=False)


def stamps(folder: Path) -> dict[Path, tuple[int, int]]:
    """When each file was written, and which one it is."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in files}


def under_final_names(folder: Path) -> list[Path]:
    """Files that a reader would take for whole ones."""
    return [path for path in stamps(folder) if not any(part.startswith(".tmp-") for part in path.parts)]


def test_a_model_fitted_here_predicts_the_same_in_a_new_process(manifest, panel_file, tmp_path):
    fit = ["fit", manifest, "--out", tmp_path / "model", "--model", "hest_fm", "--encoder", "color"]
    assert histoflow(*fit, "--panel", panel_file).code == 0
    arguments = ["predict", tmp_path / "model", manifest, "--section", "P2_B", "--out"]
    main = "from histoflow.cli import main; main()"
    done = in_new_process(main, *arguments, tmp_path / "there.h5ad", HISTOFLOW_CACHE=tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    assert f"predicted 5 genes at 60 places; they are in {tmp_path / 'there.h5ad'}" in done.stdout
    section = io.read_cohort(manifest).select(sections=["P2_B"])[0]
    here = workflow.predict_section(models.load(tmp_path / "model"), section)
    there = anndata.read_h5ad(tmp_path / "there.h5ad")
    np.testing.assert_array_equal(there.X, here.X)
    assert list(there.obs_names) == list(here.obs_names)
    assert list(there.var_names) == list(PANEL.genes)


def test_the_same_evaluation_again_computes_nothing(manifest, panel_file, tmp_path, monkeypatch):
    monkeypatch.setattr(workflow.evaluation, "draw_evaluation", lambda *_: None)
    out = tmp_path / "out"
    arguments = ["evaluate", manifest, "--out", out, "--panel", panel_file, "--models", "mean,color", "--json"]
    first = histoflow(*arguments)
    before, table = stamps(out), pd.read_parquet(out / "results.parquet")
    monkeypatch.setattr(runner, "_score", lambda *_: pytest.fail("a finished part was scored again"))
    monkeypatch.setattr(pp.Encoder, "encode_images", lambda *_: pytest.fail("a patch was encoded again"))
    second = histoflow(*arguments)
    assert (first.code, second.code) == (0, 0)
    assert second.json == first.json
    pd.testing.assert_frame_equal(pd.read_parquet(out / "results.parquet"), table)
    kept = [path for path in before if path.parent.name in ("parts", "predictions")]
    assert len(kept) == 4 + 4  # a part and a prediction of a model; library_size has two predictions, location none
    after = stamps(out)
    assert set(after) == set(before)
    assert {path: after[path] for path in kept} == {path: before[path] for path in kept}


def test_one_seed_is_one_prediction(manifest, panel_file, tmp_path, small_flow):
    predicted = []
    for place, seed in enumerate((3, 3, 4)):
        model, out = tmp_path / f"model{place}", tmp_path / f"{place}.h5ad"
        options = ["--model", "stflow", "--encoder", "color", "--panel", panel_file, "--seed", seed]
        assert histoflow("fit", manifest, "--out", model, *options).code == 0
        assert histoflow("predict", model, manifest, "--section", "P2_B", "--out", out, "--samples", "2").code == 0
        predicted.append(anndata.read_h5ad(out))
    first, again, other = predicted
    np.testing.assert_array_equal(first.X, again.X)
    np.testing.assert_array_equal(first.layers["std"], again.layers["std"])
    assert not np.array_equal(first.X, other.X)


EMBEDDING_KILLED = """
import os, signal
from histoflow.cli import main
from histoflow.pp import blocks

blocks.BLOCK = 10
written, store = [], blocks._store

def half_of(rows):
    for some in rows:
        yield some[: len(some) // 2]
        os.kill(os.getpid(), signal.SIGKILL)

def half_written(path, shape, rows):
    written.append(path)
    store(path, shape, rows if len(written) < 9 else half_of(rows))

blocks._store = half_written
main()
"""


def test_an_embedding_that_was_killed_is_taken_up(manifest, panel_file, tmp_path, monkeypatch):
    two = part_of(manifest, tmp_path, ["P1_A", "P2_B"])
    arguments = ["evaluate", two, "--panel", panel_file, "--models", "mean,color", "--out"]
    cache = tmp_path / "cache"
    killed = in_new_process(EMBEDDING_KILLED, *arguments, tmp_path / "killed", HISTOFLOW_CACHE=cache)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "killed").exists()
    assert any(path.name.startswith(".tmp-") for path in (cache / "features").rglob("*"))
    assert list((cache / "features").glob("*.lock"))  # of a process that is dead: the next run takes it over
    whole = [np.load(path) for path in under_final_names(cache / "features") if path.suffix == ".npy"]
    assert len(whole) > 1
    n_kept = sum(map(len, whole))

    monkeypatch.setattr(workflow.evaluation, "draw_evaluation", lambda *_: None)
    assert histoflow(*arguments, tmp_path / "undisturbed").code == 0  # embedded before, in the cache of the test run
    monkeypatch.setenv("HISTOFLOW_CACHE", str(cache))
    monkeypatch.setattr(blocks, "BLOCK", 10)
    n_encoded, encode = [], pp.Encoder.encode_images
    monkeypatch.setattr(pp.Encoder, "encode_images", lambda *a: n_encoded.append(len(a[1])) or encode(*a))
    assert histoflow(*arguments, tmp_path / "killed").code == 0
    features = [np.load(path) for path in (cache / "features").glob("*.npy")]
    assert sum(n_encoded) == sum(map(len, features)) - n_kept
    tables = [pd.read_parquet(tmp_path / name / "results.parquet") for name in ("killed", "undisturbed")]
    pd.testing.assert_frame_equal(*tables, check_exact=True)


COUNTED = """
import os, sys
from pathlib import Path
from histoflow import pp
from histoflow.cli import main

encode = pp.Encoder.encode_images

def counted(self, images):
    with Path(os.environ["COUNTS"], str(os.getpid())).open("a") as file:
        file.write(f"{len(images)}\\n")
    return encode(self, images)

pp.Encoder.encode_images = counted
main()
"""


def test_two_processes_on_the_same_slides_share_the_work(manifest, panel_file, tmp_path):
    two = part_of(manifest, tmp_path, ["P1_A", "P2_A"])
    (tmp_path / "counts").mkdir()
    fit = ["fit", two, "--panel", panel_file, "--model", "color", "--out"]
    shared = {"HISTOFLOW_CACHE": tmp_path / "cache", "COUNTS": tmp_path / "counts"}
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda name: in_new_process(COUNTED, *fit, tmp_path / name, **shared), ("a", "b")))
    assert [process.returncode for process in done] == [0, 0], done[0].stderr + done[1].stderr
    n_encoded = sum(int(line) for path in (tmp_path / "counts").iterdir() for line in path.read_text().split())
    assert n_encoded == sum(len(np.load(path)) for path in (tmp_path / "cache" / "features").glob("*.npy"))
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("a", "b")]
    assert weights[0] == weights[1]


def evaluate(out):
    sections = [make_section(f"S{i}", seed=i) for i in range(4)]
    return run(sections, models={"m": RidgeProbe("hest")}, panel=Panel(tuple(GENES)), out=out)


EVALUATION_KILLED = """
import io, os, signal, sys
import pandas as pd
from tests.models.conftest import GENES, make_section
from histoflow.bench import run
from histoflow.models import RidgeProbe
from histoflow.pp import Panel

written, write = [], pd.DataFrame.to_parquet

def half_written(self, path, **options):
    written.append(path)
    if len(written) < 3:
        return write(self, path, **options)
    whole = io.BytesIO()
    write(self, whole, **options)
    path.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    os.kill(os.getpid(), signal.SIGKILL)

pd.DataFrame.to_parquet = half_written
"""


def check_whole(path):
    """A table, a prediction or a model can be read."""
    if path.suffix == ".parquet":
        assert len(pd.read_parquet(path))
    elif path.suffix == ".h5ad":
        assert anndata.read_h5ad(path).n_obs
    else:
        assert models.load(path.parent).panel_


def test_an_evaluation_that_was_killed_is_taken_up(tmp_path, monkeypatch):
    code = EVALUATION_KILLED + inspect.getsource(evaluate) + "evaluate(sys.argv[1])"
    killed = in_new_process(code, tmp_path / "killed")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [path.name for path in (tmp_path / "killed" / "parts").glob(".tmp-*")]
    for path in under_final_names(tmp_path / "killed"):
        check_whole(path)
    before = stamps(tmp_path / "killed" / "parts")
    done = [path for path in before if not path.name.startswith(".tmp-")]
    assert len(done) == 2

    undisturbed = evaluate(tmp_path / "undisturbed")
    scored, score = [], runner._score
    monkeypatch.setattr(runner, "_score", lambda *a: scored.append(a) or score(*a))
    pd.testing.assert_frame_equal(evaluate(tmp_path / "killed"), undisturbed, check_exact=True)
    assert len(scored) == 2
    after = stamps(tmp_path / "killed" / "parts")
    assert {path: after[path] for path in done} == {path: before[path] for path in done}
    for path in (tmp_path / "undisturbed" / "predictions").iterdir():
        resumed = anndata.read_h5ad(tmp_path / "killed" / "predictions" / path.name)
        np.testing.assert_array_equal(resumed.X, anndata.read_h5ad(path).X)
