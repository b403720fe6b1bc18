"""STFlow: whole-slide flow matching from image embeddings to expression (Huang et al., arXiv 2506.05361)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, ClassVar, Self, final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import KDTree

from histoflow._errors import NotFittedError, OptionError
from histoflow.flow import Denoiser, EulerSampler, draw_keys_from, prior_from_name
from histoflow.models.anchor import Anchor, fit_anchor, held_out, low_rank
from histoflow.models.arrays import Arrays, named, under, with_weights
from histoflow.models.base import Estimator
from histoflow.models.departure import Departure
from histoflow.models.inner import InnerFolds, inner_folds
from histoflow.models.member import Crop, Member, Network, Projection, start_noise
from histoflow.models.noise import prior_noise, shelved
from histoflow.models.parts import Drawer, MakeShelf, Part, Reach
from histoflow.models.progress import Bookmark
from histoflow.models.recipes import recipe_from_name
from histoflow.models.ridge import stacked
from histoflow.models.side_by_side import Course, finished
from histoflow.models.spots import Floats, Measured, Spots
from histoflow.models.training import History, Training, epochs, seeded
from histoflow.models.views import views_of

_SMALLEST_CROP = 2
_HELD_OUT_DRAWS = 2
_SHARES = np.linspace(0.0, 1.0, 11)
"""Shares of the flow in a prediction that are tried."""
_NETWORK, _PROJECTION, _MEAN = "network/", "projection/", "mean"
_ANCHOR, _DEPARTURE, _SHARE = "anchor/", "departure/", "share"


@final
class STFlow(Estimator):
    """Flow matching over all spots of a section together.

    A denoiser learns to tell the measured expression from a noisy version of it, the image and the places of the
    spots; from the prior it then carries a whole section to the data in a few Euler steps. Predictions are the mean of
    several such draws, their spread says how sure the flow is.

    The number of epochs is the median of what inner folds of the training data ask for (see `inner_folds`); then
    networks are trained anew on all of it for as long, from different seeds, and take turns at drawing.

    The recipe ``"paper"`` is the published model and no more. The default one learns the patterns that genes share
    instead of every gene's counting noise, looks at components of the embeddings that are made less unequal, and
    moves the flow towards what a closed form says of each spot's own image (`models.anchor`), by a share that the
    inner folds choose. Its draws depart from the prediction as the inner folds' measured spots did: as fields over the
    tissue, and together in genes that go together (`models.departure`).

    Parameters
    ----------
    recipe
        ``"default"`` or ``"paper"``, see above and `models.recipes`.
    encoder, normalize, seed
        As in `Estimator`.
    network
        Sizes and prior; None for the recipe's.
    training
        Steps and end; None for the recipe's.
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
        recipe: str = "default",
        *,
        encoder: str = "scatter",
        normalize: str = "library",
        network: Network | None = None,
        training: Training | None = None,
        n_sample_steps: int = 5,
        device: str = "cpu",
        seed: int = 0,
    ) -> None:
        super().__init__(encoder=encoder, normalize=normalize, seed=seed)
        self.recipe = recipe
        self._recipe = recipe_from_name(recipe)
        self.network = network or self._recipe.network
        self.training = training or self._recipe.training
        self._prior = prior_from_name(self.network.prior)
        self.n_sample_steps = n_sample_steps
        self.device = device
        self._sampler = EulerSampler(n_sample_steps)
        self._members: list[Member] = []
        self._anchor: Anchor | None = None
        self._departure: Departure | None = None
        self._share = 1.0
        self._expected: Floats | None = None

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
        learned = self._learned(measured)
        searches = self._search(measured, inner)
        found = [history for _, history in searches]
        n_epochs = round(float(np.median([h.best_epoch for h in found]))) if found else self.training.max_epochs
        options = replace(self.training, max_epochs=n_epochs)
        # Members of neighbouring seeds share none of their networks.
        seeds = [self.seed * options.n_members + number for number in range(options.n_members)]
        projection = self._projection(learned)
        trained = self._trained_on([self._training(learned, projection, options, seed) for seed in seeds], n_epochs)
        self._members = [member for member, _ in trained]
        history = {"search": [asdict(one) for one in found], "final": [asdict(one) for _, one in trained]}
        told = {"inner_folds": inner.how, "n_epochs": n_epochs, "history": history}
        return told | (self._fit_anchor(measured, learned, inner, searches) if self._recipe.anchored else {})

    def _learned(self, measured: list[Measured], rows: NDArray[np.intp] | None = None) -> list[Measured]:
        """The spots with what is learned of their expression, if `rows` of them, or all, are trained on."""
        if self._recipe.n_factors is None:
            return measured
        log1p = np.concatenate([part.log1p for part in measured])
        told = low_rank(log1p, self._recipe.n_factors, rows=rows)
        parts = np.split(told, np.cumsum([len(part.log1p) for part in measured])[:-1])
        return [replace(part, log1p=log1p) for part, log1p in zip(measured, parts, strict=True)]

    def _fit_anchor(
        self,
        measured: list[Measured],
        learned: list[Measured],
        inner: InnerFolds,
        searches: list[tuple[Floats, History]],
    ) -> dict[str, Any]:
        """Fit what the flow is moved towards, how far, and how measured spots depart from that."""
        embedding, log1p = stacked(learned)
        raw = np.concatenate([part.log1p for part in measured])
        views = views_of(self.embedding_ or {}, embedding.shape[1])
        n_components = self.network.n_components
        self._anchor = fit_anchor(embedding, log1p, inner, views, n_components=n_components, seed=self.seed)

        def of_rows(rows: NDArray[np.intp]) -> Floats:
            return np.concatenate([part.log1p for part in self._learned(measured, rows)])[rows]

        expected = held_out(self._anchor, embedding, of_rows, inner)
        self._share, by_share = _best_share(raw, expected, [flow for flow, _ in searches], inner)
        for (_, test), (flow, _) in zip(inner.folds, searches, strict=False):
            expected[test] += np.float32(self._share) * (flow - expected[test])
        spots = [part.spots for part in measured]
        self._expected = np.maximum(expected, 0.0)
        residuals = np.split(raw - self._expected, np.cumsum([len(own) for own in spots])[:-1])
        self._departure = Departure.fit(residuals, spots, self.pitch_um_) if inner.folds else None
        alphas = [view.alpha for view in self._anchor.views]
        return {"anchor": {"alpha": alphas}, "flow_share": self._share, "error_by_share": by_share}

    def _search(self, measured: list[Measured], inner: InnerFolds) -> list[tuple[Floats, History]]:
        """Train on all but one inner fold, and see after how many epochs that fold is predicted best, and how."""
        courses, unseen = [], []
        for rows in inner.folds[: self.training.n_searches]:
            learned = self._learned(measured, rows[0])
            seen, held_out = (_rows(learned, set(side.tolist())) for side in rows)
            courses.append(self._training(seen, self._projection(seen), self.training, self.seed, held_out))
            unseen.append(held_out)
        found = self._trained_on(courses, self.training.max_epochs)
        return [
            (np.concatenate([self._expect(member, part) for part in held_out]), history)
            for held_out, (member, history) in zip(unseen, found, strict=True)
        ]

    def _trained_on(self, courses: list[Course[tuple[Member, History]]], n_epochs: int) -> list[tuple[Member, History]]:
        return finished(courses, n_epochs, self.name, beside=torch.device(self.device).type == "cpu")

    def _training(
        self,
        measured: list[Measured],
        projection: Projection,
        options: Training,
        seed: int,
        held_out: list[Measured] | None = None,
    ) -> Course[tuple[Member, History]]:
        """Start one network, and train it; with a part held out, as long as that part gains from it."""
        member, generators = self._untrained(measured, projection, seed)
        crops = [member.crop(part.spots, part.log1p) for part in measured]
        bookmark = self._bookmark(member, options, generators, [*measured, *(held_out or [])])

        def course() -> Course[tuple[Member, History]]:
            history = yield from epochs(
                member.denoiser,
                lambda: _batches(crops, options, generators[0]),
                lambda batch: member.loss(batch, generators[0]),
                options=options,
                held_out_error=None if held_out is None else lambda: self._error(member, held_out),
                label=self.name,
                bookmark=bookmark,
            )
            return member, history

        return course()

    def _untrained(
        self, measured: list[Measured], projection: Projection, seed: int
    ) -> tuple[Member, tuple[torch.Generator, torch.Generator]]:
        """A member, and what its training draws from: one generator for its batches, one for its dropout."""
        mean = np.concatenate([part.log1p for part in measured]).mean(axis=0, dtype=np.float64).astype(np.float32)
        with seeded(seed) as generator:
            member = self._member(self._denoiser(projection, mean), projection, mean)
            of_dropout = torch.Generator()
            of_dropout.set_state(torch.get_rng_state())
        draw_keys_from(member.denoiser, of_dropout)
        return member, (generator, of_dropout)

    def _bookmark(
        self, member: Member, options: Training, generators: tuple[torch.Generator, ...], measured: list[Measured]
    ) -> Bookmark | None:
        """Where a training on these spots, the last of them held out, keeps how far it is."""
        if self._progress is None:
            return None
        crops = [member.crop(part.spots, part.log1p) for part in measured]
        seen = [array for crop in crops for array in crop]
        return Bookmark.of(self._progress, generators, [self.options(), asdict(options)], [*seen, member.mean.cpu()])

    def _projection(self, measured: list[Measured]) -> Projection:
        embeddings = np.concatenate([part.spots.embedding for part in measured])
        return Projection.fit(embeddings, self.network.n_components)

    def _denoiser(self, projection: Projection, mean: Floats) -> Denoiser:
        return self.network.denoiser(projection.components.shape[1], len(mean))

    def _member(self, denoiser: Denoiser, projection: Projection, mean: Floats) -> Member:
        if not self.pitch_um_ > 0:
            raise OptionError(
                "no training section states its pitch_um; read sections with hf.read_visium or hf.read_st"
            )
        return Member(
            denoiser=denoiser.to(self.device),
            projection=projection,
            mean=torch.from_numpy(mean).to(self.device),
            n_neighbors=self.network.n_neighbors,
            pitch_um=self.pitch_um_,
            prior=self._prior,
            sampler=self._sampler,
            precision=self.training.precision,
        )

    def _error(self, member: Member, held_out: list[Measured]) -> float:
        """Mean squared error of a prediction of spots that are in no batch."""
        squared = [(self._expect(member, part) - part.log1p).ravel() ** 2 for part in held_out]
        return float(np.concatenate(squared).mean(dtype=np.float64))

    def _expect(self, member: Member, part: Measured) -> Floats:
        """Mean of a few draws of one network, (n_spots, n_genes), log1p."""
        noise = start_noise(member.prior, part.spots, (_HELD_OUT_DRAWS, len(member.mean)), self.seed)
        expected: Floats = member.carry(noise, part.spots).mean(axis=0)
        return expected

    def _held_out(self) -> Floats | None:
        return self._expected

    def _reach(self) -> Reach:
        return Reach(self.network.n_layers * self.n_sample_steps, self.network.n_neighbors)

    def _n_draws(self, n_samples: int) -> int:
        alike = self._prior.name == "zero" and self._departure is None
        return min(n_samples, len(self._trained())) if alike else n_samples

    def _draw(self, spots: Spots, n_samples: int) -> Floats:
        """Draw a section; members take turns."""
        n_draws, mean = self._n_draws(n_samples), self._trained()[0].mean
        noise = start_noise(self._prior, spots, (n_draws, len(mean)), self.seed)
        draws = self._anchored(self._carried(noise, spots), spots)
        if self._departure is not None:
            draws += self._departure.draw(spots, n_draws, self.pitch_um_, self.seed)
        return draws

    def _drawer(self, places: Spots, n_samples: int, shelf: MakeShelf) -> Drawer:
        """As `_draw`: noise of all places is drawn at once, and belongs to them, not to parts."""
        n_draws, n_genes = self._n_draws(n_samples), len(self._trained()[0].mean)
        start = shelved(
            shelf((n_draws, len(places), n_genes)),
            prior_noise(self._prior, places.ids, (n_draws, n_genes), self.seed),
        )
        departing = None
        if self._departure is not None:
            noise = self._departure.noise_of(places.ids, n_draws, self.seed)
            departing = shelved(shelf((n_draws, len(places), n_genes)), noise)

        def at(around: Spots, part: Part) -> Floats:
            noise = [torch.from_numpy(np.asarray(start[draw, part.around])) for draw in range(n_draws)]
            own = _spots_at(around, part.kept)
            draws = self._anchored(self._carried(noise, around)[:, part.kept], own)
            if self._departure is not None and departing is not None:
                of_places = (departing[draw, part.own] for draw in range(n_draws))
                draws += self._departure.at(own.xy_um / self.pitch_um_, of_places, n_draws, self.seed)
            return draws

        return Drawer(n_draws, at)

    def _carried(self, noise: Sequence[torch.Tensor], spots: Spots) -> Floats:
        """What members make of noise, (n_spots, n_genes) for every draw: (n_draws, n_spots, n_genes), log1p."""
        members = self._trained()
        draws = np.empty((len(noise), len(spots), len(members[0].mean)), np.float32)
        for number, member in enumerate(members[: len(noise)]):
            draws[number :: len(members)] = member.carry(noise[number :: len(members)], spots)
        return draws

    def _anchored(self, draws: Floats, spots: Spots) -> Floats:
        """Draws, moved in place towards what the image of each spot alone says."""
        if self._anchor is not None:
            draws += np.float32(1 - self._share) * (self._anchor.predict(spots.embedding) - draws)
            np.maximum(draws, 0.0, out=draws)
        return draws

    def _trained(self) -> list[Member]:
        if not self._members:
            raise NotFittedError("STFlow is not fitted; call fit first")
        return self._members

    def _facts(self, section: Any, n_draws: int) -> dict[str, Any]:
        return super()._facts(section, n_draws) | {"n_sample_steps": self.n_sample_steps, "prior": self._prior.name}

    def _state(self) -> Arrays:
        members = self._trained()
        weights = {
            f"{_NETWORK}{number}/{key}": value.cpu().numpy()
            for number, member in enumerate(members)
            for key, value in member.denoiser.state_dict().items()
        }
        projection = named(_PROJECTION, vars(members[0].projection))
        return weights | projection | {_MEAN: members[0].mean.cpu().numpy()} | self._anchored_state()

    def _anchored_state(self) -> Arrays:
        anchor = {} if self._anchor is None else self._anchor.arrays()
        departure = {} if self._departure is None else self._departure.arrays()
        return named(_ANCHOR, anchor) | named(_DEPARTURE, departure) | {_SHARE: np.array([self._share])}

    def _restore(self, arrays: Arrays) -> None:
        projection, mean = Projection(**under(_PROJECTION, arrays)), arrays[_MEAN]
        if self.network.n_layers > len(arrays):
            raise ValueError(f"no {self.network.n_layers} layers in {len(arrays)} arrays")
        self._members = []
        for number in range(self.training.n_members):
            weights = under(f"{_NETWORK}{number}/", arrays)
            denoiser = with_weights(lambda: self._denoiser(projection, mean), weights)
            self._members.append(self._member(denoiser, projection, mean))
        anchor, departure = (under(prefix, arrays) for prefix in (_ANCHOR, _DEPARTURE))
        self._anchor = Anchor.of(anchor) if anchor else None
        self._departure = Departure.of(departure) if departure else None
        self._share = float(arrays[_SHARE][0])


