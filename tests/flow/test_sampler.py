"""Sampler: times of its calls, perfect denoisers, first-order convergence."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from histoflow._errors import OptionError
from histoflow.flow import EulerSampler


def test_five_steps_are_five_calls_at_even_times():
    times = []

    def denoiser(x, t):
        times.append(t.item())
        assert t.shape == ()
        return x

    EulerSampler(5).sample(denoiser, torch.zeros(2, 2, dtype=torch.float64))
    assert times == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])


@given(n_steps=st.integers(1, 40))
def test_sampler_returns_a_perfect_denoisers_answer(n_steps):
    x0, x1 = torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(EulerSampler(n_steps).sample(lambda x, t: x1, x0), x1)


def test_sampler_converges_at_first_order():
    # Data N(0, 1), prior N(0, s^2): E[x1 | x_t] is linear and the exact flow maps x0 to x0 / s.
    s, x0 = 2.0, torch.ones(1, 1, dtype=torch.float64)

    def posterior_mean(x, t):
        return x * t / (t**2 + (1 - t) ** 2 * s**2)

    coarse, middle, fine = ((EulerSampler(n).sample(posterior_mean, x0) - x0 / s).abs().item() for n in (64, 128, 256))
    assert coarse / middle == pytest.approx(2, rel=0.05)
    assert middle / fine == pytest.approx(2, rel=0.05)


def test_sampling_leaves_the_prior_draw_and_keeps_no_gradient():
    x0 = torch.zeros(2, 2)
    weight = torch.ones(2, 2, requires_grad=True)
    assert not EulerSampler().sample(lambda x, t: x + weight, x0).requires_grad
    assert (x0 == 0).all()


def test_no_steps_are_refused():
    with pytest.raises(OptionError, match="n_steps is 0; give at least 1 call"):
        EulerSampler(0)
