"""Dropout: rates, scale, independence, keys, its gradient, and the same choice by both ways."""

import pytest
import torch

from histoflow.flow.dropout import Choice, Dropout, FramesDropout, draw_keys_from, scaled

CPU = torch.device("cpu")


def scaled_by_frames(x, key, first):
    """Rows of `x` plus one, scaled, and their sum."""
    made, one = torch.empty_like(x), torch.ones(x.shape[1], dtype=x.dtype)
    total = torch.zeros_like(one)
    FramesDropout(Choice.of(0.3, key), 0.3).scale(x, one, first, made, total)
    return made, total


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.5, 0.9])
def test_a_number_is_dropped_with_the_probability_asked_for(rate):
    kept = Choice.of(rate, 7).kept((400, 501), 0, CPU).double()
    assert kept.mean().item() == pytest.approx(1 - rate, abs=0.005)
    for apart in (1, 2, 64, 501):
        flat = kept.flatten()
        assert abs(torch.corrcoef(torch.stack([flat[:-apart], flat[apart:]]))[0, 1].item()) < 0.01


def test_shares_of_frames_have_the_mean_and_variance_of_four_choices():
    found, total = scaled_by_frames(torch.zeros(300, 400, dtype=torch.float64), 2, 0)
    torch.testing.assert_close(found.sum(dim=0), total)
    assert found.mean().item() == pytest.approx(1, abs=0.005)
    assert found.var().item() == pytest.approx(0.3 / 0.7 / 4, rel=0.02)
    assert len(found.unique()) == 5


def test_a_key_brings_the_choice_back_and_another_key_another():
    kept = [Choice.of(0.5, *key).kept((64, 64), 0, CPU) for key in ((1, 2), (1, 2), (1, 3))]
    assert torch.equal(*kept[:2])
    assert 0.4 < (kept[0] != kept[2]).double().mean() < 0.6


def test_a_part_of_an_array_is_chosen_for_as_within_it():
    choice = Choice.of(0.5, 1)
    assert torch.equal(choice.kept((10, 8), 0, CPU)[4:], choice.kept((6, 8), 32, CPU))


def test_nothing_is_dropped_at_rate_zero():
    assert Choice.of(0.0, 1).kept((50,), 0, CPU).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loops_and_torch_choose_alike(dtype, monkeypatch):
    x, choice, found = torch.randn(37, 11, dtype=dtype), Choice.of(0.3, 2**61), []
    for device in ("processor", "other"):
        if device == "other":
            monkeypatch.setattr("histoflow.flow.dropout.compiled", lambda x: False)
        found.append((scaled(x, choice, 1 / 0.7), *scaled_by_frames(x, 2**61, 2**33 + 5)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_dropout_rescales_in_training_only_and_its_gradient_is_its_mask():
    layer, x = Dropout(0.25), torch.randn(100, 30, dtype=torch.float64, requires_grad=True)
    found = layer(x)
    found.sum().backward()
    torch.testing.assert_close(found, x * x.grad)
    assert set(x.grad.unique().tolist()) == {0.0, 1 / 0.75}
    assert layer.eval()(x) is x


def test_keys_come_from_torchs_generator_unless_another_is_given():
    layer = Dropout(0.5)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first = [layer.new_key(), layer.new_key()]
        torch.manual_seed(3)
        assert [layer.new_key(), layer.new_key()] == first
        draw_keys_from(torch.nn.Sequential(layer), torch.Generator().manual_seed(3))
        before = torch.get_rng_state()
        assert [layer.new_key(), layer.new_key()] == first
        assert torch.equal(torch.get_rng_state(), before)
    assert first[0] != first[1]


def test_where_nothing_is_dropped_no_key_is_drawn():
    before = torch.get_rng_state()
    assert Dropout(0.0).new_key() == Dropout(0.5).eval().new_key() == 0
    assert torch.equal(torch.get_rng_state(), before)


def test_a_tensor_that_is_not_contiguous_is_dropped_alike():
    x = torch.ones(6, 8).t()
    found = Dropout(0.5)(x)
    assert set(found.unique().tolist()) <= {0.0, 2.0}
    assert found.shape == x.shape
