"""Agreement with measured spots: exact sums, a smooth ratio chosen by leaving out, what cannot be made to agree."""

import numpy as np
import pytest

from histoflow._errors import OptionError, ShapeError
from histoflow.models import measured as module
from histoflow.models.measured import Likeness, Looks, Sites, fit_measurement, fit_ratio
from histoflow.pp import Lattice

LATTICE = Lattice.over((2000, 1600), (1.0, 1.0))
XY = np.stack(np.meshgrid(np.arange(100, 1900, 200), np.arange(100, 1500, 200)), axis=-1).reshape(-1, 2).astype(float)
CELLS = LATTICE.nearest(XY, 123)
N_SPOTS, N_GENES = len(XY), 4
# Every super-pixel of the slide looks like any other, unless a test says otherwise.
PLAIN = np.zeros((np.prod(LATTICE.shape), 3))


def predicted(seed=0):
    return np.random.default_rng(seed).gamma(2.0, 3.0, (*CELLS.shape, N_GENES)).astype(np.float32)


def field_at(xy, seed=0):
    """A smooth field with a range of about 600 µm, one for each gene."""
    rng = np.random.default_rng(seed)
    waves = rng.normal(size=(20, N_GENES)) / np.sqrt(10)
    directions, phases = rng.normal(size=(20, 2)) / 500, rng.uniform(0, 7, 20)
    return np.cos(xy @ directions.T + phases) @ waves


def sites(xy, looks=None):
    return Sites(xy, np.zeros((len(xy), 1)) if looks is None else looks)


def fitted(counts, measured, features=PLAIN):
    return fit_measurement(LATTICE, CELLS, features[CELLS], counts, measured, pitch_um=200.0)


def spot_log1p(counts):
    return np.log1p(counts.mean(axis=1))


def test_sums_over_spots_are_what_was_measured():
    counts = predicted()
    measured = np.random.default_rng(1).uniform(0, 4, (N_SPOTS, N_GENES))
    measured[3, 1] = 0
    adjusted = (
        fitted(counts, measured)
        .adjust(counts.reshape(-1, N_GENES), CELLS.ravel(), PLAIN[CELLS.ravel()])
        .reshape(counts.shape)
    )
    np.testing.assert_allclose(spot_log1p(adjusted), measured, atol=1e-10)
    assert (adjusted >= 0).all()
    assert not adjusted[3, :, 1].any()


def test_where_nothing_is_predicted_counts_are_spread_evenly():
    counts = np.zeros_like(predicted())
    measured = np.full((N_SPOTS, N_GENES), 2.0)
    measured[:40] = 0.5
    measured[40:, :] = 0.0
    measured[5] = 3.0
    low = counts - 0.0
    agreed = fitted(low, measured)
    adjusted = agreed.adjust(low.reshape(-1, N_GENES), CELLS.ravel(), PLAIN[CELLS.ravel()]).reshape(low.shape)
    np.testing.assert_allclose(spot_log1p(adjusted), measured, atol=1e-10)


def test_between_spots_a_smooth_ratio_is_followed():
    counts = predicted()
    measured = spot_log1p(counts) + field_at(XY)
    rows, columns = np.divmod(np.setdiff1d(np.arange(np.prod(LATTICE.shape)), CELLS)[::97], LATTICE.shape[1])
    between = rows * LATTICE.shape[1] + columns
    agreed = fitted(counts, measured)
    wanted = field_at((np.stack([columns, rows], axis=1) + 0.5) * 8.0)
    inside = (rows > 20) & (rows < 160) & (columns > 20) & (columns < 220)
    error = (agreed.ratio(between, PLAIN[between]) - wanted)[inside]
    assert error.std() < 0.25 * wanted[inside].std()
    level = np.full((len(between), N_GENES), 5.0)
    np.testing.assert_allclose(
        np.log1p(agreed.adjust(level, between, PLAIN[between])),
        np.maximum(np.log1p(5.0) + agreed.ratio(between, PLAIN[between]), 0),
        atol=1e-9,
    )


