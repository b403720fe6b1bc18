"""The runner: one long table, folds that say what they share, panels from training alone, nothing done twice."""

from pathlib import Path
from typing import ClassVar

import anndata
import numpy as np
import pandas as pd
import pytest
from tests.models.conftest import GENES, make_section

from histoflow import models
from histoflow._errors import OptionError, PanelMismatchError, ReadError, SplitError
from histoflow._keys import EMBEDDINGS, UNS
from histoflow.bench import COLUMNS, model_path, read_prediction, run, runner, summary
from histoflow.io import Cohort, Row
from histoflow.models import Estimator, LibrarySizeBaseline, LocationBaseline, MeanBaseline, RidgeProbe
from histoflow.models.baselines import true_totals_name
from histoflow.pp import Panel, panel_log1p

METRICS = [
    *("pearson", "spearman", "mse_skill", "variance_ratio", "partial_pearson"),
    *("moran_measured", "moran_predicted", "moran_difference", "ssim"),
]
MODEL_METRICS = [*METRICS, "svg_overlap", "pearson_pooled", "share_of_ceiling"]
PANEL = Panel(tuple(GENES[:4]))
KEYS = ["dataset", "by", "fold", "section", "model", "seed", "gene", "metric"]


class Counting(Estimator):
    """Predicts the first features of the embedding, and remembers every fit."""

    name = "counting"
    fits: ClassVar[list[tuple[tuple[str, ...], int]]] = []
    stop_after: ClassVar[int] = 99

    def __init__(self, *, shift: float = 0.0, normalize: str = "library", seed: int = 0) -> None:
        super().__init__(encoder="scatter", normalize=normalize, seed=seed)
        self.shift = shift

    def _fit(self, measured):
        if len(self.fits) >= self.stop_after:
            raise KeyboardInterrupt
        self.fits.append((tuple(part.spots.section for part in measured), self.seed))
        return {}

    def _draw(self, spots, n_samples):
        return spots.embedding[None, :, : len(self.panel_)] + np.float32(self.shift + self.seed)

    def _state(self):
        return {}

    def _restore(self, arrays):
        pass


@pytest.fixture(autouse=True)
def fits(monkeypatch):
    """The fits of this test."""
    monkeypatch.setattr(Counting, "fits", [])
    return Counting.fits


@pytest.fixture
def sections():
    return [make_section(f"S{i}", seed=i, n_spots=25 + i) for i in range(4)]


@pytest.fixture
def pair(sections):
    """Two sections, two folds: enough where only what is done again matters."""
    return sections[:2]


def tell(sections, **columns):
    """Write ids into sections, one value each."""
    for level, values in columns.items():
        for section, value in zip(sections, values, strict=True):
            section.uns[UNS][level] = value
    return sections


def cohort_of(sections, roles):
    """A cohort of sections already read, with the roles of a manifest."""
    known = {section.uns[UNS]["section"]: section for section in sections}
    rows = [Row(section=name, kind="h5ad", role=role) for name, role in zip(known, roles, strict=True)]
    return Cohort(rows, name="mine", sections=known)


def quick(sections, **options):
    return run(sections, **({"models": {"m": Counting()}, "panel": PANEL} | options))


def of_sections(table):
    """The rows of single sections, without those of a fold's spots together."""
    return table[table["section"] != ""]


