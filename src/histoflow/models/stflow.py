"""STFlow: whole-slide flow matching from image embeddings to expression (Huang et al., arXiv 2506.05361)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, ClassVar, Self, final

import numpy as np
import torch
from scipy.spatial import KDTree

from histoflow._errors import NotFittedError, OptionError
from histoflow.flow import EulerSampler, prior_from_name
from histoflow.models.base import Arrays, Estimator
from histoflow.models.inner import InnerFolds, inner_folds
from histoflow.models.member import Crop, Member, Network, Projection, start_noise
from histoflow.models.spots import Floats, Measured, Spots
from histoflow.models.training import History, Training, seeded, train

_SMALLEST_CROP = 2
_HELD_OUT_DRAWS = 2
_NETWORK, _PROJECTION, _MEAN = "network/", "projection/", "mean"


@final
class STFlow(Estimator):
    """Flow matching over all spots of a section together.

    A denoiser learns to tell the measured expression from a noisy version of it, the image and the places of the
    spots; from the prior it then carries a whole section to the data in a few Euler steps. Predictions are the mean of
    several such draws, their spread says how sure the flow is.

    The number of epochs is the median of what inner folds of the training data ask for (see `inner_folds`); then
    networks are trained anew on all of it for as long, from different seeds, and take turns at drawing.

    Parameters
    ----------
    encoder, normalize, seed
        As in `Estimator`.
    network
        Sizes, as `Network` or a mapping of its fields.
    training
        Steps and end, as `Training` or a mapping of its fields.
    prior
        Where the flow starts: ``"zinb"``, ``"gaussian"`` or ``"zero"``.
    n_sample_steps
        Calls of the denoiser per draw, at t = 0, 1/n … (published: 5).
    device
        Where the network runs, as torch names it.

    Raises
    ------
    OptionError
        If an option has a value that is not offered.
    """

    name: ClassVar[str] = "stflow"

    def __init__(
        self,
        *,
        encoder: str = "scatter",
        normalize: str = "library",
        network: Network | None = None,
        training: Training | None = None,
        prior: str = "zinb",
        n_sample_steps: int = 5,
        device: str = "cpu",
        seed: int = 0,
    ) -> None:
        super().__init__(encoder=encoder, normalize=normalize, seed=seed)
        self.network = network or Network()
        self.training = training or Training()
        self.prior = prior_from_name(prior).name
        self.n_sample_steps = n_sample_steps
        self.device = device
        self._sampler = EulerSampler(n_sample_steps)
        self._members: list[Member] = []

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Make an estimator, not fitted, of what `options` returned."""
        kinds = {"network": Network, "training": Training}
        made: dict[str, Any] = {
            key: kinds[key](**value) if key in kinds and isinstance(value, Mapping) else value
            for key, value in options.items()
        }
        return cls(**made)

    @property
    def history_(self) -> dict[str, Any]:
        """Losses and held-out errors by epoch, of the search for the number of epochs and of the final training."""
        history: dict[str, Any] = self.training_.get("history", {})
        return history

    def _fit(self, measured: list[Measured]) -> dict[str, Any]:
        inner = inner_folds([part.spots for part in measured])
        searches = self._search(measured, inner)
        n_epochs = round(float(np.median([h.best_epoch for h in searches]))) if searches else self.training.max_epochs
        options = replace(self.training, max_epochs=n_epochs)
        # Members of neighbouring seeds share none of their networks.
        seeds = [self.seed * options.n_members + number for number in range(options.n_members)]
        trained = [self._train(measured, options, seed, None) for seed in seeds]
        self._members = [member for member, _ in trained]
        history = {
            "search": [asdict(found) for found in searches],
            "final": [asdict(found) for _, found in trained],
        }
        return {"inner_folds": inner.how, "n_epochs": n_epochs, "history": history}

    def _search(self, measured: list[Measured], inner: InnerFolds) -> list[History]:
        """Train on all but one inner fold, and see after how many epochs that fold is predicted best."""
        found = []
        for rows in inner.folds[: self.training.n_searches]:
            train_part, held_out = (_rows(measured, set(side.tolist())) for side in rows)
            found.append(self._train(train_part, self.training, self.seed, held_out)[1])
        return found

    def _train(
        self, measured: list[Measured], options: Training, seed: int, held_out: list[Measured] | None
    ) -> tuple[Member, History]:
        """Train one network; with a part held out, as long as that part gains from it."""
        with seeded(seed) as generator:
            member = self._untrained(measured)
            crops = [member.crop(part.spots, part.log1p) for part in measured]
            history = train(
                member.denoiser,
                lambda: _batches(crops, options, generator),
                lambda batch: member.loss(batch, generator),
                options=options,
                held_out_error=None if held_out is None else lambda: self._error(member, held_out),
                label="stflow" if held_out is None else "stflow, number of epochs",
            )
        return member, history

    def _untrained(self, measured: list[Measured]) -> Member:
        """A member for these training spots, its weights drawn from torch's generator."""
        embeddings = np.concatenate([part.spots.embedding for part in measured])
        projection = Projection.fit(embeddings, self.network.n_components)
        mean = np.concatenate([part.log1p for part in measured]).mean(axis=0, dtype=np.float64)
        return self._member(projection, mean.astype(np.float32))

    def _member(self, projection: Projection, mean: Floats) -> Member:
        if not self.pitch_um_ > 0:
            raise OptionError(
                "no training section states its pitch_um; read sections with hf.read_visium or hf.read_st"
            )
        return Member(
            denoiser=self.network.denoiser(projection.components.shape[1], len(mean)).to(self.device),
            projection=projection,
            mean=torch.from_numpy(mean).to(self.device),
            n_neighbors=self.network.n_neighbors,
            pitch_um=self.pitch_um_,
            prior=prior_from_name(self.prior),
            sampler=self._sampler,
        )

    def _error(self, member: Member, held_out: list[Measured]) -> float:
        """Mean squared error of a prediction of spots that are in no batch."""
        squared = []
        for part in held_out:
            noise = start_noise(member.prior, part.spots, (_HELD_OUT_DRAWS, len(member.mean)), self.seed)
            squared.append((member.carry(noise, part.spots).mean(axis=0) - part.log1p).ravel() ** 2)
        return float(np.concatenate(squared).mean(dtype=np.float64))

    def _draw(self, spots: Spots, n_samples: int) -> Floats:
        """Draw a section; members take turns."""
        members = self._trained()
        n_draws = min(n_samples, len(members)) if self.prior == "zero" else n_samples
        noise = start_noise(members[0].prior, spots, (n_draws, len(members[0].mean)), self.seed)
        draws = np.empty((n_draws, len(spots), len(members[0].mean)), np.float32)
        for number, member in enumerate(members[:n_draws]):
            draws[number :: len(members)] = member.carry(noise[number :: len(members)], spots)
        return draws

    def _trained(self) -> list[Member]:
        if not self._members:
            raise NotFittedError("STFlow is not fitted; call fit first")
        return self._members

    def _facts(self, section: Any, n_draws: int) -> dict[str, Any]:
        return super()._facts(section, n_draws) | {"n_sample_steps": self.n_sample_steps, "prior": self.prior}

    def _state(self) -> Arrays:
        members = self._trained()
        weights = {
            f"{_NETWORK}{number}/{key}": value.cpu().numpy()
            for number, member in enumerate(members)
            for key, value in member.denoiser.state_dict().items()
        }
        projection = {_PROJECTION + key: value for key, value in vars(members[0].projection).items()}
        return weights | projection | {_MEAN: members[0].mean.cpu().numpy()}

    def _restore(self, arrays: Arrays) -> None:
        projection = Projection(**_under(_PROJECTION, arrays))
        self._members = []
        for number in range(self.training.n_members):
            member = self._member(projection, arrays[_MEAN])
            weights = _under(f"{_NETWORK}{number}/", arrays)
            member.denoiser.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})
            member.denoiser.eval()
            self._members.append(member)


