"""The HEST-Benchmark's linear probe, number for number, and what is odd about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

Floats = NDArray[np.floating[Any]]

ODDITIES = (
    "no intercept on centred components: predictions have no mean, so MSE and R² of them mean nothing",
    "the strength 100 / (n_components × n_genes) is fixed: it is chosen by no data, and falls with the number of genes",
    "the benchmark's expression is log1p of raw counts, not library-normalised although its docstring says so: r also "
    "tells how well the library size is predicted",
    "the benchmark chose its genes over all slides, those of the test included",
    "its correlation pools the spots of all test slides: differences between slides count as predicted",
)
"""What to know before a figure of this recipe is compared with another."""

_COMPONENTS, _SEED, _ITERATIONS, _STRENGTH = 256, 1, 1000, 100.0


@dataclass(frozen=True)
class HestHead:
    """Standardise, project, round to single precision, multiply: each step in the benchmark's order and precision.

    Attributes
    ----------
    mean, scale
        Of each feature, shape (n_features,).
    center
        Mean of the standardised features, shape (n_features,), in the precision of the features.
    components
        Shape (n_components, n_features), in the precision of the features.
    coef
        Shape (n_components, n_genes), float32.
    """

    mean: Floats
    scale: Floats
    center: Floats
    components: Floats
    coef: Floats

    def predict(self, x: Floats) -> Floats:
        """Map features (n_spots, n_features) to expression less its mean (n_spots, n_genes), float32."""
        scaled = np.array(x, dtype=self.components.dtype)
        scaled -= self.mean.astype(scaled.dtype, copy=False)
        scaled /= self.scale.astype(scaled.dtype, copy=False)
        scores = scaled @ self.components.T - self.center @ self.components.T
        predicted: Floats = scores.astype(np.float32, copy=False) @ self.coef
        return predicted

    def arrays(self) -> dict[str, Floats]:
        """The numbers, by name, for a file."""
        return dict(vars(self))

    @classmethod
    def of(cls, arrays: Mapping[str, Any]) -> HestHead:
        """Make a head of what `arrays` returned."""
        return cls(*(np.asarray(arrays[name]) for name in ("mean", "scale", "center", "components", "coef")))


def fit_hest_ridge(x: Floats, y: Floats) -> tuple[HestHead, dict[str, Any]]:
    """Fit the HEST-Benchmark's probe, step by step (Jaume et al., NeurIPS 2024; its code of September 2025).

    StandardScaler, PCA to 256 components with seed 1, scores as float32 and not standardised again, then ridge by
    ``lsqr`` without an intercept, of strength 100 / (n_components × n_genes), at most 1000 iterations. With fewer than
    256 spots or features, where the benchmark stops, there are as many components as these allow. `ODDITIES` tells
    what is odd about it.

    Parameters
    ----------
    x
        Features, shape (n_spots, n_features); the benchmark's are float32.
    y
        Expression, shape (n_spots, n_genes); the benchmark's is log1p of raw counts.

    Returns
    -------
    The three steps; and alpha, the number of components, the oddities, and in what this fit differs from the recipe.
    """
    scaler = StandardScaler().fit(x)
    scaled = scaler.transform(x)
    pca = PCA(n_components=min(_COMPONENTS, *x.shape), random_state=_SEED).fit(scaled)
    alpha = _STRENGTH / (pca.n_components_ * y.shape[1])
    options = {"solver": "lsqr", "fit_intercept": False, "max_iter": _ITERATIONS, "random_state": _SEED}
    ridge = Ridge(alpha=alpha, **options).fit(pca.transform(scaled).astype(np.float32), y)
    coef = np.ascontiguousarray(np.atleast_2d(ridge.coef_).T)
    head = HestHead(scaler.mean_, scaler.scale_, pca.mean_, pca.components_, coef)
    n_components = int(pca.n_components_)
    told = {"alpha": float(alpha), "n_components": n_components, "oddities": list(ODDITIES), "differs": []}
    if n_components < _COMPONENTS:
        told["differs"] = [f"{n_components} components for want of spots or features, the recipe's are {_COMPONENTS}"]
    return head, told
