"""Scores of one prediction: the long form, structure of maps, and intervals by the contract of calibrated models."""

import numpy as np
import pytest
from scipy.stats import norm
from tests.models.conftest import GENES, make_section

from histoflow._keys import QUANTILE_LEVELS, RESIDUAL_QUANTILES, SCALE, TISSUE, UNS
from histoflow.bench.scores import score
from histoflow.models import MeanBaseline, RidgeProbe
from histoflow.pp import Panel, panel_log1p
from histoflow.pp.graph import neighbors
from histoflow.stats.metrics import moran

PANEL = Panel(tuple(GENES))
LEVELS = np.arange(1, 40) / 40


@pytest.fixture(scope="module")
def held_out():
    return make_section("S9", seed=9, n_spots=100)


@pytest.fixture(scope="module")
def trained():
    return [make_section(f"S{i}", seed=i) for i in range(3)]


def scored(estimator, trained, held_out, change=None):
    """Values (metric × gene) of an estimator on the section held out."""
    predicted = estimator.fit(trained, panel=PANEL).predict(held_out)
    if change is not None:
        change(predicted)
    measured = panel_log1p(held_out, PANEL, "library")
    rows = score(measured, predicted, measured.mean(axis=0, dtype=float), held_out)
    return rows.pivot(index="metric", columns="gene", values="value"), measured, predicted


def calibrate(predicted):
    """A distribution twice as wide at every second spot, Gaussian in its own units."""
    predicted.layers[SCALE] = np.where(np.arange(predicted.n_obs) % 2, 1.0, 0.5)[:, None] * np.ones(predicted.shape)
    predicted.varm[RESIDUAL_QUANTILES] = np.tile(norm.ppf(LEVELS), (predicted.n_vars, 1))
    predicted.uns[UNS][QUANTILE_LEVELS] = LEVELS


def test_structure_of_maps_is_told_of_both_sides(trained, held_out):
    values, measured, predicted = scored(RidgeProbe(), trained, held_out)
    graph = neighbors(held_out.obsm["spatial_um"], 6)
    of_measured, of_predicted = (moran(v, graph.index, graph.mask) for v in (measured, predicted.X))
    np.testing.assert_allclose(values.loc["moran_measured", GENES].astype(float), of_measured)
    np.testing.assert_allclose(values.loc["moran_difference", GENES].astype(float), of_predicted - of_measured)
    assert np.isfinite(values.loc["ssim", GENES].astype(float)).all()
    assert 0 <= values.loc["svg_overlap", ""] <= 1
    assert "crps" not in values.index


def test_the_graph_of_a_map_never_crosses_to_another_piece_of_tissue(trained, held_out):
    apart = held_out.copy()
    apart.obs[TISSUE] = np.arange(apart.n_obs) % 2
    together, *_ = scored(RidgeProbe(), trained, held_out)
    parted, measured, _ = scored(RidgeProbe(), trained, apart)
    graph = neighbors(apart.obsm["spatial_um"], 6, groups=apart.obs[TISSUE])
    np.testing.assert_allclose(
        parted.loc["moran_measured", GENES].astype(float), moran(measured, graph.index, graph.mask)
    )
    assert not parted.loc["moran_measured"].equals(together.loc["moran_measured"])


def test_a_constant_map_is_charged_with_all_structure_that_it_lacks(trained, held_out):
    values, *_ = scored(MeanBaseline(), trained, held_out)
    assert values.loc["moran_predicted", GENES].isna().all()
    np.testing.assert_array_equal(values.loc["moran_difference", GENES], -values.loc["moran_measured", GENES])
    assert values.loc["svg_overlap", ""] == 0


def test_intervals_are_scored_where_a_prediction_carries_them(trained, held_out):
    values, measured, predicted = scored(RidgeProbe(), trained, held_out, calibrate)
    half = norm.ppf(0.9) * np.asarray(predicted.layers[SCALE])
    lower, upper = np.maximum(predicted.X - half, 0), predicted.X + half
    inside = ((measured >= lower) & (measured <= upper)).mean(axis=0)
    np.testing.assert_allclose(values.loc["coverage_80", GENES].astype(float), inside)
    np.testing.assert_allclose(values.loc["width_80", GENES].astype(float), (upper - lower).mean(axis=0), rtol=1e-6)
    widths = values.loc[["width_50", "width_80", "width_90"], GENES].astype(float).to_numpy()
    assert (np.diff(widths, axis=0) > 0).all()
    assert (values.loc["crps", GENES].astype(float) > 0).all()


def test_a_section_of_unknown_pitch_has_no_similarity_but_all_else(trained, held_out):
    unknown = held_out.copy()
    del unknown.uns[UNS]["pitch_um"]
    values, *_ = scored(RidgeProbe(), trained, unknown)
    assert values.loc["ssim", GENES].isna().all()
    assert np.isfinite(values.loc["pearson", GENES].astype(float)).all()
