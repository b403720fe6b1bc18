"""Dropout: rates, scale, independence, keys, and its gradient."""

import pytest
import torch

from histoflow.flow.dropout import Dropout, Keep, new_key

DTYPES = [torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rate", [0.05, 0.2, 0.5, 0.9])
def test_a_number_is_dropped_with_the_probability_asked_for(rate, dtype):
    kept = Keep.of(torch.ones(400, 501, dtype=dtype), rate, (7,)).zero_(torch.ones(400, 501, dtype=dtype)).double()
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert kept.mean().item() == pytest.approx(1 - rate, abs=0.005)
    neighbours = torch.corrcoef(torch.stack([kept[:, :-1].flatten(), kept[:, 1:].flatten()]))
    assert abs(neighbours[0, 1].item()) < 0.01


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (3, 1), (5, 7)])
def test_a_key_brings_the_choice_back_and_another_key_another(shape, dtype):
    x = torch.full(shape, torch.nan, dtype=dtype)
    masks = [Keep.of(x, 0.5, key).zero_(torch.ones(shape, dtype=dtype)) for key in ((1, 2), (1, 2))]
    assert torch.equal(*masks)
    large = torch.ones(64, 64, dtype=dtype)
    one, two = (Keep.of(large, 0.5, key).zero_(large.clone()) for key in ((1, 2), (1, 3)))
    assert 0.4 < (one != two).double().mean() < 0.6


def test_dropout_rescales_in_training_only_and_its_gradient_is_its_mask():
    layer, x = Dropout(0.25), torch.randn(100, 30, dtype=torch.float64, requires_grad=True)
    found = layer(x)
    found.sum().backward()
    torch.testing.assert_close(found, x * x.grad)
    assert set(x.grad.unique().tolist()) == {0.0, 1 / 0.75}
    assert layer.eval()(x) is x


def test_keys_come_from_torchs_generator():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first = [new_key(), new_key()]
        torch.manual_seed(3)
        assert [new_key(), new_key()] == first
    assert first[0] != first[1]


def test_a_tensor_that_is_not_contiguous_is_dropped_alike():
    x = torch.ones(6, 8).t()
    found = Dropout(0.5)(x)
    assert set(found.unique().tolist()) <= {0.0, 2.0}
    assert found.shape == x.shape
