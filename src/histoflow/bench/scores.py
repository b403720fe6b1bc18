"""Scores of one prediction: every metric, gene by gene, in the long form of the table of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from histoflow._keys import (
    QUANTILE_LEVELS,
    RESIDUAL_QUANTILES,
    SCALE,
    SPATIAL_UM,
    TISSUE,
    UNS,
    facts,
    section_name,
)
from histoflow.pp.expression import N_MORAN_NEIGHBORS, library_size
from histoflow.pp.graph import neighbors
from histoflow.stats.intervals import central_levels, coverage, crps, interval_width, predictive_quantiles
from histoflow.stats.metrics import moran, mse_skill, partial_pearson, pearson, spearman, variance_ratio
from histoflow.stats.structure import ssim, svg_overlap

Floats = NDArray[np.float64]

PEARSON, POOLED, CEILING, CEILING_STABLE, SHARE = (
    *("pearson", "pearson_pooled"),
    *("ceiling", "ceiling_stable", "share_of_ceiling"),
)
MORAN_MEASURED, MORAN_PREDICTED, MORAN_DIFFERENCE = "moran_measured", "moran_predicted", "moran_difference"
SVG_OVERLAP, SSIM = "svg_overlap", "ssim"
INTERVAL_LEVELS = (0.5, 0.8, 0.9)
"""Levels of the central intervals whose coverage and width are told, of predictions that carry a distribution."""
LEFT_OUT = (MORAN_MEASURED, MORAN_DIFFERENCE, SVG_OVERLAP, SSIM, CEILING, SHARE)
"""Metrics whose NaN says something of the measurement, not of the model: left out of means rather than counted as 0."""


def score(measured: NDArray[np.floating], predicted: AnnData, baseline: Floats, section: AnnData) -> pd.DataFrame:
    """Score one prediction of one section.

    Parameters
    ----------
    measured
        Log1p expression, shape (n_spots, n_genes), in the order of the prediction.
    predicted
        From `Estimator.predict`.
    baseline
        Mean of every gene over the training spots, same scale, shape (n_genes,).
    section
        The section, X raw counts.

    Returns
    -------
    Columns gene, metric, value, section, error; gene is empty where a metric is of the whole map.
    """
    expression = np.asarray(predicted.X)
    values = _of_values(measured, expression, baseline, section) | _of_maps(measured, expression, section)
    if RESIDUAL_QUANTILES in predicted.varm:
        values |= _of_intervals(measured, predicted)
    overlap = svg_overlap(values[MORAN_MEASURED], values[MORAN_PREDICTED])
    whole = pd.DataFrame({"gene": [""], "metric": SVG_OVERLAP, "value": overlap})
    rows = pd.concat([long_form(values, list(predicted.var_names)), whole], ignore_index=True)
    return rows.assign(section=section_name(section), error="")


def pooled(
    measured: Sequence[NDArray[np.floating]], predicted: Sequence[AnnData], genes: Sequence[str]
) -> pd.DataFrame:
    """Pearson correlation over the spots of several sections together, as much of the literature gives it.

    Differences between sections count as predicted in it. Columns as in `score`, with an empty section.
    """
    together = np.concatenate(measured), np.concatenate([np.asarray(one.X) for one in predicted])
    return long_form({POOLED: pearson(*together)}, genes).assign(section="", error="")


def long_form(values: dict[str, Floats], genes: Sequence[str]) -> pd.DataFrame:
    """Metrics, each (n_genes,), as rows of gene, metric and value."""
    wide = pd.DataFrame(values, index=pd.Index(genes, name="gene")).reset_index()
    return wide.melt(id_vars="gene", var_name="metric", value_name="value")


def _of_values(
    measured: NDArray[np.floating], expression: NDArray[np.floating], baseline: Floats, section: AnnData
) -> dict[str, Floats]:
    return {
        PEARSON: pearson(measured, expression),
        "spearman": spearman(measured, expression),
        "mse_skill": mse_skill(measured, expression, baseline=baseline),
        "variance_ratio": variance_ratio(measured, expression),
        "partial_pearson": partial_pearson(measured, expression, covariate=np.log1p(library_size(section))),
    }


def _of_maps(measured: NDArray[np.floating], expression: NDArray[np.floating], section: AnnData) -> dict[str, Floats]:
    """Moran's I on both sides and what the prediction has more of it, and SSIM on the array's raster."""
    xy_um = np.asarray(section.obsm[SPATIAL_UM], dtype=float)
    pieces = pd.factorize(section.obs[TISSUE])[0] if TISSUE in section.obs else None
    graph = neighbors(xy_um, N_MORAN_NEIGHBORS, groups=pieces)
    of_measured, of_predicted = (moran(values, graph.index, graph.mask) for values in (measured, expression))
    pitch_um = float(facts(section).get("pitch_um", np.nan))
    known = np.isfinite(pitch_um)
    return {
        MORAN_MEASURED: of_measured,
        MORAN_PREDICTED: of_predicted,
        # A map without variation has no structure: 0, so that a constant is charged with all that it lacks.
        MORAN_DIFFERENCE: np.nan_to_num(of_predicted) - of_measured,
        SSIM: ssim(measured, expression, xy_um, pitch_um=pitch_um) if known else np.full(len(of_measured), np.nan),
    }


def _of_intervals(measured: NDArray[np.floating], predicted: AnnData) -> dict[str, Floats]:
    """Coverage and width of central intervals, and CRPS, of a calibrated prediction."""
    levels = np.asarray(predicted.uns[UNS][QUANTILE_LEVELS], dtype=float)
    distribution = (predicted.X, predicted.layers[SCALE], predicted.varm[RESIDUAL_QUANTILES], levels)
    values: dict[str, Floats] = {}
    for level in INTERVAL_LEVELS:
        lower, upper = predictive_quantiles(*distribution, central_levels(level))
        values[f"coverage_{level * 100:.0f}"] = coverage(measured, lower, upper)
        values[f"width_{level * 100:.0f}"] = interval_width(lower, upper)
    return values | {"crps": crps(measured, predictive_quantiles(*distribution, levels), levels)}
