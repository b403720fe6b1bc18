"""The strongest principal axes of rows, from the products on whichever side of them is smaller."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

Doubles = NDArray[np.float64]

_LEAST_VALUE = 1e-6
"""Singular values below this part of the largest are rounding."""


def leading_axes(x: NDArray[np.floating[Any]], n_axes: int) -> tuple[Doubles, Doubles]:
    """Find the largest singular values of rows (n_rows, n_columns), and their right singular vectors.

    Parameters
    ----------
    x
        Taken as it is; centre it before.
    n_axes
        How many at most; there are fewer where the rows lie in fewer dimensions, and one at least.

    Returns
    -------
    The values, largest first, (n_kept,), and the vectors as rows, (n_kept, n_columns), float64, the largest entry of
    each positive, because the sign of a singular vector is arbitrary.
    """
    x64 = x.astype(np.float64, copy=False)
    if len(x64) >= x64.shape[1]:
        return axes_of_products(x64.T @ x64, n_axes)
    values, vectors = _largest(x64 @ x64.T, n_axes)
    return values, _signed(vectors @ x64 / np.where(values > 0, values, 1.0)[:, None])


def axes_of_products(products: Doubles, n_axes: int) -> tuple[Doubles, Doubles]:
    """As `leading_axes`, from the products of the columns, (n_columns, n_columns)."""
    values, vectors = _largest(products, n_axes)
    return values, _signed(vectors)


def _largest(products: Doubles, n_axes: int) -> tuple[Doubles, Doubles]:
    """Roots of the largest eigenvalues, largest first, and their vectors as rows."""
    n_rows = len(products)
    found, columns = eigh(products, subset_by_index=(max(0, n_rows - n_axes), n_rows - 1))
    values = np.sqrt(np.maximum(found[::-1], 0.0))
    n_kept = max(1, int((values > values[0] * _LEAST_VALUE).sum()))
    return values[:n_kept], np.ascontiguousarray(columns.T[::-1][:n_kept])


def _signed(rows: Doubles) -> Doubles:
    largest = rows[np.arange(len(rows)), np.abs(rows).argmax(axis=1)]
    signed: Doubles = rows * np.where(largest < 0, -1.0, 1.0)[:, None]
    return signed