def files(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def test_one_row_per_fold_section_model_seed_gene_and_metric(sections):
    chosen = {"mean": MeanBaseline(), "m": Counting()}
    whole = quick(sections, models=chosen, seeds=(0, 3))
    assert tuple(whole.columns) == COLUMNS
    assert not whole.duplicated(KEYS).any()
    ceilings, table = whole[whole["model"] == "(ceiling)"], whole[whole["model"] != "(ceiling)"]
    assert len(table) == 4 * 2 * 2 * (len(PANEL) * (len(METRICS) + 2) + 1)
    assert len(ceilings) == 4 * 2 * len(PANEL)
    for column, values in {
        "dataset": ["sections"],
        "by": ["section"],
        "model": ["mean", "m"],
        "seed": [0, 3],
        "gene": [*PANEL.genes, ""],
        "metric": MODEL_METRICS,
        "error": [""],
    }.items():
        assert list(table[column].unique()) == values
    assert list(table[table["gene"] == ""]["metric"].unique()) == ["svg_overlap"]
    assert list(table[table["section"] == ""]["metric"].unique()) == ["pearson_pooled"]
    undefined = table[(table["model"] == "m") & table["value"].isna() & (table["metric"] != "share_of_ceiling")]
    assert list(undefined["metric"].unique()) == ["ssim"]  # the sections are smaller than its window


def test_values_are_the_metrics_of_the_held_out_section(sections):
    table = quick(sections, models={"m": RidgeProbe()})
    predicted = RidgeProbe().fit(sections[1:], panel=PANEL).predict(sections[0]).X.astype(float)
    measured, *trained = (panel_log1p(section, PANEL, "library").astype(float) for section in sections)
    own = table[table["section"] == "S0"].pivot(index="gene", columns="metric", values="value").loc[list(PANEL.genes)]
    r = [np.corrcoef(measured[:, gene], predicted[:, gene])[0, 1] for gene in range(len(PANEL))]
    mean = np.concatenate(trained).mean(axis=0)
    skill = 1 - ((predicted - measured) ** 2).mean(axis=0) / ((mean - measured) ** 2).mean(axis=0)
    np.testing.assert_allclose(own["pearson"], r, atol=1e-5)
    np.testing.assert_allclose(own["mse_skill"], skill, atol=1e-5)
    np.testing.assert_allclose(own["variance_ratio"], predicted.var(axis=0) / measured.var(axis=0), rtol=1e-4)


def test_folds_hold_out_whole_groups_and_say_what_they_share(sections, fits):
    tell(sections, patient=["P", "P", "Q", "Q"], block=["P1", "P2", "Q1", "Q1"], order=[1, 1, 4, 5])
    by_patient = quick(sections, by="patient")
    held_out = of_sections(by_patient).groupby("fold")["section"].unique()
    assert {fold: list(names) for fold, names in held_out.items()} == {"P": ["S0", "S1"], "Q": ["S2", "S3"]}
    assert list(by_patient["shares"].unique()) == ["another patient, study not stated"]
    assert [names for names, _ in fits] == [("S2", "S3"), ("S0", "S1")]
    by_section = quick(sections, by="section").drop_duplicates("fold").set_index("fold")
    assert dict(by_section["shares"]) == {
        "S0": "same patient, another block",
        "S1": "same patient, another block",
        "S2": "adjacent serial sections of one block: optimistic",
        "S3": "adjacent serial sections of one block: optimistic",
    }
    assert list(by_section["by"].unique()) == ["section"]


def test_the_panel_is_chosen_from_the_training_sections_alone(sections):
    rng = np.random.default_rng(0)
    for place, section in enumerate(sections):
        counts = section.X.toarray()
        counts[:, 0] = rng.integers(1, 900, len(counts)) if place == 3 else 5
        section.X = type(section.X)(counts)
    table = quick(sections, panel=3, normalize="none")
    genes = table[table["gene"] != ""].groupby("fold")["gene"].unique()
    assert [GENES[0] in genes[fold] for fold in ("S0", "S1", "S2", "S3")] == [True, True, True, False]
    told = table.attrs["panels"]
    assert {fold: (p["rule"], p["n_genes"]) for fold, p in told.items()} == {f"S{i}": ("variance", 3) for i in range(4)}
    assert told["S3"]["hash"] == Panel(tuple(genes["S3"])).hash != told["S0"]["hash"]


def test_poor_spots_are_neither_trained_on_nor_scored_and_are_counted(sections, tmp_path):
    totals = [np.asarray(section.X.sum(axis=1)).ravel() for section in sections]
    limit = int(np.median(np.concatenate(totals)))
    rich = [section[total >= limit].copy() for section, total in zip(sections, totals, strict=True)]
    table = quick(sections, models={"m": RidgeProbe("hest")}, min_counts=limit, out=tmp_path)
    by_hand = quick(rich, models={"m": RidgeProbe("hest")})
    pd.testing.assert_frame_equal(table, by_hand)
    assert table.attrs["min_counts"] == limit
    assert table.attrs["n_spots_left_out"] == sum((total < limit).sum() for total in totals) > 0
    assert by_hand.attrs["n_spots_left_out"] == 0
    assert read_prediction(tmp_path, fold="S0", section="S0", model="m").n_obs == rich[0].n_obs


def test_a_limit_that_leaves_a_section_empty_names_it(sections):
    sections[2].X = sections[2].X * 0
    with pytest.raises(SplitError, match=r"min_counts=1 leaves no spot of S2; give a smaller number"):
        quick(sections, min_counts=1)


def test_a_second_run_fits_nothing_and_returns_the_same_table(sections, fits, tmp_path):
    first = quick(sections, out=tmp_path, seeds=(0, 1))
    before = files(tmp_path / "parts") | files(tmp_path / "predictions")
    assert len(fits) == len(list((tmp_path / "parts").iterdir())) == 8
    second = quick(sections, out=tmp_path, seeds=(0, 1))
    assert len(fits) == 8
    assert files(tmp_path / "parts") | files(tmp_path / "predictions") == before
    pd.testing.assert_frame_equal(second, first)
    assert second.attrs == first.attrs
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "results.parquet"), first)


