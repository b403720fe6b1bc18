"""Path: exact ends, slope, and the errors it promises."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from histoflow._errors import ShapeError
from histoflow.flow import LinearPath


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X0, X1 = randn(7, 3, seed=0), randn(7, 3, seed=1)


@pytest.mark.parametrize("shape", [(), (7, 1)])
@pytest.mark.parametrize(("time", "end"), [(0.0, X0), (1.0, X1)])
def test_path_starts_at_the_prior_and_ends_at_the_data(time, end, shape):
    x_t, _ = LinearPath().sample(X0, X1, torch.full(shape, time, dtype=torch.float64))
    torch.testing.assert_close(x_t, end)


@given(time=st.floats(0.01, 0.99))
def test_velocity_is_the_slope_of_the_path(time):
    t, h = torch.tensor(time, dtype=torch.float64), 1e-4
    before, here, after = (LinearPath().sample(X0, X1, t + d) for d in (-h, 0, h))
    torch.testing.assert_close((after.x_t - before.x_t) / (2 * h), here.velocity)


def test_stacked_sections_keep_their_own_time():
    t = torch.tensor([0.2] * 3 + [0.9] * 4, dtype=torch.float64)[:, None]
    x_t, _ = LinearPath().sample(X0, X1, t)
    torch.testing.assert_close(x_t[:3], LinearPath().sample(X0[:3], X1[:3], t[0, 0]).x_t)
    torch.testing.assert_close(x_t[3:], LinearPath().sample(X0[3:], X1[3:], t[3, 0]).x_t)


def test_wrong_time_shape_says_what_came_and_what_was_wanted():
    with pytest.raises(ShapeError, match=r"t must have shape \(\) or \(7, 1\), got \(7,\)"):
        LinearPath().sample(X0, X1, torch.zeros(7))


def test_ends_of_different_shape_are_named():
    with pytest.raises(ShapeError, match=r"x0 has shape \(6, 3\) but x1 has \(7, 3\)"):
        LinearPath().sample(X0[:6], X1, torch.tensor(0.5))
