"""Linear heads on embeddings, and every ridge of one training set, whatever its strength."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histoflow.models.side_by_side import Run

Floats = NDArray[np.floating[Any]]
Doubles = NDArray[np.float64]

_ROUNDING = 8
"""A column is constant if it spreads by no more units in the last place of its mean."""
_BLOCK = 1 << 10
"""Spots standardised at a time, so that no second copy of all features is needed."""
_FEWEST, _MOST, _ELEMENTS = 1 << 8, 1 << 11, 1 << 25
"""Targets multiplied at a time, at least and at most, and numbers of them."""


@dataclass(frozen=True)
class LinearHead:
    """``(x - mean) / scale @ axes @ coef + intercept``.

    Attributes
    ----------
    mean, scale
        Of each feature, shape (n_features,).
    coef
        Shape (n_axes, n_targets), in the precision in which it predicts.
    intercept
        Shape (n_targets,).
    axes
        Shape (n_features, n_axes); None where the axes are the features themselves.
    """

    mean: Floats
    scale: Floats
    coef: Floats
    intercept: Floats
    axes: Floats | None = None

    def predict(self, x: Floats) -> Floats:
        """Map features (n_spots, n_features) to targets (n_spots, n_targets), in the precision of `coef`."""
        predicted = np.empty((len(x), self.coef.shape[1]), self.coef.dtype)
        for rows in blocks(len(x)):
            standard = standardised(x[rows], self.mean, self.scale).astype(self.coef.dtype, copy=False)
            along = standard if self.axes is None else standard @ self.axes
            np.matmul(along, self.coef, out=predicted[rows])
        predicted += self.intercept.astype(self.coef.dtype, copy=False)
        return predicted

    @property
    def of_features(self) -> Floats:
        """Coefficients of the features themselves, shape (n_features, n_targets)."""
        return self.coef if self.axes is None else self.axes @ self.coef

    def arrays(self) -> dict[str, Floats]:
        """The numbers, by name, for a file."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @classmethod
    def of(cls, arrays: Mapping[str, Any]) -> LinearHead:
        """Make a head of what `arrays` returned."""
        found = {name: np.asarray(arrays[name]) for name in ("mean", "scale", "coef", "intercept")}
        return cls(**found, axes=np.asarray(arrays["axes"]) if "axes" in arrays else None)


