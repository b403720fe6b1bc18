"""How far trainings are, so that a killed fit is taken up at its last epoch: what is kept, not where."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from histoflow._files import value_hash
from histoflow.models.arrays import Arrays, named, under

_NETWORK, _BEST, _OPTIMISER = "network/", "best/", "optimiser/"
_LOSSES, _ERRORS, _BEST_EPOCH, _FINISHED = "losses", "errors", "best_epoch", "finished"
_GENERATOR, _DEVICE = "generator/", "device"


class Progress(Protocol):
    """Keeps arrays of one fit by name; `workflow.ProgressFolder` keeps them in files."""

    def read(self, name: str) -> Arrays | None:
        """Give what was written last under a name; None where there is nothing, or nothing whole."""

    def write(self, name: str, arrays: Arrays) -> None:
        """Keep arrays under a name, in place of those before, whole or not at all."""


@dataclass
class Reached:
    """How far a training is.

    Attributes
    ----------
    losses, errors
        As in `training.History`, so far.
    best
        Epochs after which the held-out error was lowest.
    best_weights
        The weights then.
    finished
        Whether no epoch is left.
    """

    best_weights: dict[str, Tensor]
    losses: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    best: int = 0
    finished: bool = False

    @classmethod
    def start(cls, network: nn.Module) -> Reached:
        """Before the first epoch."""
        return cls(copy.deepcopy(network.state_dict()))


@dataclass(frozen=True)
class Bookmark:
    """Where one training keeps how far it is.

    Attributes
    ----------
    progress
        Of the fit.
    name
        Of the training: a hash of all that tells it from others of the fit.
    generators
        All that the training draws from.
    """

    progress: Progress
    name: str
    generators: tuple[torch.Generator, ...]

    @classmethod
    def of(
        cls, progress: Progress, generators: tuple[torch.Generator, ...], told: Any, arrays: Iterable[Any]
    ) -> Bookmark:
        """Name a training by JSON-able values and by the content of arrays or tensors, which it depends on."""
        seen = [_content(np.asarray(array)) for array in arrays]
        return cls(progress, value_hash([told, generators[0].initial_seed(), seen]), generators)

    def read(self, network: nn.Module, optimiser: torch.optim.Optimizer) -> Reached | None:
        """Put everything back to where the training was after its last epoch; None where nothing was kept."""
        kept = self.progress.read(self.name)
        if kept is None:
            return None
        network.load_state_dict(_tensors(under(_NETWORK, kept)))
        best = _tensors(under(_BEST, kept))
        if not kept[_FINISHED]:
            self._restore_optimiser(optimiser, under(_OPTIMISER, kept))
            for number, generator in enumerate(self.generators):
                generator.set_state(torch.from_numpy(kept[f"{_GENERATOR}{number}"]))
            if _DEVICE in kept:
                torch.cuda.set_rng_state(torch.from_numpy(kept[_DEVICE]), _device(network))
        told = (kept[_LOSSES].tolist(), kept[_ERRORS].tolist(), int(kept[_BEST_EPOCH]), bool(kept[_FINISHED]))
        return Reached(best, *told)

    def write(self, network: nn.Module, optimiser: torch.optim.Optimizer, reached: Reached) -> None:
        """Keep how far the training is, at the end of an epoch."""
        numbers = {_LOSSES: np.array(reached.losses, np.float64), _ERRORS: np.array(reached.errors, np.float64)}
        numbers |= {_BEST_EPOCH: np.array(reached.best), _FINISHED: np.array(reached.finished)}
        weights = named(_NETWORK, _arrays(network.state_dict()))
        weights |= named(_BEST, _arrays(reached.best_weights)) if reached.errors else {}
        self.progress.write(
            self.name, numbers | weights | ({} if reached.finished else self._moving(network, optimiser))
        )

    def _moving(self, network: nn.Module, optimiser: torch.optim.Optimizer) -> Arrays:
        """What the next epoch needs beside the weights."""
        state = optimiser.state_dict()["state"]
        moments = {f"{_OPTIMISER}{number}/{key}": value for number, own in state.items() for key, value in own.items()}
        states = {f"{_GENERATOR}{number}": one.get_state() for number, one in enumerate(self.generators)}
        if _device(network).type == "cuda":
            states[_DEVICE] = torch.cuda.get_rng_state(_device(network))
        return _arrays(moments | states)

    @staticmethod
    def _restore_optimiser(optimiser: torch.optim.Optimizer, kept: Arrays) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        for path, value in kept.items():
            number, _, key = path.partition("/")
            state.setdefault(int(number), {})[key] = torch.from_numpy(value)
        optimiser.load_state_dict(optimiser.state_dict() | {"state": state})


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


def _arrays(tensors: dict[str, Tensor]) -> Arrays:
    return {key: value.detach().cpu().numpy() for key, value in tensors.items()}


def _tensors(arrays: Arrays) -> dict[str, Tensor]:
    return {key: torch.from_numpy(value) for key, value in arrays.items()}


def _content(array: NDArray[Any]) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(array).data)
    return f"{array.dtype} {array.shape} {digest.hexdigest()}"