@pytest.mark.parametrize(
    ("options", "n_more"),
    [
        ({}, 0),
        ({"models": {"m": Counting(shift=0.5)}}, 2),
        ({"models": {"other": Counting()}}, 2),
        ({"models": {"m": Counting(), "other": Counting()}}, 2),
        ({"seeds": (0, 1)}, 2),
        ({"normalize": "none"}, 2),
        ({"panel": Panel(tuple(GENES[:3]))}, 2),
        ({"min_counts": 30}, 2),
    ],
    ids=["nothing", "option", "name", "another model", "another seed", "scale", "panel", "min_counts"],
)
def test_what_was_asked_for_anew_is_fitted_and_nothing_else(pair, fits, tmp_path, options, n_more):
    quick(pair, out=tmp_path)
    table = quick(pair, out=tmp_path, **options)
    assert len(fits) == 2 + n_more
    pd.testing.assert_frame_equal(table, quick(pair, **options))


def one_count(section):
    section.X[0, 1] += 1


def embedding(section):
    section.uns[UNS][EMBEDDINGS]["scatter"]["id"] = "b" * 12


def slide(section):
    section.uns[UNS][EMBEDDINGS]["scatter"]["slide_id"] = "other"


def spot_names(section):
    section.obs_names = [f"new-{name}" for name in section.obs_names]


def gene_names(section):
    section.var_names = GENES[::-1]


def scale(section):
    section.obsm["spatial_um"] = section.obsm["spatial_um"] * 1.1
    section.uns[UNS] |= {"mpp_x": 0.55, "mpp_y": 0.55}
    section.obsm["scatter"] = section.obsm["scatter"] * 1.1  # as an embedding of larger patches differs


@pytest.mark.parametrize("change", [one_count, embedding, slide, spot_names, gene_names, scale])
def test_changed_data_are_fitted_anew(pair, fits, tmp_path, change):
    quick(pair, out=tmp_path)
    for section in pair:
        change(section)
    table = quick(pair, out=tmp_path)
    assert len(fits) == 4
    pd.testing.assert_frame_equal(table, quick(pair))


def test_a_label_is_that_of_the_manifest_now(pair, tmp_path):
    assert set(quick(pair, out=tmp_path)["shares"]) == {"patient not stated"}
    tell(pair, patient="AB")
    assert set(quick(pair, out=tmp_path)["shares"]) == {"another patient, study not stated"}


def test_a_prediction_on_disk_is_that_of_the_table_beside_it(pair, tmp_path):
    for normalize in ("library", "none", "library"):
        quick(pair, out=tmp_path, normalize=normalize)
    kept = read_prediction(tmp_path, fold="S0", section="S0", model="m")
    assert kept.uns[UNS]["normalize"] == "library"


def test_a_run_that_was_stopped_is_taken_up(sections, fits, tmp_path, monkeypatch):
    monkeypatch.setattr(Counting, "stop_after", 2)
    with pytest.raises(KeyboardInterrupt):
        quick(sections, out=tmp_path)
    assert len(files(tmp_path / "parts")) == 2
    assert not (tmp_path / "results.parquet").exists()
    monkeypatch.setattr(Counting, "stop_after", 99)
    table = quick(sections, out=tmp_path)
    assert len(fits) == 4
    pd.testing.assert_frame_equal(table, quick(sections))


@pytest.mark.parametrize("writer", ["to_parquet", "write_elem"])
def test_a_write_that_is_stopped_leaves_no_part(pair, fits, tmp_path, monkeypatch, writer):
    def half_written(*to, **options):
        if writer == "to_parquet":
            Path(to[1]).write_bytes(b"PAR1 and no more")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pd.DataFrame if writer == "to_parquet" else anndata.io, writer, half_written)
        with pytest.raises(KeyboardInterrupt):
            quick(pair, out=tmp_path)
    made = [path for path in files(tmp_path) if "models" not in path.parts]
    assert [path.suffix for path in made] == ([".h5ad"] if writer == "to_parquet" else [])
    table = quick(pair, out=tmp_path)
    assert len(fits) == 3
    pd.testing.assert_frame_equal(table, quick(pair))


