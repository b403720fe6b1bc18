"""Noise ceilings of held-out sections, and every model's correlation as a share of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from histoflow._keys import Missing, section_name
from histoflow.bench.scores import CEILING, CEILING_STABLE, PEARSON, SHARE, long_form
from histoflow.pp.expression import Normalize, Panel, library_size, panel_counts, to_log1p
from histoflow.stats.ceiling import NoiseCeiling
from histoflow.stats.ceiling import noise_ceiling as of_counts

CEILING_MODEL = "(ceiling)"
"""What stands in the table's column of models where a row is of the data, not of a model."""
CEILING_SEED = 0


def noise_ceiling(
    section: AnnData, panel: Panel, *, normalize: Normalize = "library", missing: Missing = "error", seed: int = 0
) -> NoiseCeiling:
    """Estimate how far a perfect prediction could correlate with a section's counts.

    Parameters
    ----------
    section
        X raw counts.
    panel
        Genes, in the order of the result.
    normalize
        Scale on which predictions are scored, as in `bench.run`. Thinned counts are brought to that of all counts.
    missing
        A gene that the section's table lacks, as in `Estimator.fit`.
    seed
        Of the thinnings.

    Returns
    -------
    Ceiling, its standard error, and whether it is stable, each (n_genes,).

    Raises
    ------
    PanelMismatchError
        If the section lacks a gene of the panel.
    CountsError
        If X is not raw counts.
    """

    def scaled(counts: np.ndarray, totals: np.ndarray, depth: float) -> np.ndarray:
        return to_log1p(counts / depth, totals / depth, normalize)

    return of_counts(panel_counts(section, panel, missing=missing), library_size(section), scaled, seed=seed)


def ceiling_rows(section: AnnData, panel: Panel, normalize: Normalize, missing: Missing) -> pd.DataFrame:
    """Rows of one held-out section: its ceilings, NaN where they are not stable, and whether they are."""
    found = noise_ceiling(section, panel, normalize=normalize, missing=missing, seed=CEILING_SEED)
    values = {CEILING: np.where(found.stable, found.ceiling, np.nan), CEILING_STABLE: found.stable.astype(float)}
    rows = long_form(values, panel.genes).assign(section=section_name(section), error="")
    return rows.assign(model=CEILING_MODEL, seed=CEILING_SEED)


def shares_of_ceiling(table: pd.DataFrame) -> pd.DataFrame:
    """Rows that give every Pearson correlation of a table as a share of the gene's ceiling.

    A correlation that is not defined counts as 0; where the ceiling is not stable there is no share, NaN.

    Parameters
    ----------
    table
        Rows of correlations, and of ceilings of the same folds and sections.
    """
    keys = ["fold", "section", "gene"]
    ceilings = table.loc[table["metric"] == CEILING, [*keys, "value"]].rename(columns={"value": CEILING})
    scored = table[(table["metric"] == PEARSON) & (table["error"] == "")]
    rows = scored.merge(ceilings, on=keys, how="left", validate="many_to_one")
    rows["value"] = rows["value"].fillna(0.0) / rows[CEILING]
    return rows.drop(columns=CEILING).assign(metric=SHARE)
