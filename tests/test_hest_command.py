"""The command hest-bench: the leaderboard's table, JSON, a second run, and one clear line for what is wrong."""

import json

import numpy as np
import pandas as pd
import pytest
from tests import hest_folder as made
from tests.test_cli import check_error, histoflow

from histoflow import pp
from histoflow.models import Estimator

COLUMNS = ["model", "ONE", "TWO", "average", "average_nan_as_0", "n_nan", "per_section"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return made.make_hest_folder(tmp_path_factory.mktemp("hest"))


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "results"
    return out, histoflow("hest-bench", folder, "--out", out, "--encoder", "color", "--models", "hest_fm", "--json")


def test_json_holds_the_leaderboard_and_what_is_odd(run):
    out, done = run
    assert done.code == 0, done.err
    assert done.json["results"] == str(out / "results.parquet")
    board = pd.DataFrame(done.json["leaderboard"])
    assert list(board.columns) == COLUMNS
    assert list(board["model"]) == ["hest_fm-hest", "hest_fm-grouped-cv"]
    pd.testing.assert_frame_equal(board, pd.read_csv(out / "leaderboard.csv"), check_exact=False, atol=1e-9)
    assert (board.loc[1, ["ONE", "TWO", "average"]] > 0.5).all()
    assert len(done.json["oddities"]) == 5


def test_a_second_run_prints_the_same_table_and_does_nothing_again(folder, run, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("this was done before")

    monkeypatch.setattr(Estimator, "fit", refuse)
    monkeypatch.setattr(pp.Encoder, "encode_images", refuse)
    done = histoflow("hest-bench", folder, "--out", run[0], "--encoder", "color", "--models", "hest_fm")
    assert done.code == 0, done.err
    head, first, second, *legend = done.out.splitlines()
    assert head.split() == COLUMNS
    averages = [line["average"] for line in run[1].json["leaderboard"]]
    assert [float(line.split()[3]) for line in (first, second)] == pytest.approx(averages, abs=5e-5)
    assert "MSE and R² of it mean nothing" in " ".join(legend)
    assert legend[-1] == f"results, models and predictions are in {run[0]}"


def test_tasks_and_models_are_chosen(folder, tmp_path):
    options = ["--encoder", "color", "--models", "hest_fm-grouped-cv", "--tasks", "TWO", "--seed", "3", "--json"]
    done = histoflow("hest-bench", folder, "--out", tmp_path / "out", *options)
    assert done.code == 0, done.err
    assert [list(line) for line in done.json["leaderboard"]] == [["model", "TWO", *COLUMNS[3:]]]
    assert set(pd.read_parquet(tmp_path / "out" / "results.parquet")["seed"]) == {3}


def test_a_gene_that_nobody_counted_is_null_in_json(folder, tmp_path):
    task = tmp_path / "TWO"
    made.write_splits(task, made.FOLDS["TWO"][:1])
    genes = [f"G{i}" for i in range(5)]
    (task / "var_50genes.json").write_text(json.dumps({"genes": genes}))
    for place, sample in enumerate("EFG"):
        made.write_sample(task, sample, place, 30)
        made.change_h5ad(task / "adata" / f"{sample}.h5ad", lambda table: setattr(table, "X", table.X @ silent()))
    done = histoflow(
        "hest-bench", task, "--out", tmp_path / "out", "--encoder", "color", "--models", "hest_fm", "--json"
    )
    assert done.code == 0, done.err
    for line in done.json["leaderboard"]:
        assert (line["TWO"], line["average"], line["n_nan"]) == (None, None, 1)
        assert line["average_nan_as_0"] > 0.3


def silent():
    """Takes away the counts of G2."""
    keep = np.ones(made.N_GENES, dtype=np.float32)
    keep[2] = 0
    return np.diag(keep)


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (["--models", "hest_fm,auto"], 2, "models has auto; choose from hest_fm"),
        (["--encoder", "nothing"], 2, "encoder is 'nothing'"),
        (["--tasks", "THREE"], 2, "tasks THREE are not in"),
    ],
)
def test_a_wrong_option_is_one_line(folder, tmp_path, options, code, text):
    check_error(histoflow("hest-bench", folder, "--out", tmp_path / "out", *options), code, text)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_tasks_is_one_line(tmp_path):
    check_error(histoflow("hest-bench", tmp_path, "--out", tmp_path / "out"), 1, "holds no task")
