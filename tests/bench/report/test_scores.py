"""What a table says: order, kinds, what counts as 0 and what does not, and what is left out of it."""

import numpy as np
import pandas as pd
import pytest
from tests.bench import invented

from histoflow._errors import ReadError
from histoflow.bench.report.scores import (
    best_of,
    by_gene,
    check_table,
    coverage_curve,
    means,
    metrics_of,
    scores,
    sections_of,
)
from histoflow.bench.runner import COLUMNS, summary


def rows(*cells) -> pd.DataFrame:
    """A table of r: section, model, gene, value, and where wanted the seed and the error."""
    made = []
    for section, model, gene, value, *more in cells:
        seed, error = [*more, 0, ""][:2] if len(more) != 1 else (more[0], "")
        made.append(("d", "section", section, "shares", section, model, seed, gene, "pearson", value, error))
    return pd.DataFrame(made, columns=list(COLUMNS))


def test_models_come_best_first_with_their_kind():
    found = scores(invented.table())
    assert [score.model for score in found] == ["best<i>", "hest_fm", invented.ORACLE, "color", "mean"]
    assert [score.kind for score in found] == ["model", "model", "oracle", "baseline", "baseline"]
    assert best_of(found, "baseline").model == "color"


def test_rows_of_the_ceiling_of_folds_and_without_a_gene_are_no_scores():
    with_truth, without = scores(invented.table()), scores(invented.table(truth=False))
    assert with_truth == without
    assert sections_of(invented.table()) == list(invented.SECTIONS)
    assert "pearson_pooled" not in metrics_of(invented.table())
    assert "svg_overlap" not in metrics_of(invented.table())
    assert "ceiling" not in metrics_of(invented.table())


def test_an_r_that_is_not_defined_counts_as_0_and_its_gene_is_named():
    (score,) = scores(rows(("S", "m", "A", 0.6), ("S", "m", "B", np.nan), ("T", "m", "A", 0.2), ("T", "m", "B", 0.2)))
    assert score.by_section == pytest.approx({"S": 0.3, "T": 0.2})
    assert score.mean == pytest.approx(0.25)
    assert score.undefined == ("B",)


def test_seeds_are_averaged_within_a_section():
    (score,) = scores(rows(("S", "m", "A", 0.2, 0), ("S", "m", "A", 0.6, 1), ("T", "m", "A", 0.0, 0)))
    assert score.by_section == pytest.approx({"S": 0.4, "T": 0.0})


def test_a_model_that_failed_somewhere_has_no_mean_and_comes_last():
    table = rows(
        *(("S", "good", "A", 0.1), ("T", "good", "A", 0.1)),
        *(("S", "bad", "A", 0.9), ("T", "bad", "A", np.nan, 0, "no spots")),
    )
    good, bad = scores(table)
    assert (good.model, bad.model) == ("good", "bad")
    assert np.isnan(bad.mean)
    assert bad.failed == {"T": "no spots"}
    assert bad.undefined == ()
    assert best_of([bad], "model") is None


def test_wins_are_counted_by_section():
    one, other = scores(rows(("S", "x", "A", 0.9), ("T", "x", "A", 0.1), ("S", "y", "A", 0.5), ("T", "y", "A", 0.2)))
    assert (one.ahead_of(other), other.ahead_of(one)) == (1, 1)


def test_a_gene_that_a_fold_lacks_is_not_counted_there():
    found = by_gene(
        rows(("S", "m", "A", 0.4), ("T", "m", "A", 0.2), ("S", "m", "B", 0.5), ("T", "m", "C", np.nan)), ["m"]
    )
    assert found["m"]["genes"] == ["B", "A", "C"]
    assert found["m"]["metrics"]["pearson"] == [0.5, 0.3, None]
    assert found["m"]["by_section"] == {"S": [0.5, 0.4, None], "T": [None, 0.2, None]}


def test_a_gene_defined_on_some_sections_counts_as_0_on_the_others():
    found = by_gene(rows(("S", "m", "A", 0.4), ("T", "m", "A", np.nan)), ["m"])
    assert found["m"]["metrics"]["pearson"] == [0.2]


def test_a_failed_section_is_not_counted_in_the_genes():
    found = by_gene(rows(("S", "m", "A", 0.4), ("T", "m", "A", np.nan, 0, "no spots")), ["m"])
    assert found["m"]["metrics"]["pearson"] == [0.4]
    assert list(found["m"]["by_section"]) == ["S"]


def test_means_are_those_of_pandas():
    table = invented.table()
    own = table[(table["model"] == "hest_fm") & (table["metric"] == "variance_ratio")]["value"]
    assert means(table)["variance_ratio"]["hest_fm"] == pytest.approx(own.mean())


def test_means_are_those_of_the_summary():
    table = invented.table(truth=False)
    of_summary = summary(table).groupby(["metric", "model"])["value"].mean()
    for metric, by_model in means(table).items():
        for model, value in by_model.items():
            assert value == pytest.approx(of_summary[metric, model])


def test_a_section_of_several_folds_goes_by_their_names():
    table = pd.concat([invented.table(["S2"]).assign(fold=fold) for fold in ("S2-area1", "S2-area2")])
    found = check_table(table)
    assert sections_of(found) == ["S2-area1", "S2-area2"]
    assert list(found["of_section"].unique()) == ["S2", ""]
    assert sections_of(check_table(invented.table())) == list(invented.SECTIONS)


def test_the_curve_holds_observed_coverage_by_level():
    curves = coverage_curve(invented.table(), ["hest_fm", "best<i>"])
    assert list(curves) == ["best<i>"]
    found = {point["level"]: point["observed"] for point in curves["best<i>"]}
    assert found == {level / 100: share for level, share in invented.COVERED.items()}
    assert set(curves["best<i>"][0]["by_section"]) == set(invented.SECTIONS)


def test_a_table_of_something_else_is_refused():
    with pytest.raises(ReadError, match="lacks the columns dataset, by, fold, shares"):
        check_table(pd.DataFrame({"task": ["IDC"]}))
    table = invented.table()
    with pytest.raises(ReadError, match="no row of metric pearson"):
        check_table(table[table["metric"] == "spearman"])