def test_noise_is_smoothed_and_what_neighbours_share_is_kept():
    noise = np.random.default_rng(2).normal(size=(N_SPOTS, N_GENES))
    field = fit_ratio(sites(XY), noise, pitch_um=200.0)
    assert field.at(sites(XY + 100)).std(axis=0).max() < 0.6
    smooth = fit_ratio(sites(XY), field_at(XY) + 0.1 * noise, pitch_um=200.0)
    assert (smooth.at(sites(XY)) - field_at(XY)).std() < 0.1
    assert (smooth.at(sites(XY + 50)) - field_at(XY + 50)).std() < 0.25 * field_at(XY).std()


def test_what_looks_alike_shares_its_ratio_wherever_it_lies():
    rng = np.random.default_rng(6)
    kind = rng.integers(0, 2, N_SPOTS)
    looks = np.stack([2.0 * kind - 1, np.zeros(N_SPOTS)], axis=1) + 0.1 * rng.normal(size=(N_SPOTS, 2))
    difference = (2.0 * kind - 1)[:, None] + 0.3 * rng.normal(size=(N_SPOTS, N_GENES))
    field = fit_ratio(sites(XY, looks), difference, pitch_um=200.0)
    assert field.likeness.share > 0
    middle = XY + 100
    other = np.tile([[1.0, 0.0]], (N_SPOTS, 1))
    assert (field.at(sites(middle, other)) - field.at(sites(middle, -other))).min() > 1
    shuffled = fit_ratio(sites(XY, rng.permutation(looks)), field_at(XY), pitch_um=200.0)
    assert shuffled.likeness.share == 0


def test_looks_have_a_mean_squared_length_of_one():
    features = np.random.default_rng(7).normal(size=(30, 5)) * [1, 2, 3, 0, 1] + 9
    found = Looks.over(features).at(features)
    assert np.square(found).sum(axis=1).mean() == pytest.approx(1)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-6)
    assert not Looks.over(features[:1]).at(features[:1]).any()


def test_one_level_is_taken_over_everywhere():
    field = fit_ratio(sites(XY), np.full((N_SPOTS, 1), 0.7), pitch_um=200.0)
    np.testing.assert_allclose(field.at(sites(np.array([[900.0, 3.0]]))), [[0.7]], atol=0.02)


def test_leave_one_out_errors_are_those_of_leaving_one_out():
    values = np.random.default_rng(3).normal(size=(N_SPOTS, 2))
    looks = np.random.default_rng(4).normal(size=(N_SPOTS, 2))
    likeness = Likeness(400.0, 0.3)
    closed = module._left_out(sites(XY, looks), values, likeness)
    kernel = likeness.of(sites(XY, looks), sites(XY, looks))
    for place, noise in enumerate(module._NOISES):
        errors = []
        for spot in range(N_SPOTS):
            rest = np.delete(np.arange(N_SPOTS), spot)
            weights = np.linalg.solve(kernel[np.ix_(rest, rest)] + noise * np.eye(len(rest)), values[rest])
            errors.append(kernel[spot, rest] @ weights - values[spot])
        assert closed[place] == pytest.approx(np.square(errors).mean(), rel=1e-6)


def test_one_spot_is_enough():
    counts = predicted()[:1]
    measured = np.array([[1.0, 2.0, 0.0, 3.0]])
    agreed = fit_measurement(LATTICE, CELLS[:1], PLAIN[CELLS[:1]], counts, measured, pitch_um=200.0)
    adjusted = agreed.adjust(counts[0], CELLS[0], PLAIN[CELLS[0]])
    np.testing.assert_allclose(np.log1p(adjusted.mean(axis=0)), measured[0], atol=1e-10)


def test_spots_that_overlap_and_parts_that_differ_are_refused():
    near = LATTICE.nearest(XY / 8, 123)
    with pytest.raises(OptionError, match="spots overlap: 123 super-pixels each"):
        fit_measurement(LATTICE, near, PLAIN[CELLS], predicted(), np.zeros((N_SPOTS, N_GENES)), pitch_um=200.0)
    with pytest.raises(ShapeError, match=" 62 measured"):
        fit_measurement(LATTICE, CELLS, PLAIN[CELLS], predicted(), np.zeros((62, N_GENES)), pitch_um=200.0)
