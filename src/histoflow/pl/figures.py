"""What all figures share: the canvas, the colours, the checks of their input, and writing them to disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from histoflow._errors import NotFiniteError, OptionError, ShapeError
from histoflow._files import atomic_path

LOG1P_LIBRARY = "log1p (library-normalised)"
"""Label of the default expression scale."""

Floats = NDArray[np.float64]

# Okabe and Ito's colours for colour-blind readers, without the yellow that vanishes on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
GREY = "0.4"
_DPI = 150


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG at 150 dpi, whole or not at all, and return where it is.

    Raises
    ------
    OptionError
        If `path` does not end in ``.png``.
    OutputError
        If the folder cannot be written to.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise OptionError(f"path must end in .png, got {path}")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DPI, facecolor="white")
    return path


def new_figure(width: float, height: float) -> Figure:
    """A figure, size in inches, that draws itself without a window system."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def open_frame(axes: Axes) -> None:
    """Leave only the left and the lower edge of a chart."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)


def r_note(r: Sequence[float] | None, index: int) -> str:
    """How a title goes on when the Pearson r of its gene is known, or known to be undefined."""
    if r is None:
        return ""
    return ", r not defined" if np.isnan(r[index]) else f", r = {number(r[index])}"


def number(value: float) -> str:
    """Two decimals, with a minus sign rather than a hyphen."""
    return f"{value:.2f}".replace("-", "−")


def check_genes(genes: Sequence[str], most: int) -> None:
    """Raise `OptionError` unless there are 1 to `most` genes."""
    if not 1 <= len(genes) <= most:
        raise OptionError(f"genes must name 1 to {most} columns, got {len(genes)}: choose some, and their columns")


def shaped(name: str, values: ArrayLike, shape: tuple[int | None, int]) -> Floats:
    """`values` as finite floats of shape (n_spots, n_genes); an `n_spots` of None is any number from 1."""
    array = np.asarray(values, dtype=float)
    n_spots = len(array) if shape[0] is None and array.ndim else shape[0]
    if array.shape != (n_spots, shape[1]) or not array.size:
        raise ShapeError(
            f"{name} must have shape (n_spots, n_genes) = ({n_spots or 'any'}, {shape[1]}), got {array.shape}"
        )
    if not np.isfinite(array).all():
        raise NotFiniteError(f"{name} holds NaN or infinite values: leave those spots or genes out")
    return array
