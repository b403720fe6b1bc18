"""Smoothing over neighbours: of one section and piece of tissue, a lone spot its own, a weight that folds choose."""

from itertools import pairwise

import numpy as np
import pytest

from histoflow.models.inner import InnerFolds
from histoflow.models.linear import RidgePath
from histoflow.models.ridge_folds import RidgeFolds, fit_grouped_ridge
from histoflow.models.smoothing import WEIGHTS, Smoother
from histoflow.models.spots import Spots


def spots(xy, name="S", tissue=None):
    xy = np.asarray(xy, dtype=float)
    tissue = np.zeros(len(xy)) if tissue is None else tissue
    ids = np.array([f"{name}{i}" for i in range(len(xy))])
    return Spots(name, name, ids, xy, np.asarray(tissue, dtype=np.int64), 100.0, np.empty((len(xy), 0), np.float32))


def lattice(side, step=100.0):
    return np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2) * step


def test_the_mean_of_the_neighbours_by_hand():
    smoother = Smoother.of([spots([[0, 0], [100, 0], [200, 0], [900, 0]])], 100.0)
    values = np.array([[1.0], [3.0], [8.0], [5.0]], dtype=np.float32)
    np.testing.assert_allclose(smoother.mean(values).ravel(), [3, 4.5, 3, 5])
    np.testing.assert_allclose(smoother.blend(values, 0.5).ravel(), [2, 3.75, 5.5, 5])
    np.testing.assert_array_equal(smoother.blend(values, 0.0), values)
    assert smoother.blend(values, 0.5).dtype == np.float32


def test_neighbours_are_of_one_section_and_one_piece():
    pair = [[0, 0], [50, 0]]
    values = np.array([[1.0], [2.0], [30.0], [40.0]])
    apart = Smoother.of([spots(pair, "S"), spots(pair, "T")], 60.0).mean(values)
    np.testing.assert_allclose(apart.ravel(), [2, 1, 40, 30])
    pieces = Smoother.of([spots(pair * 2, tissue=[0, 0, 1, 1])], 60.0).mean(values)
    np.testing.assert_allclose(pieces.ravel(), [2, 1, 40, 30])


def test_among_some_spots_only_they_are_neighbours():
    smoother = Smoother.of([spots([[0, 0], [100, 0], [200, 0]])], 100.0).among(np.array([2, 0]))
    np.testing.assert_array_equal(smoother.mean(np.array([[7.0], [9.0]])).ravel(), [7, 9])


def folds_of(sections):
    starts = np.cumsum([0, *map(len, sections)])
    everything = np.arange(starts[-1])
    parts = [np.arange(a, b) for a, b in pairwise(starts)]
    return [(np.setdiff1d(everything, part), part) for part in parts]


def noisy_features(sections, seed=0):
    """A smooth gene and one without any neighbourhood; features that know both but for noise."""
    rng = np.random.default_rng(seed)
    xy = np.concatenate([s.xy_um for s in sections]) / 300
    smooth = np.sin(xy[:, 0]) + np.cos(xy[:, 1])
    x = smooth[:, None] + rng.normal(0, 2, (len(xy), 6))
    return x, 3 + smooth[:, None] + rng.normal(0, 0.3, (len(xy), 2))


def test_scores_by_weight_are_those_of_blended_predictions():
    sections = [spots(lattice(7), n) for n in "ABC"]
    x, y = noisy_features(sections)
    folds, smoother = folds_of(sections), Smoother.of(sections, 150.0)
    found = RidgeFolds(RidgePath(x, y), folds).smoothing_scores(5.0, smoother, WEIGHTS)
    wanted = np.zeros(len(WEIGHTS))
    for (train, test), section in zip(folds, sections, strict=True):
        own = np.maximum(RidgePath(x[train], y[train]).head(5.0).predict(x[test]), 0)
        for place, weight in enumerate(WEIGHTS):
            error = Smoother.of([section], 150.0).blend(own, weight) - y[test]
            wanted[place] += (1 - (error**2).mean(axis=0) / y[test].var(axis=0)).mean() / len(folds)
    np.testing.assert_allclose(found, wanted, rtol=1e-8)


def test_folds_smooth_noisy_predictions_of_smooth_genes_and_leave_others_alone():
    sections = [spots(lattice(12), n) for n in "ABC"]
    inner = InnerFolds("sections", tuple(folds_of(sections)))
    x, y = noisy_features(sections)
    _, report = fit_grouped_ridge(x, y, inner, smoother=Smoother.of(sections, 150.0))
    assert report["smooth_weight"] >= 0.5
    assert len(report["smooth_inner_r2"]) == len(report["smooth_weights"]) == len(WEIGHTS)
    rough = np.random.default_rng(1).normal(size=x.shape)
    _, report = fit_grouped_ridge(rough, 3 + rough[:, :2], inner, smoother=Smoother.of(sections, 150.0))
    assert report["smooth_weight"] == 0


def test_without_folds_nothing_is_smoothed():
    section = spots(lattice(5))
    x, y = noisy_features([section])
    _, report = fit_grouped_ridge(x, y, InnerFolds("nothing", ()), smoother=Smoother.of([section], 150.0))
    assert report["smooth_weight"] == 0


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_a_flat_field_stays_flat(weight):
    values = np.full((36, 2), 1.7)
    np.testing.assert_allclose(Smoother.of([spots(lattice(6))], 150.0).blend(values, weight), values, rtol=1e-12)
