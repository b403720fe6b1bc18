"""Priors: published moments, agreement with the textbook distribution, seeds, errors."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats

from histoflow._errors import OptionError
from histoflow.flow import GaussianPrior, ZeroPrior, ZINBPrior, prior_from_name

NAMES = ["zinb", "gaussian", "zero"]


def draw(prior, shape=(400, 500), seed=0):
    return prior.sample(shape, torch.Generator().manual_seed(seed))


def test_zinb_has_the_published_moments():
    log1p = draw(ZINBPrior()).double()
    counts = log1p.expm1()
    assert counts.mean().item() == pytest.approx(0.553, abs=0.01)
    assert counts.var().item() == pytest.approx(1.469, abs=0.05)
    assert (counts == 0).double().mean().item() == pytest.approx(0.7375, abs=0.004)
    assert log1p.mean().item() == pytest.approx(0.274, abs=0.004)
    assert log1p.std().item() == pytest.approx(0.503, abs=0.004)


@pytest.mark.parametrize("constants", [(1.0, 0.1, 0.0), (0.4, 1.0, -1.0), (3.5, -0.5, 1.5)])
def test_zinb_counts_follow_the_negative_binomial(constants):
    total_count, logits, zi_logits = constants
    counts = np.expm1(draw(ZINBPrior(total_count, logits, zi_logits)).double().numpy()).round()
    extra_zero = 1 / (1 + np.exp(-zi_logits))
    expected = (1 - extra_zero) * stats.nbinom(total_count, 1 / (1 + np.exp(logits))).pmf(np.arange(12))
    expected[0] += extra_zero
    np.testing.assert_allclose([(counts == k).mean() for k in range(12)], expected, atol=0.005)


def test_gaussian_is_standard_normal():
    assert stats.kstest(draw(GaussianPrior(), (100, 100)).numpy().ravel(), "norm").pvalue > 0.001


def test_zero_is_zero():
    assert (draw(ZeroPrior(), (3, 2)) == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_draw_whatever_else_is_random(name):
    prior = prior_from_name(name)
    assert prior.name == name
    torch.manual_seed(1)
    first, state = draw(prior, (5, 3), seed=7), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(first, draw(prior, (5, 3), seed=7))
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())
    assert first.shape == (5, 3)
    assert first.dtype == torch.float32


@pytest.mark.parametrize("name", ["zinb", "gaussian"])
def test_another_seed_is_another_draw(name):
    prior = prior_from_name(name)
    assert not torch.equal(draw(prior, (5, 3), seed=0), draw(prior, (5, 3), seed=1))


def test_priors_are_values():
    assert prior_from_name("zinb") == ZINBPrior(total_count=1.0, logits=0.1, zi_logits=0.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        ZINBPrior().logits = 1.0


def test_unknown_prior_is_refused():
    with pytest.raises(OptionError, match="prior is 'uniform'; choose one of zinb, gaussian, zero"):
        prior_from_name("uniform")


@pytest.mark.parametrize("total_count", [0.0, -1.0, float("nan")])
def test_impossible_dispersion_is_refused(total_count):
    with pytest.raises(OptionError, match=r"total_count is .*; give an inverse dispersion above 0"):
        ZINBPrior(total_count=total_count)
