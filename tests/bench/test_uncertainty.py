"""Means with intervals where there are units enough, leads that are paired, and an evaluation in words."""

import json

import numpy as np
import pandas as pd
import pytest

from histoflow import bench
from histoflow._errors import OptionError
from histoflow.stats import bootstrap_mean

SHIFTS, STABLE = {"G1": 0.1, "G2": -0.1}, {"G1": 1, "G2": 0}
RNG = np.random.default_rng(0)
LEVELS = RNG.normal(0.4, 0.1, 8)


def table(n_sections, *, seeds=(0,), lead=0.05):
    """r of a baseline, a model ahead of it on every section, a constant one, and one that cannot be scored."""
    rows = []
    for place in range(n_sections):
        name = f"S{place}"
        for seed in seeds:
            for model, r in (("mean", np.nan), ("color", LEVELS[place]), ("good", LEVELS[place] + lead)):
                rows += [(name, model, seed, gene, "pearson", r + shift, "") for gene, shift in SHIFTS.items()]
            rows += [(name, "location", seed, gene, "pearson", np.nan, "no place") for gene in SHIFTS]
        rows += [(name, "(ceiling)", 0, "G1", "ceiling", 0.8, ""), (name, "(ceiling)", 0, "G2", "ceiling", np.nan, "")]
        rows += [(name, "(ceiling)", 0, gene, "ceiling_stable", v, "") for gene, v in STABLE.items()]
    frame = pd.DataFrame(rows, columns=["section", "model", "seed", "gene", "metric", "value", "error"])
    return frame.assign(fold=frame["section"], shares="another patient", by="section")


def test_sections_are_drawn_where_there_are_five():
    found = bench.uncertainty(table(8)).set_index("model")
    assert list(found.index) == ["mean", "color", "good"]
    assert set(found["unit"]) == {"section"}
    assert set(found["n_units"]) == {8}
    assert tuple(found.loc["color", ["lower", "upper"]]) == bootstrap_mean(LEVELS)
    assert found.loc["good", "mean"] == pytest.approx(LEVELS.mean() + 0.05)


def test_leads_are_paired():
    row = bench.uncertainty(table(8)).set_index("model").loc["good"]
    assert row["over"] == "color"
    np.testing.assert_allclose(row[["ahead_by", "ahead_lower", "ahead_upper"]].astype(float), 0.05)
    assert row["upper"] - row["lower"] > 0.05  # although the means themselves are as uncertain as their sections
    baselines = bench.uncertainty(table(8)).query("model == 'color'")
    assert baselines["ahead_by"].isna().all()


def test_patients_are_drawn_where_five_are_known():
    patients = {f"S{i}": f"P{i // 2}" for i in range(8)}
    assert set(bench.uncertainty(table(8), patients=patients)["unit"]) == {"section"}  # four patients
    patients |= {"S0": "P8"}
    found = bench.uncertainty(table(8), patients=patients).set_index("model")
    assert set(found["unit"]) == {"patient"}
    means = pd.Series(LEVELS).groupby(["P8", "P0", "P1", "P1", "P2", "P2", "P3", "P3"], sort=False).mean()
    assert found.loc["color", "mean"] == pytest.approx(means.mean())
    assert tuple(found.loc["color", ["lower", "upper"]]) == bootstrap_mean(means)
    assert set(bench.uncertainty(table(8), patients=patients | {"S3": None})["unit"]) == {"section"}


def test_few_sections_have_no_interval():
    found = bench.uncertainty(table(4)).set_index("model")
    assert found[["lower", "upper", "ahead_lower", "ahead_upper"]].isna().all(axis=None)
    assert found.loc["good", "ahead_by"] == pytest.approx(0.05)
    np.testing.assert_allclose(bench.by_section(table(4))["color"], LEVELS[:4])


def test_seeds_are_averaged_and_undefined_genes_count_as_zero():
    twice = table(2, seeds=(0, 1))
    twice.loc[(twice["seed"] == 1) & (twice["model"] == "good"), "value"] += 0.2
    scores = bench.by_section(twice)
    np.testing.assert_allclose(scores["good"], LEVELS[:2] + 0.15)
    assert list(scores["mean"]) == [0, 0]
    assert "location" not in scores


def test_a_metric_that_is_not_there_is_told():
    with pytest.raises(OptionError, match="metric is 'crps'; the table has pearson, ceiling, ceiling_stable"):
        bench.uncertainty(table(4), metric="crps")


def test_words_tell_what_the_mean_is_worth_and_what_it_hides():
    said = bench.in_words(table(8))
    assert "r with a 90 % interval, 8 sections drawn anew:\n  mean: 0.000 (0.000 to 0.000)\n  color: 0." in said
    assert "ahead of color by 0.050 (0.050 to 0.050)" in said
    assert "genes without a defined r, counted as 0: mean all\n" in said
    assert (
        "noise ceiling of r, an upper bound: 0.800, stable for 50% of genes and sections; nowhere stable: G2\n" in said
    )
    assert "not scored: location: no place\n" in said
    assert said.endswith("held out: another patient")
    few = bench.in_words(table(3))
    assert "3 sections, too few for an interval; r on S0, S1, S2:\n  mean: 0.000, 0.000, 0.000\n  color: " in few


def test_genes_are_named_that_count_as_zero():
    some = table(3)
    some.loc[(some["model"] == "good") & (some["gene"] == "G2") & (some["section"] != "S1"), "value"] = np.nan
    assert bench.undefined_genes(some) == {"mean": {"G1": 3, "G2": 3}, "good": {"G2": 2}}
    assert "counted as 0: mean all; good G2\n" in bench.in_words(some)


def test_json_holds_everything():
    told = json.loads(json.dumps(bench.as_json(table(8)), allow_nan=False))
    assert set(told) == {"mean", "r", "r_by_section", "undefined", "errors", "ceiling", "shares"}
    assert told["ceiling"] == {"mean": pytest.approx(0.8), "stable_share": 0.5, "unstable": ["G2"]}
    assert told["errors"] == {"location": "no place"}
    assert set(told["mean"]) == {"mean", "color", "good", "location"}
    assert told["mean"]["location"]["pearson"] is None
    assert told["r_by_section"]["color"]["S2"] == pytest.approx(LEVELS[2])
