"""Residuals of the cross-fit: how far they spread where much or little is predicted, and their conformal quantiles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from histoflow.models.spots import Floats

Doubles = NDArray[np.float64]

LEVELS = np.concatenate([[0.005, 0.01, 0.025], np.linspace(0.05, 0.95, 19), [0.975, 0.99, 0.995]])
"""Levels of the quantiles that are kept."""
HIGHEST_LEVEL = 0.99
"""Level of the widest interval between two of them."""
_LEAST_SHARE = 0.25
"""A spread is at least so much of the gene's mean spread."""
_LEAST = 1e-3


@dataclass(frozen=True)
class ResidualScale:
    """Mean absolute residual of every gene, as a line over the predicted expression.

    Attributes
    ----------
    centre
        Mean predicted expression in the cross-fit, log1p, shape (n_genes,).
    level
        Mean absolute residual, log1p, shape (n_genes,).
    slope
        How much it grows with the prediction, shape (n_genes,); 0 where the cross-fit does not show that it does.
    """

    centre: Doubles
    level: Doubles
    slope: Doubles

    @classmethod
    def fit(cls, predicted: Floats, residuals: Doubles) -> ResidualScale:
        """Fit lines by least squares, slopes shrunk by what they are worth (James & Stein).

        Parameters
        ----------
        predicted
            Out-of-fold predictions, log1p, shape (n_spots, n_genes).
        residuals
            Measured less predicted, log1p, shape (n_spots, n_genes).
        """
        size = np.abs(residuals)
        centre, level = predicted.mean(axis=0, dtype=np.float64), size.mean(axis=0)
        departure = predicted - centre
        square = np.square(departure).sum(axis=0)
        slope = (departure * size).sum(axis=0) / np.maximum(square, _LEAST)
        left = np.square(size - level - departure * slope).sum(axis=0) / max(len(size) - 2, 1)
        worth = np.square(slope) * square / np.maximum(left, np.finfo(float).tiny)
        return cls(centre, np.maximum(level, _LEAST), slope * np.maximum(0.0, 1 - 1 / np.maximum(worth, 1.0)))

    def __call__(self, predicted: Floats) -> Doubles:
        """Spread at predictions (n_spots, n_genes), log1p: the same shape, above 0."""
        line = self.level + self.slope * (np.asarray(predicted, dtype=np.float64) - self.centre)
        scale: Doubles = np.maximum(line, _LEAST_SHARE * self.level)
        return scale


def conformal_quantiles(scores: Doubles) -> Floats:
    """Quantiles of residuals in units of their spread, a little outside of the empirical ones.

    With n scores, the one of rank ``level * (n + 1)``, rounded away from the middle, so that an interval holds its
    level for a spot that is exchangeable with them (Lei et al., JASA 2018, section 2).

    Parameters
    ----------
    scores
        Shape (n_spots, n_genes).

    Returns
    -------
    Shape (n_genes, n_levels), for `LEVELS`, float32; of a level that so few scores cannot hold, the outermost score.
    """
    ordered = np.sort(scores, axis=0)
    places = np.round(LEVELS * (len(scores) + 1), 6)  # 0.45 * 20 is a little more than 9 in binary
    rank = np.where(LEVELS < 0.5, np.floor(places), np.ceil(places)).astype(int) - 1
    quantiles: Floats = ordered[np.clip(rank, 0, len(scores) - 1)].T.astype(np.float32)
    return quantiles