def test_predictions_are_kept_with_what_was_measured(sections, tmp_path):
    table = quick(sections, models={"m": RidgeProbe("hest")}, normalize="none", out=tmp_path, seeds=(4,))
    kept = read_prediction(tmp_path, fold="S2", section="S2", model="m", seed=4)
    fitted = RidgeProbe("hest", normalize="none").fit([sections[i] for i in (0, 1, 3)], panel=PANEL)
    np.testing.assert_array_equal(kept.X, fitted.predict(sections[2]).X)
    np.testing.assert_array_equal(kept.layers["measured"], panel_log1p(sections[2], PANEL, "none"))
    assert list(kept.obs_names) == list(sections[2].obs_names)
    assert list(kept.var_names) == list(PANEL.genes)
    assert len(list((tmp_path / "predictions").iterdir())) == of_sections(table)["section"].nunique()
    with pytest.raises(
        ReadError, match=r"no prediction .*S2-S2-m-0\.h5ad; run the evaluation with this model and seed"
    ):
        read_prediction(tmp_path, fold="S2", section="S2", model="m")


def test_without_a_folder_nothing_is_written(sections, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick(sections)
    assert not files(tmp_path)


def test_a_model_without_meaning_here_gives_its_reason(sections, tmp_path):
    table = quick(sections, models={"near": LocationBaseline(), "m": Counting()}, out=tmp_path)
    near = table[table["model"] == "near"]
    assert len(near) == 4 * len(PANEL)
    assert near["value"].isna().all()
    assert near["metric"].eq("pearson").all()
    for name, errors in near.groupby("section")["error"]:
        assert set(errors) == {
            f"location says nothing about section {name}: no training spot lies on its slide; "
            "it compares only within a section"
        }
    assert (table[table["model"] == "m"]["error"] == "").all()
    assert not list((tmp_path / "predictions").glob("*near*"))
    scores = summary(table).query("metric == 'pearson'").groupby("model")["value"].apply(lambda v: v.isna().all())
    assert dict(scores) == {"near": True, "m": False}


def test_true_totals_are_labelled_an_oracle(sections, tmp_path):
    table = quick(sections, models={"depth": LibrarySizeBaseline()}, normalize="none", out=tmp_path)
    assert list(table["model"].unique()) == ["depth", "depth (oracle: true totals)", "(ceiling)"]
    assert table["model"].value_counts().drop("(ceiling)").nunique() == 1
    oracle = read_prediction(tmp_path, fold="S0", section="S0", model=true_totals_name("depth"))
    fitted = LibrarySizeBaseline(normalize="none").fit(sections[1:], panel=PANEL)
    totals = np.asarray(sections[0].X.sum(axis=1)).ravel()
    np.testing.assert_array_equal(oracle.X, fitted.predict_given_totals(sections[0], totals).X)
    own = read_prediction(tmp_path, fold="S0", section="S0", model="depth")
    np.testing.assert_array_equal(own.X, fitted.predict(sections[0]).X)
    assert not np.array_equal(own.X, oracle.X)


def rows(section, seed, values, *, error="", model="m"):
    genes = pd.DataFrame({"gene": GENES[: len(values)], "value": values})
    return genes.assign(model=model, metric="pearson", fold="F", section=section, seed=seed, error=error)


def test_the_summary_counts_undefined_genes_as_zero_and_sections_alike():
    table = pd.concat([rows("A", 0, [0.8, np.nan]), rows("A", 1, [0.6, 0.6]), rows("B", 0, [0.2, np.nan, np.nan, 0.6])])
    assert summary(table).to_dict("records") == [
        {"model": "m", "metric": "pearson", "fold": "F", "value": pytest.approx((0.4 + 0.6 + 0.2) / 3), "n_nan": 3}
    ]


def test_the_summary_leaves_out_what_says_nothing_of_the_model():
    table = rows("A", 0, [0.8, np.nan])
    assert summary(table.assign(metric="share_of_ceiling"))["value"].tolist() == [0.8]
    assert summary(table.assign(metric="moran_difference", value=np.nan))["value"].isna().all()


def test_the_pooled_figure_takes_all_spots_of_the_fold_together(sections):
    cohort = cohort_of(sections, ["reference", "reference", "held_out", "held_out"])
    table = quick(cohort, models={"m": RidgeProbe("hest")})
    fitted = RidgeProbe("hest").fit(sections[:2], panel=PANEL)
    predicted = np.concatenate([fitted.predict(section).X for section in sections[2:]])
    measured = np.concatenate([panel_log1p(section, PANEL, "library") for section in sections[2:]])
    r = [np.corrcoef(measured[:, gene], predicted[:, gene])[0, 1] for gene in range(len(PANEL))]
    pooled = table[table["metric"] == "pearson_pooled"].set_index("gene")["value"]
    np.testing.assert_allclose(pooled[list(PANEL.genes)], r, atol=1e-5)


def test_the_summary_of_a_model_that_could_not_be_scored_is_undefined():
    table = pd.concat([rows("A", 0, [np.nan, np.nan], error="why", model="bad"), rows("A", 0, [np.nan, np.nan])])
    values = summary(table).set_index("model")["value"]
    assert np.isnan(values["bad"])
    assert values["m"] == 0


def test_roles_of_a_manifest_make_one_fold(sections, fits):
    cohort = cohort_of(sections, ["reference", "held_out", "reference", "held_out"])
    table = quick(cohort)
    assert list(table["fold"].unique()) == ["S1+S3"]
    assert list(of_sections(table)["section"].unique()) == ["S1", "S3"]
    assert list(table["dataset"].unique()) == ["mine"]
    assert fits == [(("S0", "S2"), 0)]
    assert set(table["shares"]) == {"patient not stated"}


def test_roles_are_refused_where_the_asked_level_is_violated(sections):
    tell(sections, patient="PQPQ", study="XXXY", block=["B1", "B2", "B1", "B3"])
    cohort = cohort_of(sections, ["reference", "reference", "reference", "held_out"])
    assert set(quick(cohort, by="section")["shares"]) == {"same patient, another block"}
    assert set(quick(cohort, by="study")["fold"]) == {"S3"}
    with pytest.raises(SplitError, match=r"patient: shared by both sides: S1 \(patient 'Q'\), S3"):
        quick(cohort, by="patient")
    del sections[0].uns[UNS]["study"]
    with pytest.raises(SplitError, match=r"by study: not stated for S0; fill the column 'study'"):
        quick(cohort, by="study")
    with pytest.raises(SplitError, match="a split needs sections on both sides, got 0 to train"):
        quick(cohort_of(sections, ["held_out"] * 4))


@pytest.mark.parametrize("roles", [["reference"] * 4, ["reference"] * 3 + ["held_out"]])
def test_a_level_that_is_not_offered_is_refused(sections, fits, roles):
    with pytest.raises(OptionError, match="by must be one of section, block, patient, study, area, got 'tissue'"):
        quick(cohort_of(sections, roles), by="tissue")
    assert not fits


def test_levels_that_are_not_stated_or_one_group_are_refused(sections, fits):
    with pytest.raises(SplitError, match="cannot split by patient: not stated for S0, S1, S2, S3; fill the column"):
        quick(sections, by="patient")
    with pytest.raises(SplitError, match=r"4 sections give 1 group \(X\), at least 2 are needed"):
        quick(tell(sections, study="XXXX"), by="study")
    with pytest.raises(SplitError, match="section ids must be unique, but S0 came more than once"):
        quick([*sections, sections[0]])
    assert not fits


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"seeds": ()}, "got 1 models and 0 seeds; give at least one of each"),
        ({"models": {}}, "got 0 models and 1 seeds"),
        ({"normalize": "log"}, "normalize='log' is not offered"),
        ({"panel": 3, "normalize": "log"}, "normalize='log' is not offered"),
        ({"panel": 0}, "n_genes is 0"),
    ],
)
def test_options_that_mean_nothing_are_refused(sections, fits, monkeypatch, options, text):
    monkeypatch.setattr(runner, "default_models", lambda: {"default": Counting()})
    with pytest.raises(OptionError, match=text):
        quick(sections, **options)
    assert not fits


def test_a_fixed_panel_must_be_measured_everywhere(sections):
    sections[1] = sections[1][:, GENES[1:]].copy()
    with pytest.raises(PanelMismatchError, match="section S1 lacks 1 of the panel's 4 genes"):
        quick(sections)


def test_an_ordinary_table_has_the_baselines_the_probe_and_the_flow():
    chosen = runner.default_models(encoder="other")
    assert list(chosen) == ["mean", "library_size", "color", "hest_fm", "stflow"]
    assert {name: e.encoder for name, e in chosen.items()} == {
        "mean": None,
        "library_size": "other",
        "color": "color",
        "hest_fm": "other",
        "stflow": "other",
    }
    assert all(type(e) is type(models.from_name(name)) for name, e in chosen.items())


def test_a_model_that_was_scored_can_be_loaded(sections, tmp_path):
    run(sections, models={"ridge": RidgeProbe()}, panel=PANEL, out=tmp_path)
    loaded = models.load(model_path(tmp_path, fold="S0", model="ridge"))
    kept = read_prediction(tmp_path, fold="S0", section="S0", model="ridge")
    assert loaded.training_["sections"] == ["S1", "S2", "S3"]
    np.testing.assert_array_equal(loaded.predict(sections[0]).X, kept.X)
