"""Embeddings taken back to the encoder's own numbers, which pretrained models want."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_SAME_SIZE = 0.02


def raw_field(values: Floats, made: Mapping[str, Any], *, patch_um: float, n_features: int) -> Floats | None:
    """One field of view of embeddings, as the encoder made it: what `Embedder` standardised is undone.

    Parameters
    ----------
    values
        Embeddings, shape (n_places, n_columns); the fields of view come first.
    made
        How they were made: the whole record in ``uns["histoflow"]["embeddings"]``, with the centre and spread of the
        tissue grid where they are standardised.
    patch_um
        Side of the wanted field of view in µm; one within 2 % is taken for it.
    n_features
        Numbers of the encoder for one field of view.

    Returns
    -------
    Shape (n_places, n_features); None where the record does not tell of such a field, or of how it was standardised.
    """
    sides = [float(side) for side in np.ravel(made.get("patch_um", []))]
    same = [place for place, side in enumerate(sides) if abs(side / patch_um - 1) <= _SAME_SIZE]
    n_blocks = len(sides) * (1 + np.size(made.get("context_um", [])))
    if not same or values.shape[1] != n_blocks * n_features:
        return None
    columns = slice(same[0] * n_features, (same[0] + 1) * n_features)
    own = values[:, columns]
    # Files of features are as the encoder made them; a record without the entry is of before there was a choice.
    if not made.get("standardize", float(made.get("grid_um", 1.0)) > 0):
        return own
    if "grid_centre" not in made or "grid_spread" not in made:
        return None
    centre, spread = (np.asarray(made[key], dtype=np.float32)[columns] for key in ("grid_centre", "grid_spread"))
    raw: Floats = own * spread + centre
    return raw
