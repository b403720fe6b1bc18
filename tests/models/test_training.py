"""The training loop: best weights come back, patience ends it, history tells it, the caller's randomness is kept."""

import numpy as np
import pytest
import torch
from torch import nn

from histoflow._errors import OptionError
from histoflow.models import Training
from histoflow.models.training import History, seeded, train


class Run:
    """One small training: a single weight that every batch pulls upwards, its held-out errors read from a script."""

    def __init__(self, errors=None, *, batches=((1.0,),), **options):
        self.network = nn.Linear(1, 1, bias=False)
        self.before, self.weights, self.modes = [], [], []
        self._script = iter(errors or ())
        self._batches = batches
        held_out = None if errors is None else self._error
        options = Training(**({"max_epochs": 9, "patience": 2} | options))
        self.history = train(self.network, self._epoch, self._loss, options=options, held_out_error=held_out)

    def _epoch(self):
        self.before.append(self.network.weight.item())
        return list(self._batches)

    def _loss(self, batch):
        self.modes.append(self.network.training)
        return (self.network(torch.tensor([batch])) * -1).sum()

    @property
    def n_epochs(self):
        return len(self.before)

    def _error(self):
        self.modes.append(self.network.training)
        self.weights.append(self.network.weight.item())
        return next(self._script)


@pytest.mark.parametrize(
    ("errors", "best", "n_run"),
    [
        ([3.0, 1.0, 2.0, 2.0], 2, 4),
        ([1.0, 1.0, 1.0], 1, 3),  # as good is not better
        ([5.0, 6.0, 4.0, 4.5, 3.0, 3.1, 3.2], 5, 7),  # patience counts from the best so far
        ([9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0], 9, 9),
    ],
)
def test_training_stops_after_patience_and_returns_to_the_best_weights(errors, best, n_run):
    run = Run(errors)
    assert run.history.best_epoch == best
    assert run.history.held_out == tuple(errors[:n_run])
    assert len(run.history.loss) == run.n_epochs == n_run
    assert np.all(np.diff(run.weights) > 0)  # each epoch has weights of its own
    assert run.network.weight.item() == run.weights[best - 1]


@pytest.mark.parametrize(("patience", "n_run"), [(1, 2), (3, 4)])
def test_patience_is_the_number_of_epochs_without_a_better_error(patience, n_run):
    assert Run([1.0, 2.0, 2.0, 2.0, 2.0], patience=patience).n_epochs == n_run


def test_without_anything_held_out_the_last_epoch_stands():
    run = Run(max_epochs=4)
    assert run.n_epochs == len(run.history.loss) == run.history.best_epoch == 4
    assert run.history.held_out == ()
    assert run.network.weight.item() > run.before[-1] > run.before[0]


def test_the_network_trains_in_training_mode_and_is_judged_in_the_other():
    run = Run([1.0, 2.0, 3.0])
    assert run.modes == [True, False] * 3
    assert not run.network.training


def test_a_loss_in_the_history_is_the_mean_over_its_batches():
    torch.manual_seed(0)
    run = Run(batches=((1.0,), (2.0,), (6.0,)), max_epochs=1, learning_rate=1e-12)
    assert run.history.loss == (pytest.approx(-3.0 * run.network.weight.item()),)


def test_an_epoch_without_batches_is_no_division_by_zero():
    assert Run(batches=(), max_epochs=2).history == History((0.0, 0.0), (), 2)


def test_gradients_are_clipped_to_the_norm(monkeypatch):
    seen, step = [], torch.optim.Adam.step

    def watched(self, *args, **kwargs):
        seen.append(self.param_groups[0]["params"][0].grad.item())
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    Run(batches=((100.0,), (0.25,)), max_epochs=1, clip_norm=0.5)
    assert seen == pytest.approx([-0.5, -0.25], rel=1e-4)


def test_a_seed_gives_the_same_numbers_and_the_caller_its_own_back():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    drawn = []
    for seed in (1, 1, 2):
        with seeded(seed) as generator:
            drawn.append((torch.rand(3), torch.rand(3, generator=generator)))
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)
    first, second, other = drawn
    for one, two, three in zip(first, second, other, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)
        assert not torch.equal(one, three)


def test_the_callers_randomness_comes_back_after_an_error_too():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    with pytest.raises(ZeroDivisionError), seeded(1):
        _ = torch.rand(3) / (1 // 0)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("value", [0, -1, float("nan")])
@pytest.mark.parametrize("name", sorted(set(vars(Training())) - {"precision"}))
def test_options_that_train_nothing_are_refused(name, value):
    if (name, value) == ("n_searches", 0):
        assert Training(n_searches=0).n_searches == 0
        return
    with pytest.raises(OptionError, match=f"{name} is {value}; give a number above 0"):
        Training(**{name: value})


def test_an_unknown_precision_is_refused():
    with pytest.raises(OptionError, match="precision is fp16; choose one of fp32, bf16"):
        Training(precision="fp16")


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_matrix_products_of_a_loss_are_of_the_precision_asked_for(precision, dtype):
    network, seen = nn.Linear(2, 1), []

    def loss(batch):
        seen.append(network(batch).dtype)
        return network(batch).float().mean()

    train(network, lambda: [torch.ones(3, 2)], loss, options=Training(max_epochs=1, precision=precision))
    assert seen == [dtype]
    assert {p.dtype for p in network.parameters()} == {torch.float32}
