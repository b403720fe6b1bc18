"""STFlow: whole-slide flow matching from image embeddings to expression (Huang et al., arXiv 2506.05361)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, NamedTuple, Self, final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import KDTree
from torch import Tensor

from histoflow._errors import NotFittedError, OptionError
from histoflow.flow import Denoiser, EulerSampler, LinearPath, SpotContext, edge_geometry, prior_from_name
from histoflow.models.base import Arrays, Estimator
from histoflow.models.inner import InnerFolds, inner_folds
from histoflow.models.spots import Floats, Measured, Spots
from histoflow.models.training import History, Training, seeded, train
from histoflow.pp.graph import neighbors

_SMALLEST_CROP = 2
_HELD_OUT_DRAWS = 2
_NETWORK, _WHITENER, _MEAN = "network/", "whitener/", "mean"


@dataclass(frozen=True)
class Network:
    """Sizes of the denoiser; the defaults are the published ones.

    Parameters
    ----------
    n_neighbors
        Nearest spots that a spot attends to.
    n_layers
        Rounds of attention.
    hidden_dim, pairwise_dim
        Width of a spot's token and of an edge's embedding.
    n_heads
        Attention heads.
    dropout, attention_dropout
        Probability of dropping a number, and a neighbour's weight.
    n_components
        Principal components of the embeddings that enter, each scaled to unit variance.
    """

    n_neighbors: int = 8
    n_layers: int = 4
    hidden_dim: int = 128
    pairwise_dim: int = 128
    n_heads: int = 4
    dropout: float = 0.2
    attention_dropout: float = 0.2
    n_components: int = 100

    def denoiser(self, n_features: int, n_genes: int) -> Denoiser:
        """Make the network, its weights drawn from torch's generator."""
        sizes = asdict(self)
        del sizes["n_neighbors"], sizes["n_components"]
        return Denoiser(n_features, n_genes, **sizes)


class Crop(NamedTuple):
    """Neighbouring spots of one section, as tensors: features, xy in pitches, tissue, log1p expression."""

    features: Tensor
    xy: NDArray[np.float64]
    tissue: NDArray[np.int64]
    log1p: Tensor


@dataclass(frozen=True)
class Whitener:
    """Principal components of the embeddings, each scaled to unit variance over the training spots.

    Attributes
    ----------
    mean, scale
        Of each feature, shape (n_features,).
    components
        Shape (n_features, n_components), divided by the spread of each component.
    """

    mean: Floats
    scale: Floats
    components: Floats

    @classmethod
    def fit(cls, x: Floats, n_components: int) -> Whitener:
        """Find at most `n_components` of features (n_spots, n_features), by singular value decomposition."""
        x64 = x.astype(np.float64)
        spread = x64.std(axis=0)
        mean, scale = x64.mean(axis=0), np.where(spread > 0, spread, 1.0)
        _, values, rows = np.linalg.svd((x64 - mean) / scale, full_matrices=False)
        n_kept = max(1, int((values[:n_components] > values[0] * 1e-6).sum()))
        # Signs of singular vectors are arbitrary: the largest entry is made positive.
        rows = rows[:n_kept] * np.sign(rows[np.arange(n_kept), np.abs(rows[:n_kept]).argmax(axis=1)])[:, None]
        deviation = np.maximum(values[:n_kept], 1e-12) / np.sqrt(len(x))
        return cls(mean.astype(np.float32), scale.astype(np.float32), (rows.T / deviation).astype(np.float32))

    def __call__(self, x: Floats) -> Tensor:
        """Map embeddings (n_spots, n_features) to (n_spots, n_components)."""
        return torch.from_numpy((x - self.mean) / self.scale @ self.components)


