"""Charts of how well genes are predicted: scatters per gene, r per gene, scores per model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from histoflow._errors import OptionError
from histoflow.pl.figures import (
    COLOURS,
    GREY,
    LOG1P_LIBRARY,
    Floats,
    check_genes,
    new_figure,
    number,
    open_frame,
    r_note,
    shaped,
)

_MAX_PANELS, _MAX_GENE_LABELS = 16, 80
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def gene_scatter(
    measured: ArrayLike,
    predicted: ArrayLike,
    *,
    genes: Sequence[str],
    r: Sequence[float] | None = None,
    scale_label: str = LOG1P_LIBRARY,
) -> Figure:
    """Predicted against measured expression, one panel per gene, with the line on which both are equal.

    Parameters
    ----------
    measured, predicted
        Expression, shape (n_spots, n_genes), both on the scale that `scale_label` names.
    genes
        Name of each column, at most 16.
    r
        Pearson r of each gene, for the titles; NaN is written as "not defined".
    scale_label
        Expression scale, for the axes.

    Raises
    ------
    ShapeError
        If shapes do not fit together.
    OptionError
        If there are more than 16 genes, or none.

    Examples
    --------
    >>> figure = gene_scatter([[0.0], [2.0]], [[0.5], [1.5]], genes=["EPCAM"], r=[1.0])
    """
    check_genes(genes, _MAX_PANELS)
    measured = shaped("measured", measured, (None, len(genes)))
    predicted = shaped("predicted", predicted, (len(measured), len(genes)))
    n_columns = min(4, len(genes))
    n_rows = -(-len(genes) // n_columns)
    figure = new_figure(2.6 * n_columns + 0.6, 2.7 * n_rows + 0.5)
    for index, gene in enumerate(genes):
        axes = figure.add_subplot(n_rows, n_columns, index + 1)
        _scatter(axes, measured[:, index], predicted[:, index])
        axes.set_title(f"{gene}{r_note(r, index)}", fontsize=10)
    figure.supxlabel(f"measured, {scale_label}", fontsize=10)
    figure.supylabel(f"predicted, {scale_label}", fontsize=10)
    return figure


def gene_bars(r_by_gene: pd.Series | Mapping[str, pd.Series], *, title: str = "") -> Figure:
    """Pearson r of every gene, best first: bars for one model, points for several.

    Parameters
    ----------
    r_by_gene
        Pearson r indexed by gene, or one such series per model name, all of the same genes. A NaN is drawn hollow at 0,
        as it counts in the mean of the legend.
    title
        Heading.

    Raises
    ------
    OptionError
        If there are more than 7 models or none, or their genes differ.

    Examples
    --------
    >>> figure = gene_bars(pd.Series({"EPCAM": 0.7, "CD3E": float("nan")}), title="held out: C2")
    """
    table = _models_beside(r_by_gene)
    table = table.loc[table.fillna(0.0).mean(axis=1).sort_values(ascending=False, kind="stable").index]
    figure = new_figure(min(14.0, max(5.0, 0.19 * len(table) + 1.6)), 4.2)
    axes, place = figure.add_subplot(), np.arange(len(table))
    if len(table.columns) == 1:
        (r,) = (table[model] for model in table)
        axes.bar(place, r.fillna(0.0), color=COLOURS[0], width=0.75, label=_mean_note(r))
        _mark_undefined(axes, place, r, COLOURS[0])
    else:
        _model_points(axes, place, table)
    axes.axhline(0, color=GREY, linewidth=0.8)
    _label_genes(axes, table.index)
    axes.set_ylabel("Pearson r")
    axes.set_title(title, fontsize=11)
    figure.legend(fontsize=9, frameon=False, ncols=4, loc="outside lower center")
    open_frame(axes)
    return figure


def model_bars(table: pd.DataFrame, *, title: str = "") -> Figure:
    """Score of every model, best first: a bar for the mean over folds, a point for each fold.

    Parameters
    ----------
    table
        Columns ``model, fold, value``, one row per model and fold (and seed): the mean over genes of Pearson r.
        A NaN is a score that a model cannot have; a model with no other is listed without a bar.
    title
        Heading; the place to say what the folds share with their training data.

    Raises
    ------
    OptionError
        If `table` lacks a column or has no rows.

    Examples
    --------
    >>> rows = [("mean", "C2", 0.0), ("stflow", "C2", 0.48), ("stflow", "C3", 0.5)]
    >>> figure = model_bars(pd.DataFrame(rows, columns=["model", "fold", "value"]))
    """
    missing = [name for name in ("model", "fold", "value") if name not in table]
    if missing:
        raise OptionError(f"table lacks the columns {missing}: give model, fold and value")
    if not len(table):
        raise OptionError("table has no rows: give one per model and fold")
    means = table.groupby("model")["value"].mean().sort_values(kind="stable", na_position="first")
    figure = new_figure(7.0, 0.42 * len(means) + 1.3)
    axes = figure.add_subplot()
    axes.barh(np.arange(len(means)), means.fillna(0.0), color=COLOURS[4], height=0.7)
    folds = {fold: place for place, fold in enumerate(pd.unique(table["fold"]))}
    lanes = np.linspace(-0.24, 0.24, len(folds)) if len(folds) > 1 else [0.0]
    for row, (model, mean) in enumerate(means.items()):
        of_model = table[table["model"] == model]
        heights = [row - lanes[folds[fold]] for fold in of_model["fold"]]
        axes.scatter(of_model["value"], heights, s=14, color=COLOURS[0], zorder=3)
        end = max(0.0, np.nanmax([0.0, *of_model["value"]]))
        axes.annotate(
            "n/a" if np.isnan(mean) else number(mean), (end, row), (6, 0), textcoords="offset points", va="center"
        )
    axes.set_yticks(np.arange(len(means)), [str(model) for model in means.index])
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_xlabel("mean Pearson r over genes (bar: mean of the folds; points: folds)")
    axes.set_title(title, fontsize=11)
    axes.margins(x=0.1)
    open_frame(axes)
    return figure


def _scatter(axes: Axes, measured: Floats, predicted: Floats) -> None:
    """One point per spot on two equal axes."""
    low, high = min(measured.min(), predicted.min()), max(measured.max(), predicted.max())
    margin = 0.05 * (high - low) or 0.5
    limits = (low - margin, high + margin)
    axes.axline((low, low), slope=1, color=GREY, linewidth=0.9, linestyle="--")
    axes.scatter(measured, predicted, s=9, alpha=0.45, linewidths=0, color=COLOURS[0])
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    axes.locator_params(nbins=5)
    open_frame(axes)


def _models_beside(r_by_gene: pd.Series | Mapping[str, pd.Series]) -> pd.DataFrame:
    """One column of r per model, shape (n_genes, n_models)."""
    series = {"": r_by_gene} if isinstance(r_by_gene, pd.Series) else dict(r_by_gene)
    if not 1 <= len(series) <= len(COLOURS):
        raise OptionError(f"r_by_gene must hold 1 to {len(COLOURS)} models, got {len(series)}: choose some")
    first = next(iter(series.values()))
    for model, values in series.items():
        if not values.index.is_unique or set(values.index) != set(first.index):
            raise OptionError(f"r_by_gene: the genes of {model!r} repeat or differ from the others': give equal lists")
    return pd.DataFrame(series)


def _model_points(axes: Axes, place: NDArray[np.intp], table: pd.DataFrame) -> None:
    """A mark per model and gene, and a thin line over the range of the models."""
    drawn = table.fillna(0.0)
    axes.vlines(place, drawn.min(axis=1), drawn.max(axis=1), color="0.85", linewidth=1.5, zorder=1)
    for model, colour, marker in zip(table, COLOURS, _MARKERS, strict=False):
        label = f"{model} ({_mean_note(table[model])})"
        axes.scatter(place, drawn[model], s=26, color=colour, marker=marker, label=label)
        _mark_undefined(axes, place, table[model], colour, marker)


def _mark_undefined(axes: Axes, place: NDArray[np.intp], r: pd.Series, colour: str, marker: str = "o") -> None:
    """A hollow mark at 0 for every gene whose r is not defined."""
    undefined = place[r.isna().to_numpy()]
    axes.scatter(
        undefined, np.zeros(len(undefined)), s=26, marker=marker, facecolors="white", edgecolors=colour, zorder=3
    )


def _mean_note(r: pd.Series) -> str:
    undefined = int(r.isna().sum())
    return f"mean {number(r.fillna(0.0).mean())}" + (f", {undefined} not defined, as 0" if undefined else "")


def _label_genes(axes: Axes, genes: pd.Index) -> None:
    axes.set_xlim(-0.8, len(genes) - 0.2)
    if len(genes) <= _MAX_GENE_LABELS:
        axes.set_xticks(np.arange(len(genes)), [str(gene) for gene in genes], rotation=90, fontsize=8, style="italic")
    else:
        axes.set_xlabel(f"{len(genes)} genes, best first")
