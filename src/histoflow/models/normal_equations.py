"""Ridge by its normal equations: with few strengths, a factorisation of each is cheaper than the axes of every fold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve

from histoflow.models.inner import Indices, InnerFolds
from histoflow.models.linear import Doubles, LinearHead, blocks
from histoflow.models.ridge_folds import DEFAULT_ALPHA, inverse_squares

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class NormalEquations:
    """Sums over rows that tell every ridge with an intercept on them; rows can be taken out again.

    Attributes
    ----------
    n_rows
        Rows summed over.
    x, y
        Sums of the features (n_features,) and of the targets (n_targets,).
    xx, xy
        Sums of their products, (n_features, n_features) and (n_features, n_targets), float64, not centred.
    """

    n_rows: int
    x: Doubles
    y: Doubles
    xx: Doubles
    xy: Doubles

    @classmethod
    def of(cls, x: Floats, y: Floats) -> Self:
        """Sum over features (n_rows, n_features) and targets (n_rows, n_targets)."""
        xx, xy = np.zeros((x.shape[1],) * 2), np.zeros((x.shape[1], y.shape[1]))
        for rows in blocks(len(x)):
            own = x[rows].astype(np.float64)
            xx += own.T @ own
            xy += own.T @ y[rows]
        return cls(len(x), x.sum(axis=0, dtype=np.float64), y.sum(axis=0, dtype=np.float64), xx, xy)

    def without(self, x: Floats, y: Floats) -> Self:
        """Take out some of the rows."""
        out = type(self).of(x, y)
        left = (self.x - out.x, self.y - out.y, self.xx - out.xx, self.xy - out.xy)
        return replace(self, n_rows=self.n_rows - out.n_rows, **dict(zip(("x", "y", "xx", "xy"), left, strict=True)))

    def heads(self, alphas: Sequence[float] | Doubles) -> Iterator[LinearHead]:
        """Ridges of these strengths, the penalty on the squared length of ``coef``; they predict in float32."""
        mean, intercept = self.x / self.n_rows, self.y / self.n_rows
        within, across = self.xx - np.outer(self.x, mean), self.xy - np.outer(self.x, intercept)
        for alpha in alphas:
            penalised = within.copy()
            penalised[np.diag_indices(len(mean))] += alpha
            coef = solve(penalised, across, assume_a="pos", overwrite_a=True, check_finite=False)
            yield LinearHead(mean, np.ones_like(mean), coef.astype(np.float32), intercept)


def fit_strength(
    x: Floats, y: Floats, inner: InnerFolds, alphas: Sequence[float] | Doubles
) -> tuple[LinearHead, float]:
    """Ridge with an intercept, features as they are scaled, its strength chosen on the inner folds.

    Parameters
    ----------
    x
        Features, shape (n_spots, n_features).
    y
        Targets, shape (n_spots, n_targets).
    inner
        Folds of these rows.
    alphas
        Strengths tried: the one with the best R² on held-out spots, averaged over targets and folds, as by
        `ridge_folds.fit_grouped_ridge`, is taken.

    Returns
    -------
    The head fitted on all rows, and its strength.
    """
    whole, alpha = NormalEquations.of(x, y), DEFAULT_ALPHA
    if inner.folds:
        scores = [_scores(whole, x, y, fold, alphas) for fold in inner.folds]
        alpha = float(alphas[int(np.mean(scores, axis=0).argmax())])
    (head,) = whole.heads([alpha])
    return head, alpha


def _scores(
    whole: NormalEquations, x: Floats, y: Floats, fold: tuple[Indices, Indices], alphas: Sequence[float] | Doubles
) -> list[float]:
    """R² at each strength on the test part of a fold, mean over targets; one that is constant there counts 0."""
    train, test = fold
    left_out = np.setdiff1d(np.arange(len(x)), train)
    weight = inverse_squares(y[test])
    errors = (head.predict(x[test]) - y[test] for head in whole.without(x[left_out], y[left_out]).heads(alphas))
    return [float(((weight > 0) - weight * np.square(error).sum(axis=0, dtype=np.float64)).mean()) for error in errors]
