"""The one training loop: seed, optimiser, early stopping on held-out training spots, history."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from histoflow._errors import NotFiniteError, OptionError
from histoflow.flow import PRECISIONS, matrices
from histoflow.models.progress import Bookmark, Reached
from histoflow.models.side_by_side import Course, finished

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Training:
    """How long, and in which steps, networks are trained.

    The defaults are those published for STFlow but for the end and the number of networks.

    Parameters
    ----------
    max_epochs
        Epochs at most.
    patience
        Epochs without a better held-out error after which training ends.
    learning_rate
        Of Adam.
    crops_per_section
        Contiguous crops of each section per epoch.
    batch_size
        Crops per step.
    max_crop_spots
        Spots of a crop at most: bounds memory.
    clip_norm
        Gradients are scaled down to this norm.
    n_members
        Networks trained alike but from different seeds, which take turns at drawing (published: one).
    n_searches
        Inner folds, at most, on which the number of epochs is chosen; 0 to train for `max_epochs`.
    precision
        Of matrix products, in training and in drawing: ``"fp32"``, or ``"bf16"``, which is faster where a processor has
        instructions for it. Weights, sums and logits are float32 either way; estimates differ by some two
        hundredths of their spread.
    """

    max_epochs: int = 30
    patience: int = 6
    learning_rate: float = 5e-4
    crops_per_section: int = 10
    batch_size: int = 2
    max_crop_spots: int = 1024
    clip_norm: float = 1.0
    n_members: int = 2
    n_searches: int = 3
    precision: str = "fp32"

    def __post_init__(self) -> None:
        """Refuse values that train nothing."""
        if self.precision not in PRECISIONS:
            raise OptionError(f"precision is {self.precision}; choose one of {', '.join(PRECISIONS)}")
        for name, value in vars(self).items():
            if name != "precision" and not value > 0 and (name, value) != ("n_searches", 0):
                raise OptionError(f"{name} is {value}; give a number above 0")


@dataclass(frozen=True)
class History:
    """What happened in a training.

    Attributes
    ----------
    loss
        Mean training loss of each epoch.
    held_out
        Held-out error after each epoch; empty where nothing was held out.
    best_epoch
        Epochs after which the held-out error was lowest; all of them where nothing was held out.
    """

    loss: tuple[float, ...]
    held_out: tuple[float, ...]
    best_epoch: int


@contextmanager
def seeded(seed: int) -> Iterator[torch.Generator]:
    """Seed torch for a block, and give back the state of the caller afterwards.

    Initial weights, and dropout that nobody gave another source, draw from torch's own generator.

    Yields
    ------
    A generator of its own for everything else, of the same seed.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield torch.Generator().manual_seed(seed)


def train(
    network: nn.Module,
    batches: Callable[[], Sequence[Batch]],
    loss: Callable[[Batch], Tensor],
    *,
    options: Training,
    held_out_error: Callable[[], float] | None = None,
    label: str = "training",
    bookmark: Bookmark | None = None,
) -> History:
    """Train a network, see `epochs`; `label` is what the progress bar says."""
    course = epochs(
        network, batches, loss, options=options, held_out_error=held_out_error, label=label, bookmark=bookmark
    )
    return finished([course], options.max_epochs, label)[0]


def epochs(
    network: nn.Module,
    batches: Callable[[], Sequence[Batch]],
    loss: Callable[[Batch], Tensor],
    *,
    options: Training,
    held_out_error: Callable[[], float] | None = None,
    label: str = "training",
    bookmark: Bookmark | None = None,
) -> Course[History]:
    """Train a network in place; with a held-out error, stop early and return to its best weights.

    Parameters
    ----------
    network
        Trained in place; in evaluation mode afterwards.
    batches
        Makes the batches of an epoch.
    loss
        Mean loss of a batch, shape ().
    options
        Steps and end.
    held_out_error
        Error on spots that are in no batch, with the network in evaluation mode; None to train to the last epoch.
    label
        What errors call it.
    bookmark
        Where it is kept after every epoch how far the training is, and taken up from there; None for nowhere.

    Yields
    ------
    The number of epochs done, after each of them; what happened is returned at the end.

    Raises
    ------
    NotFiniteError
        If a held-out error is NaN or infinite.
    """
    fused = next(network.parameters()).device.type in {"cpu", "cuda"}  # one pass over the weights; not on every device
    optimiser = torch.optim.Adam(network.parameters(), lr=options.learning_rate, fused=fused)
    reached = (bookmark and bookmark.read(network, optimiser)) or Reached.start(network)
    left = range(0) if reached.finished else range(len(reached.losses) + 1, options.max_epochs + 1)
    for epoch in left:
        reached.losses.append(_epoch(network, optimiser, batches(), loss, options))
        if held_out_error is None:
            reached.best = epoch
        else:
            _judge(reached, network, held_out_error(), label)
        reached.finished = epoch == options.max_epochs or epoch - reached.best >= options.patience
        if bookmark is not None:
            bookmark.write(network, optimiser, reached)
        yield epoch
        if reached.finished:
            break
    if held_out_error is not None:
        network.load_state_dict(reached.best_weights)
    network.eval()
    return History(tuple(reached.losses), tuple(reached.errors), reached.best)


def _judge(reached: Reached, network: nn.Module, error: float, label: str) -> None:
    """Take down the held-out error of an epoch, and its weights where it is the lowest so far."""
    epoch = len(reached.losses)
    if not math.isfinite(error):
        raise NotFiniteError(
            f"{label}: the held-out error of epoch {epoch} is {error}; look at the embeddings, or give a "
            "smaller learning_rate"
        )
    if error < min(reached.errors, default=math.inf):
        reached.best, reached.best_weights = epoch, copy.deepcopy(network.state_dict())
    reached.errors.append(error)


def _epoch(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    batches: Sequence[Batch],
    loss: Callable[[Batch], Tensor],
    options: Training,
) -> float:
    """One pass over the batches; their mean loss."""
    network.train()
    total = 0.0
    for batch in batches:
        optimiser.zero_grad()
        with matrices(options.precision, next(network.parameters()).device):
            error = loss(batch)
        error.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), options.clip_norm)
        optimiser.step()
        total += error.item()
    network.eval()
    return total / max(len(batches), 1)
