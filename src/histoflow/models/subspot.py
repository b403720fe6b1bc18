"""SubspotRegressor: from the sums that spots measure to the super-pixels within them ("istar")."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar, Self, final

import numpy as np
import torch
from numpy.typing import NDArray

from histoflow._errors import NotFittedError, OptionError, ShapeError
from histoflow.models.arrays import Arrays, under, with_weights
from histoflow.models.base import Estimator
from histoflow.models.inner import Indices, InnerFolds, inner_folds
from histoflow.models.linear import LinearHead, RidgePath
from histoflow.models.progress import Bookmark
from histoflow.models.ridge_folds import fit_grouped_ridge
from histoflow.models.spots import Floats, Measured, Spots
from histoflow.models.superpixels import Bags, Sizes, SuperpixelHead, principal_components
from histoflow.models.training import History, Training, seeded, train

_TRAINING = Training(max_epochs=40, patience=8, learning_rate=1e-3, batch_size=32, n_members=5)
_MEMBER = "member/"
_SPOTS_AT_ONCE = 64


@final
class SubspotRegressor(Estimator):
    """Learn the expression of super-pixels of 8 µm from spots, of which only the sum over their super-pixels is known.

    A super-pixel is described by what is in and around it (`pp.DenseEmbedder`). Its expression is a ridge regression
    on that and a small network on top; a spot is the mean of its super-pixels. Both are trained on the measured spots
    alone; the strength of the ridge and the number of epochs, which may be none, are chosen on inner folds. Several
    such heads learn from resampled spots: predictions are their mean, the spread is how far they differ.

    Parameters
    ----------
    encoder
        What describes super-pixels: ``"scatter"``, or an encoder with tokens. ``obsm["<encoder>_dense"]`` is looked at.
    normalize, seed
        As in `Estimator`.
    training
        Steps and end, as `Training` or a mapping of its fields; `n_members` heads, `batch_size` spots a step, and
        nothing is cut into crops.
    hidden_dim
        Width of the network.
    n_components
        Principal components of the features that enter the network.
    device
        Where the network runs, as torch names it.

    References
    ----------
    The task and its weak supervision: Zhang et al., Nature Biotechnology 2024 (iStar). The model is our own.
    """

    name: ClassVar[str] = "istar"
    dense: bool = True

    def __init__(
        self,
        *,
        encoder: str = "scatter",
        normalize: str = "library",
        training: Training | None = None,
        hidden_dim: int = 64,
        n_components: int = 48,
        device: str = "cpu",
        seed: int = 0,
    ) -> None:
        super().__init__(encoder=encoder, normalize=normalize, seed=seed)
        if min(hidden_dim, n_components) < 1:
            raise OptionError(f"hidden_dim is {hidden_dim} and n_components {n_components}; give at least 1")
        self.training = training or _TRAINING
        self.hidden_dim, self.n_components = hidden_dim, n_components
        self.device = device
        self._members: list[SuperpixelHead] = []

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Make an estimator, not fitted, of what `options` returned."""
        training = options.get("training")
        made = Training(**training) if isinstance(training, Mapping) else training
        return cls(**{**options, "training": made})

    @property
    def history_(self) -> dict[str, Any]:
        """Losses and held-out errors by epoch, of the search for the number of epochs and of the final training."""
        history: dict[str, Any] = self.training_.get("history", {})
        return history

    @property
    def n_superpixels_(self) -> int:
        """Super-pixels of a spot in training; of several technologies, the median."""
        return int(np.median(self.training_.get("n_superpixels", [1])))

    def superpixels(self, features: Floats) -> NDArray[np.float32]:
        """Predict super-pixels from their features.

        Parameters
        ----------
        features
            From `pp.DenseMap.features`, shape (n_superpixels, n_features).

        Returns
        -------
        Shape (n_members, n_superpixels, n_genes), float32: counts (per 10,000 where `normalize` is ``"library"``) that
        a spot would have if all of it were like this super-pixel. A spot's counts are the mean over its super-pixels;
        the share of one of n of them is an n-th of this.

        Raises
        ------
        NotFittedError
            If `fit` has not run.
        """
        self._fitted()
        return np.stack([member.counts(features) for member in self._trained()])

    def _fit(self, measured: list[Measured]) -> dict[str, Any]:
        inner = inner_folds([part.spots for part in measured])
        bags = [self._bags(part.spots) for part in measured]
        log1p = [part.log1p.astype(np.float32) for part in measured]
        _, ridge = fit_grouped_ridge(_means(bags), np.concatenate(log1p), inner, standardise=False)
        fitting = _Fitting(self, bags, log1p, ridge["alpha"])
        searches = fitting.search(inner)
        n_epochs = self._n_epochs([best for best, _ in searches])
        trained = [fitting.member(number, n_epochs) for number in range(self.training.n_members)]
        self._members = [head for head, _ in trained]
        history = {
            "search": [asdict(found) for _, found in searches],
            "final": [asdict(found) for _, found in trained if found is not None],
        }
        about = {"n_superpixels": [part.shape[1] for part in bags], "n_epochs": n_epochs, "history": history}
        return ridge | about

    def _n_epochs(self, best: list[int]) -> int:
        if not self.training.n_searches:
            return self.training.max_epochs
        return round(float(np.median(best))) if best else 0

    def _bags(self, spots: Spots) -> Floats:
        """Features of a section's super-pixels, (n_spots, n_superpixels, n_features)."""
        made = self.embedding_ or {}
        n_features = int(made["n_features"]) if "n_features" in made else spots.embedding.shape[1]
        if spots.embedding.shape[1] % n_features:
            raise ShapeError(
                f"section {spots.section}: rows of {self.slot} hold {spots.embedding.shape[1]} numbers, not a multiple "
                f"of the {n_features} of a super-pixel; embed it anew with hf.embed"
            )
        return spots.embedding.reshape(len(spots), -1, n_features)

    def _draw(self, spots: Spots, n_samples: int) -> Floats:
        """One draw from every head, whatever `n_samples` is; their mean is log1p of the mean of their counts."""
        bags = self._bags(spots)
        parts = [bags[first : first + _SPOTS_AT_ONCE] for first in range(0, len(bags), _SPOTS_AT_ONCE)]
        counts = np.concatenate([self._spot_counts(part) for part in parts], axis=1)
        draws: NDArray[np.float64] = np.log1p(counts)
        # So that a prediction is exactly the sum of its super-pixels, which are means over the heads.
        draws += np.log1p(counts.mean(axis=0)) - draws.mean(axis=0)
        return draws.astype(np.float32)

    def _spot_counts(self, bags: Floats) -> NDArray[np.float64]:
        """Counts of spots by every head, (n_members, n_spots, n_genes)."""
        return np.stack([member.counts(bags).mean(axis=1, dtype=np.float64) for member in self._trained()])

    def _trained(self) -> list[SuperpixelHead]:
        if not self._members:
            raise NotFittedError("SubspotRegressor is not fitted; call fit first")
        return self._members

    def head(self, n_features: int, n_genes: int) -> SuperpixelHead:
        """Make a head that knows nothing, its weights drawn from torch's generator."""
        return SuperpixelHead(Sizes(n_features, n_genes, self.hidden_dim, self.n_components)).to(self.device)

    def _state(self) -> Arrays:
        return {
            f"{_MEMBER}{number}/{key}": value
            for number, member in enumerate(self._trained())
            for key, value in member.arrays().items()
        }

    def _restore(self, arrays: Arrays) -> None:
        self._members = []
        for number in range(self.training.n_members):
            own = under(f"{_MEMBER}{number}/", arrays)
            n_features, n_genes = own["coef"].shape
            sizes = Sizes(n_features, n_genes, self.hidden_dim, self.n_components)
            self._members.append(with_weights(partial(SuperpixelHead, sizes), own).to(self.device))


