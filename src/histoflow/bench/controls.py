"""Controls: data in which there is nothing to find, so that a score above chance is a leak."""

from __future__ import annotations

import numpy as np
from anndata import AnnData


def shuffle_counts(section: AnnData, seed: int) -> AnnData:
    """Give every spot the counts of another one at random, places and embeddings staying where they are.

    Parameters
    ----------
    section
        One section, X raw counts.
    seed
        Which permutation.

    Returns
    -------
    A new section.
    """
    shuffled = section.copy()
    shuffled.X = section.X[np.random.default_rng(seed).permutation(section.n_obs)]
    return shuffled
