"""Unfamiliar tissue: embeddings like those of training pass, shifted ones are flagged."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from histoflow.models import unfamiliar
from histoflow.models.spots import Spots
from histoflow.models.unfamiliar import Familiar

MIX = np.random.default_rng(99).normal(size=(4, 20))


def section(seed: int, n_spots: int = 400, shift: float = 0.0) -> Spots:
    """Embeddings of four independent causes and a little noise."""
    rng = np.random.default_rng(seed)
    embedding = rng.normal(size=(n_spots, 4)) @ MIX + 0.05 * rng.normal(size=(n_spots, 20)) + shift
    xy = np.stack([np.arange(n_spots) % 20, np.arange(n_spots) // 20], axis=1) * [100.0, 150.0]
    ids = np.array([f"{seed}-{i}" for i in range(n_spots)])
    return Spots(f"S{seed}", "", ids, xy, np.zeros(n_spots, np.int64), 100.0, embedding.astype(np.float32))


@pytest.fixture(scope="module")
def familiar() -> Familiar:
    return Familiar.fit([section(seed) for seed in range(4)])


def test_tissue_like_that_of_training_is_familiar(familiar):
    flagged = np.concatenate([familiar.unfamiliar(section(seed).embedding) for seed in range(10, 20)])
    assert 0.001 < flagged.mean() < 0.03


def test_tissue_unlike_that_of_training_is_not(familiar):
    assert familiar.unfamiliar(section(11, shift=30.0).embedding).all()
    assert familiar.unfamiliar(-section(11, shift=30.0).embedding).all()


def test_training_spots_themselves_are_familiar(familiar):
    assert not familiar.unfamiliar(section(0).embedding).any()


def test_one_section_is_measured_against_its_other_half():
    spots = section(0)
    alone = Familiar.fit([spots])
    assert 0 <= alone.unfamiliar(section(10).embedding).mean() < 0.05
    halves = np.arange(400) // 200
    moved = Familiar.fit([replace(spots, embedding=spots.embedding + 20 * halves[:, None].astype(np.float32))])
    between = cdist(moved.spots[halves == 0], moved.spots[halves == 1])
    nearest = np.concatenate([between.min(axis=0), between.min(axis=1)])
    assert moved.farthest == pytest.approx(np.quantile(nearest, 0.99), rel=1e-6)


def test_a_section_of_one_spot_among_others_does_no_harm():
    one = section(5, n_spots=1)
    assert not Familiar.fit([one, section(0)]).unfamiliar(section(0).embedding).any()


def test_the_limit_is_measured_against_the_spots_that_are_kept(monkeypatch):
    monkeypatch.setattr(unfamiliar, "_MOST_SPOTS", 100)
    thinned = Familiar.fit([section(seed) for seed in range(4)])
    assert len(thinned.spots) <= 100
    flagged = np.concatenate([thinned.unfamiliar(section(seed).embedding) for seed in range(10, 20)])
    assert flagged.mean() < 0.03


def test_arrays_give_it_back(familiar):
    again = Familiar.of(familiar.arrays())
    query = section(12, shift=0.5).embedding
    np.testing.assert_array_equal(again.unfamiliar(query), familiar.unfamiliar(query))
    assert again.farthest == familiar.farthest