def _under(prefix: str, arrays: Arrays) -> Arrays:
    """The arrays whose names begin with `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


def _rows(measured: list[Measured], rows: set[int]) -> list[Measured]:
    """The part of the stacked spots that is in `rows`, section by section; sections without any are left out."""
    parts, start = [], 0
    for part in measured:
        own = np.array([i for i in range(len(part.spots)) if start + i in rows], dtype=np.intp)
        start += len(part.spots)
        if len(own):
            spots = part.spots
            arrays = {key: getattr(spots, key)[own] for key in ("ids", "xy_um", "tissue", "embedding")}
            parts.append(Measured(replace(spots, **arrays), part.log1p[own], part.totals[own]))
    return parts


def _batches(sections: list[Crop], options: Training, generator: torch.Generator) -> list[list[Crop]]:
    """Random contiguous crops of every section, shuffled and grouped.

    A crop is the n spots nearest to a random one, n uniform between two and all of the section (published recipe).
    """
    crops = [
        _random_crop(section, options, generator) for section in sections for _ in range(options.crops_per_section)
    ]
    order = torch.randperm(len(crops), generator=generator).tolist()
    return [[crops[i] for i in order[k : k + options.batch_size]] for k in range(0, len(order), options.batch_size)]


def _random_crop(section: Crop, options: Training, generator: torch.Generator) -> Crop:
    n_spots = len(section.xy)
    u, centre = torch.rand((), generator=generator).item(), int(torch.randint(n_spots, (), generator=generator))
    size = min(max(_SMALLEST_CROP, int(u * n_spots)), options.max_crop_spots, n_spots)
    _, near = KDTree(section.xy).query(section.xy[centre], k=np.arange(1, size + 1))
    return Crop(section.features[near], section.xy[near], section.tissue[near], section.log1p[near])