class RidgePath:
    """Every ridge of one training set, whatever its strength, from one eigendecomposition.

    Features are turned onto the principal axes of the training set, in double precision: a feature's length is then
    that of its direction, so that a product with the targets in single precision is as exact for a weak direction as
    for a strong one.

    Parameters
    ----------
    x
        Features, shape (n_spots, n_features); standardised here. Products are computed in their precision, float32 or
        float64.
    y
        Targets, shape (n_spots, n_targets); centred here, so that there is an intercept.
    standardise
        Whether features are brought to one spread; False where they have a scale that means something, and are
        centred alone.
    run
        What runs calls on independent blocks of spots: `map`, or what `side_by_side` gives.

    Attributes
    ----------
    mean, scale, intercept
        Mean and standard deviation (1 where they are not brought to one spread) of each feature, mean of each target,
        float64.
    gram
        Products of the standardised features, shape (n_features, n_features); None with fewer spots than features.
    axes
        Principal axes, shape (n_features, n_axes), n_axes the smaller of n_spots and n_features, orthonormal columns.
    values
        Squared lengths along them, shape (n_axes,).
    turned
        Standardised features along them, shape (n_spots, n_axes).
    """

    def __init__(self, x: Floats, y: Floats, *, standardise: bool = True, run: Run = map) -> None:
        self._x, self._y, self._standardise = x, y, standardise
        self.mean, self.scale = self.moments(slice(None))
        self.intercept: Doubles = y.mean(axis=0, dtype=np.float64)
        self.gram: Doubles | None = None
        if len(x) < x.shape[1]:
            # Rows span at most n_spots directions, of which any orthonormal basis will do.
            basis = np.linalg.qr(self.standard(slice(None)).T)[0]
            inside = self.standard(slice(None)) @ basis
            values, axes = np.linalg.eigh(inside.T @ inside)
            self.axes: Doubles = basis @ axes
        else:
            self.gram = self.products(np.arange(len(x)), run)
            values, self.axes = np.linalg.eigh(self.gram)
        self.values: Doubles = np.maximum(values, 0.0)
        turned = run(lambda rows: (self.standard(rows) @ self.axes).astype(self.dtype), blocks(len(x)))
        self.turned: Floats = np.concatenate(list(turned))

    @property
    def dtype(self) -> np.dtype[Any]:
        """The precision of products with targets."""
        return np.dtype(np.float32 if self._x.dtype == np.float32 else np.float64)

    @property
    def n_targets(self) -> int:
        """Number of targets."""
        return int(self._y.shape[1])

    def standard(self, rows: Any) -> Doubles:
        """Standardised features of some rows, float64."""
        return standardised(self._x[rows], self.mean, self.scale)

    def products(self, rows: NDArray[np.intp], run: Run = map) -> Doubles:
        """Products of the standardised features over some rows, shape (n_features, n_features)."""

        def of_block(part: slice) -> Doubles:
            standard = self.standard(rows[part])
            return standard.T @ standard

        total = np.zeros((self._x.shape[1],) * 2)
        for products in run(of_block, blocks(len(rows))):
            total += products
        return total

    def moments(self, rows: Any) -> tuple[Doubles, Doubles]:
        """Mean, and standard deviation or 1, of each feature over some rows."""
        mean, spread = moments(self._x[rows])
        return mean, spread if self._standardise else np.ones_like(spread)

    def targets(self, which: slice) -> Floats:
        """Some targets, centred, shape (n_spots, n_which)."""
        centred: Floats = np.subtract(self._y[:, which], self.intercept[which], dtype=self.dtype, casting="same_kind")
        return centred

    def head(self, alpha: float | Doubles, along: Floats | None = None) -> LinearHead:
        """Return the ridge of strength `alpha`, the penalty on the squared length of ``coef``.

        Parameters
        ----------
        alpha
            One strength, or one for each target, shape (n_targets,).
        along
            Products of `turned` and `targets`, shape (n_axes, n_targets), where they are known; None to compute them.
        """
        strengths = np.broadcast_to(np.asarray(alpha, dtype=np.float64), (self.n_targets,))
        axes = self.axes.astype(self.dtype, copy=False)
        # Multiplied out only where that is less to keep and to compute.
        kept = axes if self.n_targets > len(axes) else None
        coef = np.empty((len(axes) if kept is None else axes.shape[1], self.n_targets), self.dtype)
        for which in chunks(self.n_targets, len(self.turned)):
            products = self.turned.T @ self.targets(which) if along is None else along[:, which]
            products = products / (self.values[:, None] + strengths[which]).astype(self.dtype, copy=False)
            coef[:, which] = products if kept is not None else axes @ products
        return LinearHead(self.mean, self.scale, coef, self.intercept, kept)


def moments(x: Floats) -> tuple[Doubles, Doubles]:
    """Mean and standard deviation of each column, float64, (n_columns,); 1 for the latter where it is constant."""
    mean: Doubles = x.mean(axis=0, dtype=np.float64)
    square = sum((((x[rows] - mean) ** 2).sum(axis=0) for rows in blocks(len(x))), np.zeros_like(mean))
    spread = np.sqrt(square / len(x))
    return mean, np.where(is_constant(mean, spread), 1.0, spread)


def is_constant(mean: Doubles, spread: Doubles) -> NDArray[np.bool_]:
    """Whether columns of this mean and standard deviation do not vary, to within the rounding of the mean."""
    constant: NDArray[np.bool_] = spread <= _ROUNDING * np.finfo(np.float64).eps * np.abs(mean)
    return constant


def standardised(x: Floats, mean: Floats, scale: Floats) -> Doubles:
    """Features minus their mean, in units of their scale, float64."""
    standard: Doubles = np.subtract(x, mean, dtype=np.float64)
    standard /= scale
    return standard


def blocks(n_spots: int) -> list[slice]:
    """Spots, some thousand at a time."""
    return [slice(start, start + _BLOCK) for start in range(0, n_spots, _BLOCK)]


def chunks(n_targets: int, n_spots: int) -> Iterator[slice]:
    """Targets, some thousand at a time, fewer of many spots: what is made of them is used up before the next."""
    width = max(_FEWEST, min(_MOST, _ELEMENTS // max(n_spots, 1)))
    return (slice(start, start + width) for start in range(0, n_targets, width))
