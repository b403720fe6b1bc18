"""Simple baselines, always in the table: the mean, the library size, the colour of the stain, the place."""

from __future__ import annotations

from typing import Any, ClassVar, final

import numpy as np
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import KDTree

from histoflow._errors import NotFittedError, ShapeError, SplitError
from histoflow.models.arrays import Arrays
from histoflow.models.base import Estimator
from histoflow.models.inner import inner_folds
from histoflow.models.linear import LinearHead
from histoflow.models.parts import Reach
from histoflow.models.ridge import drawn, stacked
from histoflow.models.ridge_folds import fit_grouped_ridge
from histoflow.models.spots import Floats, Measured, Spots

_N_NEAREST = 6
_SAME_PLACE_UM = 1.0


@final
class MeanBaseline(Estimator):
    """The mean over the training spots, everywhere: what any predictor must beat.

    Parameters
    ----------
    normalize, seed
        As in `Estimator`; nothing here is random.
    """

    name: ClassVar[str] = "mean"

    def __init__(self, *, normalize: str = "library", seed: int = 0) -> None:
        super().__init__(encoder=None, normalize=normalize, seed=seed)
        self._mean: NDArray[np.float64] = np.empty(0)

    def _fit(self, measured: list[Measured]) -> dict[str, Any]:
        self._mean = np.concatenate([part.log1p for part in measured]).mean(axis=0, dtype=np.float64)
        return {}

    def _reach(self) -> Reach | None:
        return Reach(0, 0)

    def _draw(self, spots: Spots, n_samples: int) -> Floats:
        return np.tile(self._mean, (1, len(spots), 1)).astype(np.float32)

    def _state(self) -> Arrays:
        return {"mean": self._mean}

    def _restore(self, arrays: Arrays) -> None:
        self._mean = arrays["mean"]


@final
class LibrarySizeBaseline(Estimator):
    """Total counts predicted from the image by ridge, then every gene by its own straight line on them.

    It shows how much of a score is cellularity and capture, which all genes share. `predict_given_totals` is the same
    with the true totals, an oracle that no image can beat at this and that must be labelled so.

    Parameters
    ----------
    encoder, normalize, seed
        As in `Estimator`; nothing here is random.
    """

    name: ClassVar[str] = "library_size"

    def __init__(self, *, encoder: str = "scatter", normalize: str = "library", seed: int = 0) -> None:
        super().__init__(encoder=encoder, normalize=normalize, seed=seed)
        self._head: LinearHead | None = None
        self._slope: NDArray[np.float64] = np.empty(0)
        self._intercept: NDArray[np.float64] = np.empty(0)

    def _fit(self, measured: list[Measured]) -> dict[str, Any]:
        x, y = stacked(measured)
        depth = np.log1p(np.concatenate([part.totals for part in measured]))
        self._head, report = fit_grouped_ridge(x, depth[:, None], inner_folds([part.spots for part in measured]))
        centred = depth - depth.mean()
        variance = float(centred @ centred)
        self._slope = centred @ y.astype(np.float64) / variance if variance else np.zeros(y.shape[1])
        self._intercept = y.mean(axis=0, dtype=np.float64) - self._slope * depth.mean()
        return report

    def _reach(self) -> Reach | None:
        return Reach(0, 0)

    def _draw(self, spots: Spots, n_samples: int) -> Floats:
        return self._line(drawn(self._head, spots, floor=0.0)[0, :, 0])[None]

    def _line(self, depth: NDArray[Any]) -> Floats:
        line = self._intercept + self._slope * depth[:, None].astype(np.float64)
        clipped: Floats = np.maximum(line, 0.0).astype(np.float32)
        return clipped

    def predict_given_totals(self, section: AnnData, totals: ArrayLike) -> AnnData:
        """Predict from the true total counts of each spot instead of the image: an oracle.

        Parameters
        ----------
        section
            As in `predict`.
        totals
            True total counts, shape (n_spots,).

        Returns
        -------
        As `predict`.

        Raises
        ------
        ShapeError
            If `totals` has not one number per spot.
        NotFittedError
            If `fit` has not run.
        """
        known = np.asarray(totals, dtype=np.float64)
        if known.shape != (section.n_obs,):
            raise ShapeError(f"totals must have shape ({section.n_obs},), one number per spot, got {known.shape}")
        predicted = self.predict(section)
        predicted.X = self._line(np.log1p(known))
        return predicted

    def _state(self) -> Arrays:
        head = {} if self._head is None else self._head.arrays()
        return head | {"slope": self._slope, "line_intercept": self._intercept}

    def _restore(self, arrays: Arrays) -> None:
        self._head, self._slope, self._intercept = LinearHead.of(arrays), arrays["slope"], arrays["line_intercept"]


