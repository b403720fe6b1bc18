"""Charts: the numbers drawn are the numbers given, and what is not defined is visible."""

import numpy as np
import pandas as pd
import pytest

from histoflow import pl
from histoflow._errors import OptionError, ShapeError

R = pd.Series({"A": 0.1, "B": 0.7, "C": np.nan, "D": -0.2})


def legend(figure):
    (found,) = figure.legends
    return [text.get_text() for text in found.get_texts()]


def test_scatter_has_equal_axes_the_identity_line_and_r():
    measured, predicted = np.array([[0.0, 1], [4, 2]]), np.array([[1.0, 1], [2, 1]])
    figure = pl.gene_scatter(measured, predicted, genes=["A", "B"], r=[1.0, np.nan], scale_label="log1p")
    assert [axes.get_title() for axes in figure.axes] == ["A, r = 1.00", "B, r not defined"]
    for index, axes in enumerate(figure.axes):
        (points,) = axes.collections
        np.testing.assert_array_equal(points.get_offsets(), np.stack([measured[:, index], predicted[:, index]], axis=1))
        assert axes.get_xlim() == axes.get_ylim()
        (line,) = axes.lines
        assert line.get_slope() == 1
        assert len(set(line.get_xy1())) == 1
    assert (figure.get_supxlabel(), figure.get_supylabel()) == ("measured, log1p", "predicted, log1p")


def test_scatter_of_one_value_is_drawn():
    figure = pl.gene_scatter([[2.0]], [[2.0]], genes=["A"])
    assert figure.axes[0].get_xlim() == (1.5, 2.5)


def test_scatter_refuses_other_shapes():
    with pytest.raises(ShapeError, match=r"predicted must have shape .* = \(3, 1\), got \(2, 1\)"):
        pl.gene_scatter(np.zeros((3, 1)), np.zeros((2, 1)), genes=["A"])


def test_bars_are_sorted_and_an_undefined_gene_is_hollow_at_zero():
    figure = pl.gene_bars(R, title="C2 held out")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["B", "A", "C", "D"]
    assert [bar.get_height() for bar in axes.patches] == [0.7, 0.1, 0.0, -0.2]
    (hollow,) = axes.collections
    np.testing.assert_array_equal(hollow.get_offsets(), [[2, 0]])
    assert axes.get_title() == "C2 held out"
    assert axes.get_ylabel() == "Pearson r"
    assert legend(figure) == ["mean 0.15, 1 not defined, as 0"]


def test_models_are_compared_gene_by_gene_whatever_the_order_of_their_genes():
    other = pd.Series({"D": 0.3, "C": 0.3, "B": 0.3, "A": 0.3})
    figure = pl.gene_bars({"stflow": other, "color": R})
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["B", "A", "C", "D"]
    _, first, no_hollow, second, hollow = axes.collections
    np.testing.assert_allclose(first.get_offsets()[:, 1], 0.3)
    np.testing.assert_allclose(second.get_offsets()[:, 1], [0.7, 0.1, 0, -0.2])
    assert (len(no_hollow.get_offsets()), len(hollow.get_offsets())) == (0, 1)
    assert legend(figure) == ["stflow (mean 0.30)", "color (mean 0.15, 1 not defined, as 0)"]


def test_hundreds_of_genes_are_counted_rather_than_named():
    figure = pl.gene_bars(pd.Series(np.linspace(0, 1, 200), index=[f"g{i}" for i in range(200)]))
    assert figure.axes[0].get_xlabel() == "200 genes, best first"
    assert figure.get_size_inches()[0] <= 14


def test_gene_lists_that_differ_and_too_many_models_are_told():
    with pytest.raises(OptionError, match="the genes of 'color' repeat or differ from the others': give equal lists"):
        pl.gene_bars({"stflow": R, "color": R.rename({"A": "Z"})})
    with pytest.raises(OptionError, match="1 to 7 models, got 8"):
        pl.gene_bars({str(i): R for i in range(8)})


ROWS = [
    ("color", "C2", 0.2),
    ("color", "C3", 0.4),
    ("stflow", "C2", 0.45),
    ("stflow", "C3", 0.55),
    ("location", "C2", np.nan),
    ("worse", "C2", -0.1),
]
SCORES = pd.DataFrame(ROWS, columns=["model", "fold", "value"])


def test_models_are_ordered_by_their_mean_over_folds_with_the_best_on_top():
    (axes,) = pl.model_bars(SCORES, title="serial").figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["location", "worse", "color", "stflow"]
    np.testing.assert_allclose([bar.get_width() for bar in axes.patches], [0, -0.1, 0.3, 0.5])
    assert [text.get_text() for text in axes.texts] == ["n/a", "−0.10", "0.30", "0.50"]
    assert axes.get_title() == "serial"


def test_every_fold_is_a_point_in_the_same_lane_of_every_model():
    (axes,) = pl.model_bars(SCORES).figure.axes
    _, _, color, stflow = (points.get_offsets() for points in axes.collections)
    np.testing.assert_allclose(color[:, 0], [0.2, 0.4])
    np.testing.assert_allclose(stflow[:, 0], [0.45, 0.55])
    np.testing.assert_allclose(stflow[:, 1] - color[:, 1], 1)
    assert color[0, 1] > color[1, 1]


def test_a_table_without_its_columns_or_rows_is_told():
    with pytest.raises(OptionError, match=r"table lacks the columns \['value'\]"):
        pl.model_bars(SCORES.drop(columns="value"))
    with pytest.raises(OptionError, match="table has no rows"):
        pl.model_bars(SCORES[:0])
