"""Linear heads on embeddings: ridge with its strength chosen by inner folds, and the HEST-Benchmark's recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from histoflow.models.inner import InnerFolds

Floats = NDArray[np.floating[Any]]

ALPHAS = np.logspace(0, 6, 25)
"""Ridge strengths tried, for standardised features."""
DEFAULT_ALPHA = 1e3
"""Taken where no spots can be held out."""

_HEST_COMPONENTS, _HEST_SEED, _HEST_ITERATIONS = 256, 1, 1000
_HEST_STRENGTH = 100.0


@dataclass(frozen=True)
class LinearHead:
    """``(x - mean) / scale @ coef + intercept``.

    Attributes
    ----------
    mean, scale
        Of each feature, shape (n_features,).
    coef
        Shape (n_features, n_targets).
    intercept
        Shape (n_targets,).
    """

    mean: Floats
    scale: Floats
    coef: Floats
    intercept: Floats

    def predict(self, x: Floats) -> Floats:
        """Map features (n_spots, n_features) to targets (n_spots, n_targets), float64."""
        predicted: Floats = (np.asarray(x, dtype=np.float64) - self.mean) / self.scale @ self.coef + self.intercept
        return predicted

    def arrays(self) -> dict[str, Floats]:
        """The numbers, by name, for a file."""
        return {"mean": self.mean, "scale": self.scale, "coef": self.coef, "intercept": self.intercept}

    @classmethod
    def of(cls, arrays: Mapping[str, Any]) -> LinearHead:
        """Make a head of what `arrays` returned."""
        return cls(*(np.asarray(arrays[name], dtype=np.float64) for name in ("mean", "scale", "coef", "intercept")))


class RidgePath:
    """Every ridge of one training set, whatever its strength, from one eigendecomposition of the smaller Gram matrix.

    Parameters
    ----------
    x
        Features, shape (n_spots, n_features); centred here.
    y
        Targets, shape (n_spots, n_targets); centred here, so that there is an intercept.
    standardise
        Whether features are first brought to one spread over these spots.
    """

    def __init__(self, x: Floats, y: Floats, *, standardise: bool = True) -> None:
        x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
        spread = x.std(axis=0) if standardise else np.ones(x.shape[1])
        self.mean, self.scale = x.mean(axis=0), np.where(spread > 0, spread, 1.0)
        self.intercept = y.mean(axis=0)
        x, y = (x - self.mean) / self.scale, y - self.intercept
        if len(x) <= x.shape[1]:
            values, vectors = np.linalg.eigh(x @ x.T)
            self._left, self._right = x.T @ vectors, vectors.T @ y
        else:
            values, vectors = np.linalg.eigh(x.T @ x)
            self._left, self._right = vectors, vectors.T @ (x.T @ y)
        self._values = np.maximum(values, 0.0)[:, None]

    def head(self, alpha: float) -> LinearHead:
        """Return the ridge of strength `alpha`, the penalty on the squared length of ``coef``."""
        coef = self._left @ (self._right / (self._values + alpha))
        return LinearHead(self.mean, self.scale, coef, self.intercept)

    def predictions(self, x: Floats, alphas: Floats) -> Floats:
        """Predict from features (n_spots, n_features) at each strength: (n_alphas, n_spots, n_targets)."""
        seen = (np.asarray(x, dtype=np.float64) - self.mean) / self.scale @ self._left
        return np.stack([seen @ (self._right / (self._values + alpha)) + self.intercept for alpha in alphas])


def fit_grouped_ridge(
    x: Floats, y: Floats, inner: InnerFolds, *, standardise: bool = True
) -> tuple[LinearHead, dict[str, Any]]:
    """Ridge with intercept, its strength chosen on the inner folds.

    The strength with the best R² on held-out spots, averaged over genes and folds, as scikit-learn's ``GridSearchCV``
    scores it; a gene that is constant in a held-out part is left out of its average.

    Parameters
    ----------
    x
        Features, shape (n_spots, n_features).
    y
        Targets, shape (n_spots, n_targets).
    inner
        From `inner_folds`, for these rows.
    standardise
        Whether features are first brought to one spread; False where they have a scale that means something.

    Returns
    -------
    The head fitted on all rows; and alpha, the score by alpha, and the folds in words.
    """
    report: dict[str, Any] = {"inner_folds": inner.how, "alpha": DEFAULT_ALPHA}
    if inner.folds:
        paths = ((RidgePath(x[train], y[train], standardise=standardise), test) for train, test in inner.folds)
        scores = np.mean([_r2(y[test], path.predictions(x[test], ALPHAS)) for path, test in paths], axis=0)
        report |= {"alpha": float(ALPHAS[np.argmax(scores)]), "alphas": ALPHAS.tolist(), "inner_r2": scores.tolist()}
    return RidgePath(x, y, standardise=standardise).head(report["alpha"]), report


def _r2(measured: Floats, predicted: Floats) -> Floats:
    """R² averaged over targets, for each of (n_alphas, n_spots, n_targets) predictions: (n_alphas,)."""
    variance = measured.var(axis=0, dtype=np.float64)
    varies = variance > 0
    error = ((predicted - measured) ** 2).mean(axis=1)[:, varies]
    score: Floats = (1 - error / variance[varies]).mean(axis=1) if varies.any() else np.zeros(len(predicted))
    return score


def fit_hest_ridge(x: Floats, y: Floats) -> tuple[LinearHead, dict[str, Any]]:
    """Fit the HEST-Benchmark's probe, step by step (Jaume et al., NeurIPS 2024).

    StandardScaler, PCA to 256 components with seed 1, then ridge by ``lsqr`` without an intercept, of strength
    100 / (n_components × n_genes), at most 1000 iterations. Its predictions have no mean, so only correlations of
    them mean anything. With fewer than 256 spots or features there are as many components as these allow.

    Parameters
    ----------
    x
        Features, shape (n_spots, n_features).
    y
        log1p expression, shape (n_spots, n_genes).

    Returns
    -------
    All three steps as one head; and alpha and the number of components.
    """
    scaler = StandardScaler().fit(x)
    scaled = scaler.transform(x)
    pca = PCA(n_components=min(_HEST_COMPONENTS, *x.shape), random_state=_HEST_SEED).fit(scaled)
    alpha = _HEST_STRENGTH / (pca.n_components_ * y.shape[1])
    options = {"solver": "lsqr", "fit_intercept": False, "max_iter": _HEST_ITERATIONS, "random_state": _HEST_SEED}
    ridge = Ridge(alpha=alpha, **options).fit(pca.transform(scaled).astype(np.float32), y)
    coef = pca.components_.T @ np.atleast_2d(ridge.coef_).T
    head = LinearHead(scaler.mean_, scaler.scale_, coef, -pca.mean_ @ coef)
    return head, {"alpha": float(alpha), "n_components": int(pca.n_components_)}
