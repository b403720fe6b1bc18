"""Departures: a planted field is found again, and draws have its covariance."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from histoflow.models.departure import Departure
from histoflow.models.spots import Spots

PITCH_UM, REACH = 100.0, 3.0
FIELD = np.array([[0.8, 0.0, 0.0], [0.6, 0.3, 0.0], [0.0, 0.0, 0.0]])
NOISE = np.array([[0.5, 0.0, 0.0], [0.0, 0.4, 0.0], [0.3, 0.0, 0.4]])


def lattice(side: int) -> Spots:
    xy = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2) * PITCH_UM + 5000.0
    ids = np.array([f"spot-{number:05d}" for number in range(side**2)])
    tissue = np.zeros(side**2, np.int64)
    return Spots("S", "S", ids, xy, tissue, PITCH_UM, np.empty((side**2, 0), np.float32))


def planted(spots: Spots, seed: int) -> np.ndarray:
    """Residuals of the model itself, from the Cholesky factor of its exact spatial covariance."""
    rng = np.random.default_rng(seed)
    spatial = np.exp(-cdist(spots.xy_um, spots.xy_um) / PITCH_UM / REACH)
    fields = np.linalg.cholesky(spatial + 1e-9 * np.eye(len(spots))) @ rng.normal(size=(len(spots), 3))
    return (fields @ FIELD.T + rng.normal(size=(len(spots), 3)) @ NOISE.T).astype(np.float32)


@pytest.fixture(scope="module")
def fitted() -> Departure:
    sections = [lattice(24)] * 12
    return Departure.fit([planted(s, seed) for seed, s in enumerate(sections)], sections, PITCH_UM)


@pytest.fixture(scope="module")
def exact() -> Departure:
    return Departure(FIELD.astype(np.float32), NOISE.astype(np.float32), REACH)


def covariances(draws: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Of genes at a spot, and at spots beside each other, over all draws of a square lattice."""
    square = draws.reshape(len(draws), side, side, -1).astype(float)
    right, left = square[:, :, 1:].reshape(-1, 3), square[:, :, :-1].reshape(-1, 3)
    flat = square.reshape(-1, 3)
    across = right.T @ left / len(right)
    return flat.T @ flat / len(flat), (across + across.T) / 2


def test_a_planted_field_is_found(fitted):
    assert fitted.reach == pytest.approx(REACH, rel=0.35)
    np.testing.assert_allclose(fitted.field @ fitted.field.T, FIELD @ FIELD.T, atol=0.12)
    np.testing.assert_allclose(fitted.noise @ fitted.noise.T, NOISE @ NOISE.T, atol=0.12)


def test_field_and_noise_together_are_what_was_measured(fitted):
    sections = [lattice(24)] * 12
    rows = np.concatenate([r - r.mean(axis=0) for r in (planted(s, seed) for seed, s in enumerate(sections))])
    together = fitted.field @ fitted.field.T + fitted.noise @ fitted.noise.T
    np.testing.assert_allclose(together, rows.T @ rows / len(rows), atol=1e-4)


def test_noise_alone_has_no_field():
    sections = [lattice(30)] * 4
    rng = np.random.default_rng(0)
    residuals = [rng.normal(size=(900, 3)).astype(np.float32) @ NOISE.T for _ in sections]
    found = Departure.fit(residuals, sections, PITCH_UM)
    assert np.trace(found.field @ found.field.T) < 0.15 * np.trace(NOISE @ NOISE.T)


def test_draws_have_the_covariance_of_the_fit(exact):
    draws = exact.draw(lattice(20), 400, PITCH_UM, seed=0)
    here, beside = covariances(draws, 20)
    shared = FIELD @ FIELD.T
    np.testing.assert_allclose(here, shared + NOISE @ NOISE.T, atol=0.06)
    np.testing.assert_allclose(beside, shared * np.exp(-1 / REACH), atol=0.06)


def test_mean_over_draws_is_zero_and_one_draw_departs(exact):
    draws = exact.draw(lattice(8), 5, PITCH_UM, seed=0)
    assert draws.dtype == np.float32
    np.testing.assert_allclose(draws.mean(axis=0), 0, atol=1e-6)
    assert np.abs(exact.draw(lattice(8), 1, PITCH_UM, seed=0)).mean() > 0.1


def test_order_of_spots_does_not_matter_and_a_seed_repeats(exact):
    spots = lattice(9)
    order = np.random.default_rng(0).permutation(len(spots))
    shuffled = replace(spots, ids=spots.ids[order], xy_um=spots.xy_um[order])
    straight = exact.draw(spots, 3, PITCH_UM, seed=4)
    np.testing.assert_allclose(exact.draw(shuffled, 3, PITCH_UM, seed=4), straight[:, order], atol=1e-5)
    np.testing.assert_array_equal(exact.draw(spots, 3, PITCH_UM, seed=4), straight)
    assert not np.allclose(exact.draw(spots, 3, PITCH_UM, seed=5), straight)


def test_other_spots_change_no_field(exact):
    without_noise = replace(exact, noise=np.zeros_like(exact.noise))
    spots = lattice(9)
    part = replace(spots, ids=spots.ids[:20], xy_um=spots.xy_um[:20])
    few, all_of_them = (without_noise.draw(some, 4, PITCH_UM, seed=1) for some in (part, spots))
    np.testing.assert_allclose(few, all_of_them[:, :20], atol=1e-5)


def test_rows_without_expectation_are_left_out():
    spots = lattice(12)
    rows = planted(spots, 0)
    with_gaps = rows.copy()
    with_gaps[-12:] = np.nan
    part = replace(spots, ids=spots.ids[:-12], xy_um=spots.xy_um[:-12], tissue=spots.tissue[:-12])
    gaps, cut = Departure.fit([with_gaps], [spots], PITCH_UM), Departure.fit([rows[:-12]], [part], PITCH_UM)
    together = [d.field @ d.field.T + d.noise @ d.noise.T for d in (gaps, cut)]
    np.testing.assert_allclose(together[0], together[1], atol=1e-4)


def test_two_pieces_of_tissue_share_nothing():
    spots = lattice(12)
    rows = np.repeat([[1.0], [-1.0]], 72, axis=0) * np.ones(3) + np.random.default_rng(0).normal(size=(144, 3)) * 0.01
    apart = replace(spots, tissue=np.repeat([0, 1], 72))
    # Within a piece all spots are alike, so that neighbours share everything; no pair crosses the border.
    found = Departure.fit([rows.astype(np.float32)], [apart], PITCH_UM)
    assert np.trace(found.noise @ found.noise.T) < 0.01
    joined = Departure.fit([rows.astype(np.float32)], [spots], PITCH_UM)
    assert np.trace(joined.noise @ joined.noise.T) > np.trace(found.noise @ found.noise.T)


@pytest.mark.parametrize("n_spots", [1, 2, 5])
def test_few_spots_have_noise_alone_or_little(n_spots):
    spots = lattice(3)
    few = replace(spots, ids=spots.ids[:n_spots], xy_um=spots.xy_um[:n_spots], tissue=spots.tissue[:n_spots])
    found = Departure.fit([planted(few, 0)], [few], PITCH_UM)
    assert np.isfinite(found.draw(few, 3, PITCH_UM, seed=0)).all()


def test_arrays_give_it_back(exact):
    again = Departure.of(exact.arrays())
    np.testing.assert_array_equal(again.draw(lattice(4), 2, PITCH_UM, 0), exact.draw(lattice(4), 2, PITCH_UM, 0))