def _rows(measured: list[Measured], rows: set[int]) -> list[Measured]:
    """The part of the stacked spots that is in `rows`, section by section; sections without any are left out."""
    parts, start = [], 0
    for part in measured:
        own = np.array([i for i in range(len(part.spots)) if start + i in rows], dtype=np.intp)
        start += len(part.spots)
        if len(own):
            parts.append(Measured(_spots_at(part.spots, own), part.log1p[own], part.totals[own]))
    return parts


def _spots_at(spots: Spots, rows: NDArray[np.intp]) -> Spots:
    """Some of the spots of a section."""
    arrays = {key: getattr(spots, key)[rows] for key in ("ids", "xy_um", "tissue", "embedding")}
    return replace(spots, **arrays)


def _best_share(
    measured: Floats, anchored: Floats, flows: list[Floats], inner: InnerFolds
) -> tuple[float, dict[str, float]]:
    """The share of the flow with the lowest squared error on the folds that were searched; half without any."""
    errors = np.zeros(len(_SHARES))
    for (_, test), flow in zip(inner.folds, flows, strict=False):
        blends = (anchored[test] + share * (flow - anchored[test]) for share in _SHARES)
        errors += [float(np.square(blend - measured[test]).mean(dtype=np.float64)) for blend in blends]
    if not flows:
        return 0.5, {}
    by_share = {f"{share:.1f}": error / len(flows) for share, error in zip(_SHARES, errors.tolist(), strict=True)}
    return float(_SHARES[errors.argmin()]), by_share


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
