"""Fields: noise has the promised correlation, streaks their direction, means and changes of grid their oracle."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from histoflow.datasets.fields import disc_mean, disc_offsets, resize, sample, scaled_shape, smooth_noise, streaks


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("scale", [2.0, 5.0])
def test_noise_is_standard_and_correlated_as_its_gaussian_says(rng, scale):
    noise = smooth_noise(rng, (512, 600), scale)
    assert noise.dtype == np.float32
    assert noise.mean() == pytest.approx(0, abs=1e-4)
    assert noise.std() == pytest.approx(1, abs=1e-4)
    for lag in (2, 5):  # the square of a Gaussian transfer function has sqrt(2) its width in space
        assert (noise[:, lag:] * noise[:, :-lag]).mean() == pytest.approx(np.exp(-(lag**2) / (4 * scale**2)), abs=0.05)


@pytest.mark.parametrize(("angle", "along", "across"), [(0.0, 1, 0), (np.pi / 2, 0, 1)])
def test_streaks_run_along_the_direction(rng, angle, along, across):
    noise = smooth_noise(rng, (200, 200), 1.3)
    streaky = streaks(noise, np.full(noise.shape, angle), step=3, doublings=3)

    def correlation(axis):
        return (streaky * np.roll(streaky, 8, axis)).mean()

    assert streaky.std() == pytest.approx(1, abs=1e-3)
    assert correlation(along) > 0.6
    assert abs(correlation(across)) < 0.15


def test_disc_mean_is_the_weighted_mean_of_the_pixels_in_the_disc(rng):
    field, weight, radius = rng.normal(size=(23, 31)), rng.integers(0, 2, (23, 31)), 4.3
    mean = disc_mean(field, weight, radius)
    rows, columns = np.indices(field.shape)
    for row, column in [(0, 0), (11, 15), (22, 30)]:
        inside = (np.hypot(rows - row, columns - column) <= radius) & (weight > 0)
        assert mean[row, column] == pytest.approx(field[inside].mean())


@given(radius=st.floats(0, 12))
def test_disc_offsets_are_all_lattice_points_in_the_disc(radius):
    expected = {(x, y) for x in range(-13, 14) for y in range(-13, 14) if np.hypot(x, y) <= radius}
    assert {tuple(xy) for xy in disc_offsets(radius)} == expected


PLANE = st.tuples(*[st.floats(-3, 3)] * 3)


@given(plane=PLANE, x=st.floats(0.5, 19.5), y=st.floats(0.5, 9.5))
def test_sampling_a_plane_is_exact_in_x_and_y(plane, x, y):
    rows, columns = np.indices((10, 20)) + 0.5
    field = plane[0] + plane[1] * columns + plane[2] * rows
    assert sample(field, np.array([[x, y]]))[0] == pytest.approx(plane[0] + plane[1] * x + plane[2] * y, abs=1e-6)


@given(plane=PLANE, height=st.integers(2, 40), width=st.integers(2, 40))
def test_resizing_keeps_a_plane_between_the_outermost_pixel_centres(plane, height, width):
    def on(shape):
        y, x = ((np.indices(shape) + 0.5).T / shape).T
        inner = (abs(x - 0.5) <= 0.5 - 0.5 / 20) & (abs(y - 0.5) <= 0.5 - 0.5 / 10)
        return plane[0] + plane[1] * x + plane[2] * y, inner

    expected, inner = on((height, width))
    np.testing.assert_allclose(resize(on((10, 20))[0], (height, width))[inner], expected[inner], atol=1e-5)


def test_scaled_shape_rounds_height_and_width():
    assert scaled_shape(np.zeros((10, 21)), 0.52) == (5, 11)
