"""The views of an embedding: parts of its columns that are looked at together, and apart from the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histoflow._errors import EncoderMismatchError

Columns = NDArray[np.int64]


def views_of(made: Mapping[str, Any], n_features: int) -> tuple[Columns, ...]:
    """Tell the views of an embedding from how it was made.

    The whole; each field of view with its surroundings, if there are several; the place itself with the tissue within
    each radius, if there are several; and the parts that the encoder names, everywhere. What one way of looking gets
    wrong, another often gets right.

    Parameters
    ----------
    made
        How the embeddings were made: `patch_um`, the fields of view; `context_um`, the radii, if there are any; and
        `parts`, spans of columns of one field of view, see `pp.Encoder`.
    n_features
        Columns of the embedding: fields of view side by side, then the same again within each radius.

    Returns
    -------
    Indices of columns, int64, for every view; the whole comes first.

    Raises
    ------
    EncoderMismatchError
        If the columns cannot be those of so many fields and radii, or a part has columns that no field has.
    """
    n_fields, n_radii = (max(len(made.get(key) or ()), least) for key, least in (("patch_um", 1), ("context_um", 0)))
    if n_features % ((1 + n_radii) * n_fields):
        raise EncoderMismatchError(
            f"embeddings have {n_features} columns; {n_fields} fields of view, each at the place and within {n_radii} "
            f"radii, make a multiple of {(1 + n_radii) * n_fields}; embed the sections again with hf.embed"
        )
    blocks = np.arange(n_features).reshape(1 + n_radii, n_fields, -1)
    views = [blocks]
    if n_fields > 1:
        views += [blocks[:, field] for field in range(n_fields)]
    if n_radii > 1:
        views += [blocks[[0, radius]] for radius in range(1, 1 + n_radii)]
    views += [blocks[..., _columns(part, blocks.shape[-1])] for part in made.get("parts") or ()]
    return tuple(view.ravel() for view in views)


def _columns(part: str, n_columns: int) -> Columns:
    """Columns of one field of view that a part names by spans, ``"0:5 15:57"``."""
    spans = [[int(end) for end in span.split(":")] for span in part.split()]
    columns = np.concatenate([np.arange(first, last) for first, last in spans])
    if columns.max() >= n_columns:
        raise EncoderMismatchError(
            f"part {part!r} of the encoder has columns that a field of view of {n_columns} has not; embed the sections "
            "again with hf.embed"
        )
    return columns