class _Fitting:
    """The training spots of one fit, and how heads are made of some of them."""

    def __init__(self, model: SubspotRegressor, bags: list[Floats], log1p: list[Floats], alpha: float) -> None:
        self.model, self.bags, self.log1p, self.alpha = model, bags, log1p, alpha
        self.starts = np.cumsum([0, *map(len, bags)])

    def search(self, inner: InnerFolds) -> list[tuple[int, History]]:
        """On inner folds: epochs after which the held-out spots are predicted best, 0 for the ridge alone."""
        found = []
        for rows, held_out in inner.folds[: self.model.training.n_searches]:
            with seeded(self.model.seed) as generator:
                head, parts = self._started(self._by_section(rows))
                unseen = self._prepared(head, self._by_section(held_out))
                before = head.error(unseen)
                history = train(
                    head,
                    self._batches(parts, generator),
                    head.loss,
                    options=self.model.training,
                    held_out_error=lambda head=head, unseen=unseen: head.error(unseen),  # type: ignore[misc]
                    label="istar, number of epochs",
                    bookmark=self._bookmark(head, self.model.training, generator, [*parts, *unseen]),
                )
            found.append((history.best_epoch if min(history.held_out) < before else 0, history))
        return found

    def member(self, number: int, n_epochs: int) -> tuple[SuperpixelHead, History | None]:
        """A head of the ensemble, from spots drawn with replacement."""
        # Members of neighbouring seeds share none of their draws.
        seed = self.model.seed * self.model.training.n_members + number
        rng = np.random.default_rng(seed)
        drawn = [np.sort(rng.integers(0, len(part), len(part))) for part in self.bags]
        with seeded(seed) as generator:
            head, parts = self._started(drawn)
            history = None
            if n_epochs:
                options = replace(self.model.training, max_epochs=n_epochs)
                bookmark = self._bookmark(head, options, generator, parts)
                batches = self._batches(parts, generator)
                history = train(head, batches, head.loss, options=options, label="istar", bookmark=bookmark)
        return head.eval(), history

    def _bookmark(
        self, head: SuperpixelHead, options: Training, generator: torch.Generator, parts: list[Bags]
    ) -> Bookmark | None:
        """Where a training keeps how far it is; a head is started from its spots' super-pixels, which it stands for."""
        progress = self.model._progress
        if progress is None:
            return None
        seen = [*head.arrays().values(), *(part.log1p for part in parts)]
        return Bookmark.of(
            progress, (generator, torch.default_generator), [self.model.options(), asdict(options)], seen
        )

    def _by_section(self, rows: Indices) -> list[Indices]:
        """Rows of the stacked spots, section by section."""
        return [rows[(rows >= first) & (rows < last)] - first for first, last in pairwise(self.starts)]

    def _started(self, chosen: list[Indices]) -> tuple[SuperpixelHead, list[Bags]]:
        """A head whose linear part is fitted on some spots, and these spots as it sees them."""
        x = _means([part[rows] for part, rows in zip(self.bags, chosen, strict=True)])
        y = np.concatenate([part[rows] for part, rows in zip(self.log1p, chosen, strict=True)])
        linear: LinearHead = RidgePath(x, y, standardise=False).head(self.alpha)
        head = self.model.head(x.shape[1], y.shape[1])
        head.start(linear, principal_components(x, self.model.n_components))
        return head, self._prepared(head.eval(), chosen)

    def _prepared(self, head: SuperpixelHead, chosen: list[Indices]) -> list[Bags]:
        return [
            head.bags(part[rows], y[rows])
            for part, y, rows in zip(self.bags, self.log1p, chosen, strict=True)
            if len(rows)
        ]

    def _batches(self, parts: list[Bags], generator: torch.Generator) -> Callable[[], Sequence[Bags]]:
        """Make the batches of an epoch: spots of one section in a random order, sections in turn."""

        def made() -> list[Bags]:
            batches = []
            for part in parts:
                order = torch.randperm(len(part.log1p), generator=generator).numpy()
                size = self.model.training.batch_size
                batches += [part.rows(order[first : first + size]) for first in range(0, len(order), size)]
            shuffled = torch.randperm(len(batches), generator=generator).tolist()
            return [batches[i] for i in shuffled]

        return made


def _means(bags: list[Floats]) -> NDArray[np.float64]:
    """Mean features of every spot, all sections below each other, (n_spots, n_features)."""
    return np.concatenate([part.mean(axis=1, dtype=np.float64) for part in bags])
