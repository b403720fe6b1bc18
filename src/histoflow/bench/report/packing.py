"""Numbers as a page carries them: whole steps between the least and the greatest of each column, in base64."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from histoflow._errors import NotFiniteError, ShapeError

_KINDS: dict[int, str] = {8: "|u1", 16: "<u2"}


def pack(values: ArrayLike, bits: int = 16) -> dict[str, Any]:
    """Write columns as whole steps; the page reads them back within half a step.

    Parameters
    ----------
    values
        Shape (n_rows, n_columns), finite.
    bits
        8 or 16 of each number: a step is the column's range / (2^bits − 1).

    Returns
    -------
    `n` rows, `bits`, `low` and `step` of each column, and `data`, base64, column after column.

    Raises
    ------
    ShapeError
        If `values` is not (n_rows, n_columns) with a row at least.
    NotFiniteError
        If it holds NaN or infinity.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or not len(array):
        raise ShapeError(f"values must have shape (n_rows, n_columns) with a row at least, got {array.shape}")
    if not np.isfinite(array).all():
        raise NotFiniteError("values holds NaN or infinity, which a page cannot show: leave those columns out")
    low, top = array.min(axis=0), 2**bits - 1
    step = (array.max(axis=0) - low) / top
    codes = np.rint((array - low) / np.where(step > 0, step, 1.0)).astype(_KINDS[bits])
    data = b64encode(np.ascontiguousarray(codes.T).tobytes()).decode("ascii")
    return {"n": len(array), "bits": bits, "low": _short(low), "step": _short(step), "data": data}


def _short(values: NDArray[np.float64]) -> list[float]:
    return [float(f"{value:.9g}") for value in values]