@final
class ColorBaseline(Estimator):
    """Ridge on the amounts of each stain in the patch alone: no texture, no context.

    Parameters
    ----------
    encoder
        The encoder of stain quantiles.
    normalize, seed
        As in `Estimator`; nothing here is random.
    """

    name: ClassVar[str] = "color"

    def __init__(self, *, encoder: str = "color", normalize: str = "library", seed: int = 0) -> None:
        super().__init__(encoder=encoder, normalize=normalize, seed=seed)
        self._head: LinearHead | None = None

    def _fit(self, measured: list[Measured]) -> dict[str, Any]:
        self._head, report = fit_grouped_ridge(*stacked(measured), inner_folds([part.spots for part in measured]))
        return report

    def _reach(self) -> Reach | None:
        return Reach(0, 0)

    def _draw(self, spots: Spots, n_samples: int) -> Floats:
        return drawn(self._head, spots, floor=0.0)

    def _state(self) -> Arrays:
        return {} if self._head is None else self._head.arrays()

    def _restore(self, arrays: Arrays) -> None:
        self._head = LinearHead.of(arrays)


@final
class LocationBaseline(Estimator):
    """Mean of the six nearest training spots of the same section: no image at all.

    It has a meaning only within a section; on a slide without training spots it refuses.

    Parameters
    ----------
    normalize, seed
        As in `Estimator`; nothing here is random.
    """

    name: ClassVar[str] = "location"

    def __init__(self, *, normalize: str = "library", seed: int = 0) -> None:
        super().__init__(encoder=None, normalize=normalize, seed=seed)
        self._places: dict[str, tuple[NDArray[np.float64], Floats]] = {}

    def _fit(self, measured: list[Measured]) -> dict[str, Any]:
        self._places = {}
        for part in measured:
            xy, log1p = self._places.get(part.spots.slide_id, (np.empty((0, 2)), part.log1p[:0]))
            stack = np.concatenate([xy, part.spots.xy_um]), np.concatenate([log1p, part.log1p])
            self._places[part.spots.slide_id] = stack
        return {}

    def _reach(self) -> Reach | None:
        return Reach(0, 0)

    def _draw(self, spots: Spots, n_samples: int) -> Floats:
        if not self._places:
            raise NotFittedError("LocationBaseline is not fitted; call fit first")
        if spots.slide_id not in self._places:
            raise SplitError(
                f"location says nothing about section {spots.section}: no training spot lies on its slide; "
                "it compares only within a section"
            )
        xy, log1p = self._places[spots.slide_id]
        distance, near = KDTree(xy).query(spots.xy_um, k=np.arange(1, min(_N_NEAREST + 1, len(xy)) + 1))
        # A training spot does not predict itself.
        weight = (distance > _SAME_PLACE_UM) & (np.cumsum(distance > _SAME_PLACE_UM, axis=1) <= _N_NEAREST)
        weight = np.where(weight.any(axis=1, keepdims=True), weight, True).astype(np.float64)
        mean: Floats = np.einsum("sk,skg->sg", weight, log1p[near]) / weight.sum(axis=1, keepdims=True)
        return np.asarray(mean[None], dtype=np.float32)

    def _state(self) -> Arrays:
        arrays: Arrays = {}
        for slide, (xy, log1p) in self._places.items():
            arrays |= {f"xy_um/{slide}": xy, f"log1p/{slide}": log1p}
        return arrays

    def _restore(self, arrays: Arrays) -> None:
        slides = [key.partition("/")[2] for key in arrays if key.startswith("xy_um/")]
        self._places = {slide: (arrays[f"xy_um/{slide}"], arrays[f"log1p/{slide}"]) for slide in slides}


def true_totals_name(model: str) -> str:
    """Name in tables of a library-size baseline that was given the true totals."""
    return f"{model} (oracle: true totals)"
