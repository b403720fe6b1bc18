"""Maps of expression on the slide, with spots at their true places and sizes in µm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from histoflow._errors import ShapeError
from histoflow.pl.figures import LOG1P_LIBRARY, Floats, check_genes, new_figure, r_note, shaped

_MAX_ROWS, _MAX_PANELS = 6, 16
_EXPRESSION, _WIDTH = "viridis", "magma"  # both perceptually uniform, and not mistaken for one another
_OUTLINE = "#E69F00"  # stands out from eosin, haematoxylin and glass alike
_PANEL_INCH = 2.5
_COVER, _COVER_ON_IMAGE = 0.95, 0.7
"""Diameter of a drawn spot in units of the spot spacing; smaller where tissue should show between the spots."""
_LONE_SPOT_UM = 100.0


class Thumbnail(NamedTuple):
    """A small image of a slide and the place it shows.

    Attributes
    ----------
    pixels
        RGB, shape (height, width, 3), uint8.
    extent_um
        Edges ``(left, right, top, bottom)`` of the image in µm from the slide's upper left corner, y downwards.
    """

    pixels: NDArray[np.uint8]
    extent_um: tuple[float, float, float, float]


def measured_beside_predicted(
    measured: ArrayLike,
    predicted: ArrayLike,
    *,
    xy_um: ArrayLike,
    genes: Sequence[str],
    thumbnail: Thumbnail | None = None,
    width: ArrayLike | None = None,
    r: Sequence[float] | None = None,
    scale_label: str = LOG1P_LIBRARY,
) -> Figure:
    """Map measured and predicted expression side by side, one row per gene, on one colour scale per gene.

    Parameters
    ----------
    measured, predicted
        Expression, shape (n_spots, n_genes), both on the scale that `scale_label` names.
    xy_um
        Spot centres, shape (n_spots, 2), x y in µm from the slide's upper left corner.
    genes
        Name of each column, at most 6.
    thumbnail
        Image drawn pale under the spots.
    width
        Width of the intervals for the measured values, shape (n_spots, n_genes), on the same scale, for a third column.
    r
        Pearson r of each gene, for the titles; NaN is written as "not defined".
    scale_label
        Expression scale, for the colour bars.

    Raises
    ------
    ShapeError
        If shapes do not fit together.
    OptionError
        If there are more than 6 genes, or none.

    Examples
    --------
    >>> xy_um = [[100 * x, 100 * y] for x in range(5) for y in range(4)]
    >>> counts = np.arange(20.0).reshape(20, 1)
    >>> figure = measured_beside_predicted(counts, counts / 2, xy_um=xy_um, genes=["EPCAM"], r=[1.0])
    """
    check_genes(genes, _MAX_ROWS)
    spots = _Spots.of(xy_um, thumbnail)
    shape = (len(spots.xy_um), len(genes))
    measured, predicted = shaped("measured", measured, shape), shaped("predicted", predicted, shape)
    widths = None if width is None else shaped("width", width, shape)
    n_bars = 1 if widths is None else 2
    figure, grid = _map_grid(spots, len(genes), n_bars + 1, n_bars=n_bars)
    for row, gene in enumerate(genes):
        pair = np.stack([measured[:, row], predicted[:, row]])
        titles = f"{gene}, measured", f"{gene}, predicted{r_note(r, row)}"
        _draw_maps(grid[row, :2], spots, pair, titles, label=scale_label, colours=_EXPRESSION)
        if widths is not None:
            values = widths[None, :, row]
            _draw_maps(grid[row, 2:], spots, values, [f"{gene}, interval"], label="interval width", colours=_WIDTH)
    _add_scale_bar(grid[-1, 0], spots)
    return figure


def expression_map(
    values: ArrayLike,
    xy_um: ArrayLike,
    *,
    genes: Sequence[str],
    thumbnail: Thumbnail | None = None,
    scale_label: str = LOG1P_LIBRARY,
) -> Figure:
    """Map the expression of some genes, each on a colour scale of its own.

    Parameters
    ----------
    values
        Expression at spots or tiles, shape (n_spots, n_genes), on the scale that `scale_label` names.
    xy_um
        Their centres, shape (n_spots, 2), x y in µm from the slide's upper left corner.
    genes
        Name of each column, at most 16.
    thumbnail
        Image drawn pale under the spots.
    scale_label
        Expression scale, for the colour bars.

    Raises
    ------
    ShapeError
        If shapes do not fit together.
    OptionError
        If there are more than 16 genes, or none.

    Examples
    --------
    >>> figure = expression_map([[0.0], [1.5]], [[0, 0], [100, 0]], genes=["EPCAM"])
    """
    check_genes(genes, _MAX_PANELS)
    spots = _Spots.of(xy_um, thumbnail)
    table = shaped("values", values, (len(spots.xy_um), len(genes)))
    n_columns = int(np.ceil(np.sqrt(len(genes))))
    figure, grid = _map_grid(spots, -(-len(genes) // n_columns), n_columns, n_bars=n_columns)
    for index, axes in enumerate(grid.flat):
        if index < len(genes):
            title, values_of_gene = [genes[index]], table[None, :, index]
            _draw_maps(np.array([axes]), spots, values_of_gene, title, label=scale_label, colours=_EXPRESSION)
        else:
            axes.set_axis_off()
    _add_scale_bar(grid[-1, 0], spots)
    return figure


def spots_on_slide(thumbnail: Thumbnail, xy_um: ArrayLike, *, title: str = "") -> Figure:
    """Draw the outlines of all spots on the slide, to see whether they lie on the tissue.

    Parameters
    ----------
    thumbnail
        Image of the slide; spots outside it are shown too.
    xy_um
        Spot centres, shape (n_spots, 2), x y in µm from the slide's upper left corner.
    title
        Heading.

    Raises
    ------
    ShapeError
        If `xy_um` is not (n_spots, 2).

    Examples
    --------
    >>> white = np.full((40, 60, 3), 255, dtype=np.uint8)
    >>> figure = spots_on_slide(Thumbnail(white, (0, 600, 0, 400)), [[100, 100], [300, 200]])
    """
    spots = _Spots.of(xy_um, thumbnail)
    left, right, top, bottom = np.array([spots.window_um, thumbnail.extent_um]).T
    width, height = right.max() - left.min(), bottom.max() - top.min()
    figure = new_figure(6.5 * min(1.0, width / height) + 0.8, 6.5 * min(1.0, height / width) + 0.8)
    axes = figure.add_subplot()
    _draw_thumbnail(axes, thumbnail, alpha=1.0)
    axes.add_collection(spots.circles(axes, facecolors="none", edgecolors=_OUTLINE, linewidths=1.2))
    axes.set(xlim=(left.min(), right.max()), ylim=(bottom.max(), top.min()), aspect="equal", xlabel="x (µm)")
    axes.set(ylabel="y (µm)")
    axes.set_title(title, fontsize=11)
    return figure


@dataclass(frozen=True)
class _Spots:
    """Spot centres (n_spots, 2) in µm, their spacing in µm, and what lies under them."""

    xy_um: Floats
    spacing_um: float
    thumbnail: Thumbnail | None

    @classmethod
    def of(cls, xy_um: ArrayLike, thumbnail: Thumbnail | None) -> _Spots:
        xy = np.asarray(xy_um, dtype=float)
        if xy.ndim != 2 or xy.shape[1] != 2 or not len(xy):
            raise ShapeError(f"xy_um must have shape (n_spots, 2) with at least one spot, got {xy.shape}")
        return cls(xy, _spacing(xy), thumbnail)

    @property
    def window_um(self) -> tuple[float, float, float, float]:
        """Edges (left, right, top, bottom) of the spots with a margin of one spacing."""
        (left, top), (right, bottom) = self.xy_um.min(axis=0), self.xy_um.max(axis=0)
        margin = self.spacing_um
        return left - margin, right + margin, top - margin, bottom + margin

    def circles(self, axes: Axes, **style: Any) -> EllipseCollection:
        """Circles whose size is in µm, so that they keep to the spacing at any size of the figure."""
        cover = _COVER if self.thumbnail is None else _COVER_ON_IMAGE
        size = np.full(len(self.xy_um), cover * self.spacing_um)
        place = {"offsets": self.xy_um, "offset_transform": axes.transData}
        return EllipseCollection(size, size, np.zeros_like(size), units="xy", **place, **style)


def _spacing(xy: Floats) -> float:
    """Median distance in µm to the nearest other place, from about a hundred spots."""
    some = xy[:: max(1, len(xy) // 100)]
    distance = np.hypot(*(some[:, None] - xy).T)
    nearest = np.where(distance > 0, distance, np.inf).min(axis=0)
    return float(np.median(nearest)) if np.isfinite(nearest).all() else _LONE_SPOT_UM


def _map_grid(spots: _Spots, n_rows: int, n_columns: int, *, n_bars: int) -> tuple[Figure, NDArray[Any]]:
    """A figure and its axes, (n_rows, n_columns), in the proportions of the section."""
    left, right, top, bottom = spots.window_um
    width = _PANEL_INCH * float(np.clip((right - left) / (bottom - top), 0.6, 2.5))
    figure = new_figure(width * n_columns + 0.95 * n_bars, (_PANEL_INCH + 0.35) * n_rows + 0.35)
    return figure, figure.subplots(n_rows, n_columns, squeeze=False)


def _draw_maps(
    row: NDArray[Any], spots: _Spots, values: Floats, titles: Sequence[str], *, label: str, colours: str
) -> None:
    """Maps of `values`, (n_maps, n_spots), on one colour scale with one colour bar."""
    low, high = _colour_limits(values)
    for axes, value, title in zip(row, values, titles, strict=True):
        circles = spots.circles(axes, array=value, cmap=colours, clim=(low, high), linewidths=0)
        axes.add_collection(circles)
        if spots.thumbnail is not None:
            _draw_thumbnail(axes, spots.thumbnail, alpha=0.6)
        left, right, top, bottom = spots.window_um
        axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal", xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.set_title(title, fontsize=10)
    beyond = ("neither", "min", "max", "both")[int(values.min() < low) + 2 * int(values.max() > high)]
    bar = row[0].figure.colorbar(circles, ax=list(row), label=label, extend=beyond, shrink=0.9, aspect=18)
    bar.outline.set_visible(False)


def _colour_limits(values: Floats) -> tuple[float, float]:
    """First and 99th percentile, so that one bright spot does not darken the map."""
    low, high = np.percentile(values, (1, 99))
    return float(low), float(high if high > low else low + 1)


def _draw_thumbnail(axes: Axes, thumbnail: Thumbnail, *, alpha: float) -> None:
    left, right, top, bottom = thumbnail.extent_um
    axes.imshow(thumbnail.pixels, extent=(left, right, bottom, top), alpha=alpha, zorder=0)


def _add_scale_bar(axes: Axes, spots: _Spots) -> None:
    """A bar of a round length in µm, about a quarter of the map, below its lower left corner."""
    left, right, top, bottom = spots.window_um
    quarter = (right - left) / 4
    decade = 10.0 ** np.floor(np.log10(quarter))
    length = decade * max(step for step in (1, 2, 5) if step * decade <= quarter)
    below = bottom + 0.03 * (bottom - top)
    axes.plot([left, left + length], [below, below], color="black", linewidth=2.5, clip_on=False)
    axes.annotate(
        f"{length:g} µm",
        (left + length / 2, below),
        (0, -4),
        textcoords="offset points",
        ha="center",
        va="top",
        fontsize=9,
        annotation_clip=False,
    )