@final
class STFlow(Estimator):
    """Flow matching over all spots of a section together.

    A denoiser learns to tell the measured expression from a noisy version of it, the image and the places of the
    spots; from the prior it then carries a whole section to the data in a few Euler steps. Predictions are the mean of
    several such draws, their spread says how sure the flow is.

    The network's estimate is taken from the mean of the training spots. It sees expression only as differences between
    spots, so nothing but its output is shifted; without it, dropout on genes far from zero drowns the rest.

    The number of epochs is chosen on the first inner fold of the training data (see `inner_folds`), then the network
    is trained anew on all of it for as long.

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
        self._denoiser: Denoiser | None = None
        self._whitener: Whitener | None = None
        self._mean = torch.empty(0)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Make an estimator, not fitted, of what `options` returned."""
        kinds = {"network": Network, "training": Training}
        made = {
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
        n_epochs, search = self.training.max_epochs, None
        if inner.folds:
            search = self._search(measured, inner)
            n_epochs = search.best_epoch
        final = self._train(measured, replace(self.training, max_epochs=n_epochs), None, "stflow")
        history = {"final": asdict(final), **({"search": asdict(search)} if search else {})}
        return {"inner_folds": inner.how, "n_epochs": n_epochs, "history": history}

    def _search(self, measured: list[Measured], inner: InnerFolds) -> History:
        """Train on all but the first inner fold, and see after how many epochs that fold is predicted best."""
        train_rows, test_rows = (set(rows.tolist()) for rows in inner.folds[0])
        return self._train(_rows(measured, train_rows), self.training, _rows(measured, test_rows), "stflow, epochs")

    def _train(
        self, measured: list[Measured], options: Training, held_out: list[Measured] | None, label: str
    ) -> History:
        embeddings = np.concatenate([part.spots.embedding for part in measured])
        self._whitener = Whitener.fit(embeddings, self.network.n_components)
        mean = np.concatenate([part.log1p for part in measured]).mean(axis=0, dtype=np.float64)
        self._mean = torch.from_numpy(mean.astype(np.float32)).to(self.device)
        n_features, n_genes = self._whitener.components.shape[1], len(mean)
        with seeded(self.seed) as generator:
            self._denoiser = self.network.denoiser(n_features, n_genes).to(self.device)
            crops = [self._crop(part) for part in measured]
            return train(
                self._denoiser,
                lambda: _batches(crops, options, generator),
                lambda batch: self._loss(batch, generator),
                options=options,
                held_out_error=None if held_out is None else lambda: self._error(held_out),
                label=label,
            )

    def _crop(self, part: Measured) -> Crop:
        """A whole section as tensors."""
        spots = part.spots
        xy = spots.xy_um / self._pitch_um()
        return Crop(self._whiten(spots), xy, spots.tissue, torch.from_numpy(part.log1p))

    def _loss(self, crops: list[Crop], generator: torch.Generator) -> Tensor:
        """Mean squared error of the denoised expression; every crop has one time of its own."""
        log1p = torch.cat([crop.log1p for crop in crops])
        t = torch.cat([torch.rand(1, 1, generator=generator).expand(len(crop.log1p), 1) for crop in crops])
        x0 = prior_from_name(self.prior).sample((len(log1p), log1p.shape[1]), generator)
        x_t = LinearPath().sample(x0, log1p, t).x_t
        estimate = self._estimate(x_t.to(self.device), t.to(self.device), self._context(crops))
        return torch.nn.functional.mse_loss(estimate, log1p.to(self.device))

    def _estimate(self, x_t: Tensor, t: Tensor, context: SpotContext) -> Tensor:
        """Denoised log1p expression, (n_spots, n_genes)."""
        estimate: Tensor = self._network()(x_t, t, context) + self._mean
        return estimate

    def _context(self, crops: Sequence[Crop]) -> SpotContext:
        """Context of crops stacked below each other; no neighbour is of another crop."""
        crop_of = np.repeat(np.arange(len(crops)), [len(crop.xy) for crop in crops])
        tissue = np.concatenate([crop.tissue for crop in crops])
        groups = crop_of * (tissue.max() + 1) + tissue
        # Centred in float64, so that a section far from the origin loses no digits.
        xy = np.concatenate([crop.xy - crop.xy.mean(axis=0) for crop in crops])
        graph = neighbors(xy, self.network.n_neighbors, groups=groups)
        index, mask = torch.from_numpy(graph.index), torch.from_numpy(graph.mask)
        geometry = edge_geometry(torch.from_numpy(xy), index, mask)
        to_device = (part.to(self.device) for part in (*geometry, index, mask))
        projection, distance, index, mask = to_device
        features = torch.cat([crop.features for crop in crops]).to(self.device)
        return self._network().context(features, type(geometry)(projection, distance), index, mask)

    def _error(self, held_out: list[Measured]) -> float:
        """Mean squared error of a prediction of spots that are in no batch."""
        squared = [
            (self._draw(part.spots, _HELD_OUT_DRAWS).mean(axis=0) - part.log1p).ravel() ** 2 for part in held_out
        ]
        return float(np.concatenate(squared).mean(dtype=np.float64))

    @torch.inference_mode()
    def _draw(self, spots: Spots, n_samples: int) -> Floats:
        """Draw a section; noise belongs to spots by their ids, so that their order does not matter."""
        denoiser = self._network().eval()
        xy = spots.xy_um / self._pitch_um()
        crop = Crop(self._whiten(spots), xy, spots.tissue, torch.empty(0))
        context = self._context([crop])
        rank = torch.from_numpy(np.argsort(np.argsort(spots.ids, kind="stable"), kind="stable"))
        generator = torch.Generator().manual_seed(self.seed)
        prior, n_draws = prior_from_name(self.prior), 1 if self.prior == "zero" else n_samples
        draws = []
        for _ in range(n_draws):
            x0 = prior.sample((len(spots), denoiser.n_genes), generator)[rank].to(self.device)
            drawn = self._sampler.sample(lambda x, t: self._estimate(x, t, context), x0)
            draws.append(drawn.clamp(min=0).cpu().numpy())
        return np.stack(draws)

    def _whiten(self, spots: Spots) -> Tensor:
        if self._whitener is None:
            raise NotFittedError("STFlow is not fitted; call fit first")
        return self._whitener(spots.embedding)

    def _network(self) -> Denoiser:
        if self._denoiser is None:
            raise NotFittedError("STFlow is not fitted; call fit first")
        return self._denoiser

    def _pitch_um(self) -> float:
        """Unit of distance of the network: the spot distance in training."""
        if not self.pitch_um_ > 0:
            raise OptionError(
                "no training section states its pitch_um; read sections with hf.read_visium or hf.read_st"
            )
        return self.pitch_um_

    def _facts(self, section: Any, n_draws: int) -> dict[str, Any]:
        return super()._facts(section, n_draws) | {"n_sample_steps": self.n_sample_steps, "prior": self.prior}

    def _state(self) -> Arrays:
        weights = {_NETWORK + key: value.cpu().numpy() for key, value in self._network().state_dict().items()}
        whitener = {_WHITENER + key: value for key, value in vars(self._whitener).items()}
        return weights | whitener | {_MEAN: self._mean.cpu().numpy()}

    def _restore(self, arrays: Arrays) -> None:
        of_whitener, of_network = (
            {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
            for prefix in (_WHITENER, _NETWORK)
        )
        self._whitener = Whitener(**of_whitener)
        self._mean = torch.from_numpy(arrays[_MEAN]).to(self.device)
        n_features, n_genes = self._whitener.components.shape[1], len(self.panel_ or ())
        self._denoiser = self.network.denoiser(n_features, n_genes).to(self.device)
        self._denoiser.load_state_dict({key: torch.from_numpy(value) for key, value in of_network.items()})
        self._denoiser.eval()


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
