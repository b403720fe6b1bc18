"""The benchmark's recipe and table: an independent script, averages by hand, nothing done twice, clear refusals."""

import json

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import pearsonr
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler
from tests import hest_folder as made
from tests.contracts.test_estimators import SMALL

from histoflow import bench, models, workflow
from histoflow._errors import OptionError, ReadError, ResolutionError
from histoflow.models import Estimator

pytestmark = [
    pytest.mark.filterwarnings("ignore::histoflow._errors.DroppedSpotsWarning"),
    pytest.mark.filterwarnings("ignore::histoflow._errors.TrainingWarning"),
]

GENES = [f"G{i}" for i in range(made.N_LISTED)][::-1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return made.make_hest_folder(tmp_path_factory.mktemp("hest"))


@pytest.fixture(scope="module")
def encoder():
    return made.pixels()


def linear(encoder):
    return bench.hest_models(["hest_fm"], encoder=encoder.name)


@pytest.fixture(scope="module")
def run(folder, encoder, tmp_path_factory):
    """The linear models on both tasks: the folder of results, and the table."""
    out = tmp_path_factory.mktemp("out")
    return out, workflow.hest_bench(folder, out, encoder=encoder, estimators=linear(encoder))


def read_side(task, split):
    """The benchmark's side of a fold, as its own script reads it: patches, then the counts of their barcodes."""
    x, y = [], []
    for row in pd.read_csv(task / "splits" / split).itertuples():
        with h5py.File(task / row.patches_path) as file:
            images, names = file["img"][:], [b.decode() for b in file["barcode"][:].ravel()]
        table = anndata.read_h5ad(task / row.expr_path)
        kept = [i for i, name in enumerate(names) if name in table.obs_names]
        small = [Image.fromarray(images[i]).resize((16, 16), Image.Resampling.BILINEAR) for i in kept]
        x.append(np.stack([np.asarray(image).ravel() for image in small]).astype(np.float32))
        genes = json.loads((task / "var_50genes.json").read_text())["genes"]
        y.append(np.log1p(table[[names[i] for i in kept], genes].X.toarray().astype(np.float64)))
    return np.concatenate(x), np.concatenate(y)


def recipe(task, fold):
    """Pearson r of each gene by the HEST-Benchmark's recipe, written out."""
    x_train, y_train = read_side(task, f"train_{fold}.csv")
    x_test, y_test = read_side(task, f"test_{fold}.csv")
    scaler = StandardScaler().fit(x_train)
    n_components = min(256, *x_train.shape)
    pca = PCA(n_components=n_components, random_state=1).fit(scaler.transform(x_train))
    scores = [pca.transform(scaler.transform(x)).astype(np.float32) for x in (x_train, x_test)]
    alpha = 100 / (n_components * y_train.shape[1])
    ridge = Ridge(solver="lsqr", alpha=alpha, random_state=1, fit_intercept=False, max_iter=1000)
    predicted = ridge.fit(scores[0], y_train).predict(scores[1])
    return [pearsonr(y_test[:, g], predicted[:, g])[0] for g in range(y_test.shape[1])], n_components


@pytest.mark.parametrize(("task", "fold", "n_components"), [("ONE", 0, 256), ("ONE", 1, 200), ("TWO", 0, 60)])
def test_the_hest_protocol_is_the_recipe_gene_by_gene(folder, run, task, fold, n_components):
    table = run[1]
    mine = table[(table["model"] == "hest_fm-hest") & (table["metric"] == "pooled_pearson")]
    mine = mine[mine["fold"] == f"{task}-{fold}"].set_index("gene")["value"]
    wanted, used = recipe(folder / task, fold)
    assert used == n_components
    np.testing.assert_allclose(mine[GENES], wanted, atol=1e-6, rtol=0)


def test_both_protocols_find_the_planted_signal(run):
    board = bench.hest_leaderboard(run[1]).set_index("model")
    assert list(board.index) == ["hest_fm-hest", "hest_fm-grouped-cv"]
    assert board.loc["hest_fm-grouped-cv", "ONE"] > 0.4
    assert board.loc["hest_fm-grouped-cv", "average"] > board.loc["hest_fm-hest", "average"] > 0.05


def test_the_table_has_every_fold_section_model_and_gene(run):
    table = run[1]
    assert tuple(table.columns) == bench.HEST_COLUMNS
    n_sections = sum(len(test) + 1 for folds in made.FOLDS.values() for _, test in folds)  # one more: pooled
    assert len(table) == n_sections * 2 * made.N_LISTED
    assert not table.duplicated(["fold", "section", "model", "gene", "metric"]).any()
    assert set(table["shares"]) == {"the benchmark's own split: whole samples, patients not stated"}
    assert set(table.loc[table["metric"] == "pooled_pearson", "section"]) == {""}


def test_a_fold_of_one_test_sample_is_the_same_pooled_or_not(run):
    table = run[1][run[1]["fold"] == "ONE-0"]
    values = {metric: part["value"].to_numpy() for metric, part in table.groupby("metric")}
    np.testing.assert_array_equal(values["pearson"], values["pooled_pearson"])


def test_pooled_is_over_the_kept_predictions_of_all_test_samples(run):
    out, table = run
    kept = [bench.read_prediction(out, fold="ONE-1", section=s, model="hest_fm-grouped-cv") for s in "AB"]
    measured, predicted = (np.concatenate(part) for part in ([k.layers["measured"] for k in kept], [k.X for k in kept]))
    mine = table[(table["fold"] == "ONE-1") & (table["metric"] == "pooled_pearson")]
    mine = mine[mine["model"] == "hest_fm-grouped-cv"].set_index("gene")["value"]
    wanted = [pearsonr(measured[:, g], predicted[:, g])[0] for g in range(len(GENES))]
    np.testing.assert_allclose(mine[GENES], wanted, atol=1e-6)


def test_models_are_kept_and_say_what_is_odd(run):
    model = models.load(bench.model_path(run[0], fold="ONE-0", model="hest_fm-hest"))
    assert model.training_["oddities"] == list(bench.HEST_ODDITIES)
    assert "MSE and R² of them mean nothing" in model.training_["oddities"][0]
    assert (model.normalize, model.training_["n_components"]) == ("none", 256)


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_second_run_does_nothing_again_and_a_lost_part_alone(folder, encoder, run, monkeypatch):
    out, table = run
    before, fits, fit = stamps(out / "parts") | stamps(out / "predictions"), [], Estimator.fit
    monkeypatch.setattr(Estimator, "fit", lambda self, *a, **k: fits.append(self.protocol) or fit(self, *a, **k))
    again = workflow.hest_bench(folder, out, encoder=encoder, estimators=linear(encoder))
    pd.testing.assert_frame_equal(again, table)
    assert fits == []
    assert stamps(out / "parts") | stamps(out / "predictions") == before
    lost = out / "predictions" / "TWO-1-E-hest_fm-hest-0.h5ad"
    lost.unlink()
    pd.testing.assert_frame_equal(workflow.hest_bench(folder, out, encoder=encoder, estimators=linear(encoder)), table)
    assert fits == ["hest"]
    assert lost.is_file()


def test_the_files_are_the_table(run):
    out, table = run
    pd.testing.assert_frame_equal(pd.read_parquet(out / "results.parquet"), table)
    board = pd.read_csv(out / "leaderboard.csv")
    pd.testing.assert_frame_equal(board, bench.hest_leaderboard(table))


def test_stflow_runs_beside_them_on_the_same_scale(folder, encoder, tmp_path):
    flow = {"stflow": models.STFlow(encoder=encoder.name, **SMALL)}
    table = workflow.hest_bench(folder, tmp_path, encoder=encoder, estimators=flow, tasks=["TWO"])
    assert set(table["model"]) == {"stflow"}
    assert table["value"].between(-1, 1).all()
    saved = models.load(bench.model_path(tmp_path, fold="TWO-0", model="stflow"))
    assert (saved.normalize, saved.pitch_um_) == ("none", pytest.approx(100))


def long(values):
    """A table of task, fold, section, metric and the values of two genes."""
    rows = [
        {"task": t, "fold": f, "section": s, "model": "m", "gene": gene, "metric": metric, "value": value}
        for t, f, s, metric, pair in values
        for gene, value in zip("GH", pair, strict=True)
    ]
    return pd.DataFrame(rows)


def test_the_leaderboard_averages_over_genes_folds_and_tasks():
    values = [
        ("T", "T-0", "", "pooled_pearson", (0.2, 0.4)),
        ("T", "T-1", "", "pooled_pearson", (0.5, 0.5)),
        ("U", "U-0", "", "pooled_pearson", (0.9, 0.7)),
        ("T", "T-0", "A", "pearson", (0.1, 0.1)),
        ("T", "T-0", "B", "pearson", (0.3, 0.3)),
        ("T", "T-1", "C", "pearson", (0.5, 0.5)),
        ("U", "U-0", "D", "pearson", (0.7, 0.5)),
    ]
    line = bench.hest_leaderboard(long(values)).iloc[0]
    assert line[["T", "U", "average"]].tolist() == pytest.approx([0.4, 0.8, 0.6])
    assert line["average_nan_as_0"] == pytest.approx(0.6)
    assert line["per_section"] == pytest.approx((0.3 + 0.6) / 2)
    assert line["n_nan"] == 0


def test_a_nan_gene_is_told_both_ways():
    values = [
        ("T", "T-0", "", "pooled_pearson", (0.2, np.nan)),
        ("T", "T-1", "", "pooled_pearson", (0.5, 0.5)),
        ("U", "U-0", "", "pooled_pearson", (0.9, 0.7)),
        ("T", "T-0", "A", "pearson", (0.4, np.nan)),
        ("U", "U-0", "D", "pearson", (0.6, 0.6)),
    ]
    line = bench.hest_leaderboard(long(values)).iloc[0]
    assert np.isnan(line["T"])
    assert np.isnan(line["average"])
    assert line["U"] == pytest.approx(0.8)
    assert line["average_nan_as_0"] == pytest.approx((0.3 + 0.8) / 2)
    assert line["per_section"] == pytest.approx((0.2 + 0.6) / 2)
    assert line["n_nan"] == 1


def test_models_by_name():
    assert list(bench.hest_models(encoder="e")) == ["hest_fm-hest", "hest_fm-grouped-cv", "stflow"]
    chosen = bench.hest_models(["stflow", "hest_fm-grouped-cv"], encoder="e", seed=3)
    assert list(chosen) == ["stflow", "hest_fm-grouped-cv"]
    assert {(m.encoder, m.normalize, m.seed) for m in chosen.values()} == {("e", "none", 3)}
    with pytest.raises(OptionError, match="models has istar; choose from hest_fm, hest_fm-hest"):
        bench.hest_models(["istar"], encoder="e")


@pytest.fixture
def unscaled(tmp_path):
    """Task TWO without a pixel size anywhere."""
    task = tmp_path / "TWO"
    made.write_splits(task, made.FOLDS["TWO"])
    (task / "var_50genes.json").write_text(json.dumps({"genes": GENES}))
    for place, sample in enumerate("EFG"):
        made.write_sample(task, sample, place, 30, {})
    return task


@pytest.mark.parametrize("name", ["stflow", "hest_fm-grouped-cv"])
def test_what_needs_places_refuses_samples_without_a_scale(unscaled, encoder, tmp_path, name):
    chosen = bench.hest_models([name], encoder=encoder.name)
    with pytest.raises(ResolutionError, match=rf"{name} needs places in µm, .*E\.h5 .*metadata/E\.json"):
        workflow.hest_bench(unscaled, tmp_path / "out", encoder=encoder, estimators=chosen)
    assert not (tmp_path / "out").exists()


def test_the_recipe_needs_no_scale(unscaled, encoder, tmp_path):
    chosen = bench.hest_models(["hest_fm-hest"], encoder=encoder.name)
    table = workflow.hest_bench(unscaled, tmp_path / "out", encoder=encoder, estimators=chosen)
    assert table["value"].notna().all()


def test_a_missing_file_is_named_before_anything_is_done(folder, encoder, tmp_path, unscaled):
    (unscaled / "adata" / "F.h5ad").unlink()
    with pytest.raises(ReadError, match=r"adata/F\.h5ad does not exist"):
        workflow.hest_bench(unscaled, tmp_path / "out", encoder=encoder)
    assert not (tmp_path / "out").exists()
