"""Spatial structure of maps: whether a prediction has the pattern of the measured gene, not only its values."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import uniform_filter
from scipy.spatial import KDTree

from histoflow._errors import NotFiniteError, OptionError, ShapeError

Floats = NDArray[np.float64]

SSIM_WINDOW = 7
"""Side in cells of the window in which two maps are compared, scikit-image's default."""
_K1, _K2 = 0.01, 0.03
_HALF_DIAGONAL = 0.71
"""Farthest, in pitches, that a raster cell's spot may lie from the cell's centre."""
_LEAST_MEASURED = 0.5
"""Part of a window that must hold spots."""
_CONSTANT = 1e-6
_MOST_GENES, _PART_OF_PANEL = 10, 5


def svg_overlap(measured_moran: ArrayLike, predicted_moran: ArrayLike, k: int | None = None) -> float:
    """Jaccard overlap of the k genes with most spatial structure, measured and predicted.

    Parameters
    ----------
    measured_moran, predicted_moran
        Moran's I of every gene in the measured and in the predicted maps, each (n_genes,). A NaN, of a gene without
        variation, is never among the first.
    k
        How many genes count; None for 10, or a fifth of the genes where these are fewer than 50.

    Returns
    -------
    In [0, 1]: 0 where no gene is in both lists, or the prediction has no gene that varies; NaN where no measured gene
    varies.

    Raises
    ------
    ShapeError
        If the two are not of one length.
    OptionError
        If `k` is not between 1 and the number of genes.

    Examples
    --------
    >>> svg_overlap([0.9, 0.5, 0.1], [0.4, 0.1, 0.2], k=2)
    0.3333333333333333
    """
    measured, predicted = np.asarray(measured_moran, dtype=float), np.asarray(predicted_moran, dtype=float)
    if measured.shape != predicted.shape or measured.ndim != 1 or not len(measured):
        raise ShapeError(f"both must hold one value per gene, got shapes {measured.shape} and {predicted.shape}")
    wanted = max(1, min(_MOST_GENES, len(measured) // _PART_OF_PANEL)) if k is None else k
    if not 1 <= wanted <= len(measured):
        raise OptionError(f"k must be between 1 and the {len(measured)} genes, got {wanted}")
    first, second = _top(measured, wanted), _top(predicted, wanted)
    return float("nan") if not first else len(first & second) / len(first | second)


def _top(moran: Floats, k: int) -> set[int]:
    """Positions of the k highest values that are defined; ties go to the earlier gene."""
    order = np.argsort(-np.nan_to_num(moran, nan=-np.inf), kind="stable")[:k]
    return {int(gene) for gene in order if not np.isnan(moran[gene])}


def ssim(measured: ArrayLike, predicted: ArrayLike, xy_um: ArrayLike, *, pitch_um: float) -> Floats:
    """Structural similarity of the measured and the predicted map, gene by gene (Wang et al., IEEE TIP 2004, eq. 13).

    Spots are laid on a square raster of one pitch: a cell takes the nearest spot within half its diagonal, or holds
    none. Means, variances and covariance are over the cells with spots of windows of 7 × 7 cells, constants are .01
    and .03 of the measured range, and the result is the mean over windows centred on a spot that hold spots in half
    their cells or more.

    Parameters
    ----------
    measured, predicted
        Expression on one scale, each (n_spots, n_genes).
    xy_um
        Centres, shape (n_spots, 2), x, y in µm, any origin; of one slide.
    pitch_um
        Distance of neighbouring spots in µm.

    Returns
    -------
    Shape (n_genes,), at most 1, which two equal maps have; NaN where the measured gene is constant, and everywhere if
    no window holds enough spots.

    Raises
    ------
    ShapeError
        If shapes do not fit together.
    NotFiniteError
        If anything is NaN or infinite.
    OptionError
        If `pitch_um` is not above 0.

    Examples
    --------
    >>> xy = np.stack(np.meshgrid(range(9), range(9)), axis=-1).reshape(-1, 2) * 100.0
    >>> float(ssim(xy[:, :1], xy[:, :1], xy, pitch_um=100.0)[0])
    1.0
    """
    truth, guess, places = (np.asarray(values, dtype=float) for values in (measured, predicted, xy_um))
    _check(truth, guess, places, pitch_um)
    spot, there = _raster(places, pitch_um)
    windows = _windows(there)
    if not windows.any():
        return np.full(truth.shape[1], np.nan)
    # One gene at a time: the raster of a dense array is not held for every gene at once.
    genes = [_similarity(x[spot], y[spot], there)[windows].mean() for x, y in zip(truth.T, guess.T, strict=True)]
    return np.array(genes)


def _check(truth: Floats, guess: Floats, places: Floats, pitch_um: float) -> None:
    if truth.ndim != 2 or truth.shape != guess.shape or places.shape != (len(truth), 2) or not len(truth):
        raise ShapeError(
            "measured and predicted must be (n_spots, n_genes) and xy_um (n_spots, 2) with at least one spot, got "
            f"{truth.shape}, {guess.shape} and {places.shape}"
        )
    if not all(np.isfinite(values).all() for values in (truth, guess, places)):
        raise NotFiniteError("measured, predicted or xy_um holds NaN or infinity: leave those spots out")
    if not 0 < pitch_um < np.inf:
        raise OptionError(f"pitch_um must be a distance in µm above 0, got {pitch_um}")


def _raster(xy: Floats, pitch_um: float) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Spot of every cell (height, width), and whether the cell has one."""
    corner = xy.min(axis=0)
    width, height = np.round((xy.max(axis=0) - corner) / pitch_um).astype(int) + 1
    cells = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1) * pitch_um + corner
    distance, nearest = KDTree(xy).query(cells)
    return nearest, distance <= _HALF_DIAGONAL * pitch_um


def _windows(there: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Cells (height, width) on which a window is centred that lies in the raster and holds enough spots."""
    inside = np.zeros_like(there)
    margin = SSIM_WINDOW // 2
    inside[margin : there.shape[0] - margin, margin : there.shape[1] - margin] = True
    part = uniform_filter(there.astype(float), SSIM_WINDOW, mode="constant")
    windows: NDArray[np.bool_] = inside & there & (part >= _LEAST_MEASURED)
    return windows


def _similarity(x: Floats, y: Floats, there: NDArray[np.bool_]) -> Floats:
    """Similarity in the window around every cell, (height, width), of two maps of that shape; x is the measured one."""
    extent = np.ptp(x[there])
    c1, c2 = ((k * extent) ** 2 if extent > _CONSTANT else np.nan for k in (_K1, _K2))
    share = np.maximum(uniform_filter(there.astype(float), SSIM_WINDOW, mode="constant"), 1 / SSIM_WINDOW**2)
    n_cells = share * SSIM_WINDOW**2
    unbiased = n_cells / np.maximum(n_cells - 1, 1)

    def local(values: Floats) -> Floats:
        averaged: Floats = uniform_filter(values * there, SSIM_WINDOW, mode="constant") / share
        return averaged

    # Centred first, so that variances are not differences of large numbers.
    middle = x[there].mean()
    x, y = x - middle, y - middle
    mean_x, mean_y = local(x), local(y)
    variances = unbiased * (local(x * x) - mean_x**2 + local(y * y) - mean_y**2)
    covariance = unbiased * (local(x * y) - mean_x * mean_y)
    mean_x, mean_y = mean_x + middle, mean_y + middle
    light = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    similarity: Floats = light * (2 * covariance + c2) / (variances + c2)
    return similarity
