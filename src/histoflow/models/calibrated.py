"""Calibrated: an estimator whose predictions say how far the measured value may be, as the cross-fit found it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self, final

import numpy as np
from anndata import AnnData

from histoflow._errors import NotFittedError, OptionError, SplitError, TrainingWarning
from histoflow._keys import (
    HELD_OUT_R,
    LOWER,
    QUANTILE_LEVELS,
    RESIDUAL_QUANTILES,
    SCALE,
    UNFAMILIAR,
    UPPER,
    Missing,
)
from histoflow.models.arrays import Arrays, named, under
from histoflow.models.base import Estimator
from histoflow.models.crossfit import CrossFit, cross_fit
from histoflow.models.inner import inner_folds
from histoflow.models.kinds import KINDS
from histoflow.models.parts import Drawer, MakeShelf, Reach
from histoflow.models.progress import Progress
from histoflow.models.residuals import HIGHEST_LEVEL, LEVELS, ResidualScale, conformal_quantiles
from histoflow.models.spots import Floats, Measured, Spots
from histoflow.models.unfamiliar import Familiar
from histoflow.pp.expression import Panel
from histoflow.stats.intervals import central_levels, predictive_quantiles

_LEAST_DRAWS = 2
"""Intervals are around what is expected, which a single draw of the flow departs from."""
_ESTIMATOR, _SCALE, _QUANTILES, _FAMILIAR = "estimator/", "scale/", "quantiles", "familiar/"


@final
class Calibrated(Estimator):
    """Predictions with intervals of the measured value, from what the same estimator did on held-out training spots.

    The estimator is cross-fitted on its training sections: whole sections are held out where there are three or more,
    else spatial blocks. (The flow has done so already when it chose its epochs, each time with one network.) Residuals
    there, in units of a spread that grows with the predicted expression as far as they say so, give the quantiles of
    every gene (split conformal prediction with a normalised score, Lei et al., JASA 2018; cross-conformal, Vovk 2015).
    They hold for tissue that is as near to the training sections as these are to each other: serial sections of one
    patient give no guarantee for another patient. Intervals are around the mean of two draws at least, where the
    estimator draws: a single draw of the flow departs from what it expects.

    Parameters
    ----------
    estimator
        What predicts; not fitted here, a clone of it is.
    level
        Part of the measured values that an interval is to hold, above 0 and up to 0.99.

    Raises
    ------
    OptionError
        If the level is out of its range, or the estimator is calibrated already or learns nothing.
    """

    name: ClassVar[str] = "calibrated"

    def __init__(self, estimator: Estimator, level: float = 0.9) -> None:
        if isinstance(estimator, Calibrated) or not estimator.learns:
            raise OptionError(f"{estimator.name} cannot be calibrated; give an estimator that learns and is not yet")
        super().__init__(encoder=estimator.encoder, normalize=estimator.normalize, seed=estimator.seed)
        if not 0 < level <= HIGHEST_LEVEL:
            raise OptionError(f"level is {level}; give a part above 0 and up to {HIGHEST_LEVEL}, as 0.9")
        self.dense, self.embedding_recipe = estimator.dense, estimator.embedding_recipe
        self.estimator = estimator
        self.level = float(level)
        self._inner: Estimator | None = None
        self._scale: ResidualScale | None = None
        self._quantiles: Floats | None = None
        self._familiar: Familiar | None = None

    @property
    def method(self) -> str:
        """Name of the estimator inside."""
        return self.estimator.method

    @property
    def inside(self) -> Estimator:
        """The estimator inside, fitted once this one is."""
        return self._inner or self.estimator

    def options(self) -> dict[str, Any]:
        """Arguments of the constructor, as JSON holds them."""
        told = {"name": self.estimator.name, "options": self.estimator.options()}
        return {"estimator": told, "level": self.level}

    def identity(self) -> dict[str, Any]:
        """Everything that a fit depends on beside its data."""
        return {**self.estimator.identity(), "calibrated": self.estimator.name, "level": self.level}

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Make an estimator, not fitted, of what `options` returned."""
        told = options["estimator"]
        return cls(KINDS[told["name"]].from_options(told["options"]), options["level"])

    def clone(self, **changes: Any) -> Self:
        """Make one, not fitted, whose estimator has these options changed."""
        return type(self)(self.estimator.clone(**changes), self.level)

    def with_progress(self, progress: Progress) -> Self:
        """Make one, not fitted, whose estimator is taken up where it was, see `Estimator.with_progress`."""
        return type(self)(self.estimator.with_progress(progress), self.level)

    def _learn(self, sections: Sequence[AnnData], measured: list[Measured], missing: Missing) -> dict[str, Any]:
        folds = inner_folds([part.spots for part in measured])
        if not folds.folds:
            raise SplitError(
                f"intervals need held-out spots, and these sections hold out {folds.how}; "
                "give more spots, or no level (--level off)"
            )
        panel = self._fitted()
        with_spots = [section for section in sections if section.n_obs]
        self._inner = self._fitted_inside(with_spots, panel, missing)
        held_out = self._inner._held_out()
        if held_out is None:
            found = cross_fit(self.estimator, with_spots, folds, panel=panel, missing=missing)
        else:
            found = CrossFit.of(measured, held_out, folds, panel.genes)
        told = self._calibrate(found, measured)
        told |= {"calibrated_on": folds.how, HELD_OUT_R: found.held_out_r()}
        # What is known here of the sections counts: the estimator inside saw no spot that was left out.
        return {**self._inner.training_, **self.training_, **told}

    def _fitted_inside(self, sections: Sequence[AnnData], panel: Panel, missing: Missing) -> Estimator:
        """A clone of the estimator inside, fitted on all training sections."""
        with warnings.catch_warnings():
            # Of the same inner folds, which `_learn` told of.
            warnings.simplefilter("ignore", TrainingWarning)
            return self.estimator.clone().fit(sections, panel=panel, missing=missing)

    def _calibrate(self, found: CrossFit, measured: list[Measured]) -> dict[str, Any]:
        residuals = found.measured.astype(np.float64) - found.predicted
        self._scale = ResidualScale.fit(found.predicted, residuals)
        self._quantiles = conformal_quantiles(residuals / self._scale(found.predicted))
        self._familiar = Familiar.fit([self._seen(part.spots) for part in measured]) if self.slot else None
        return {"n_calibrated_on": len(residuals), "follows_prediction": int((self._scale.slope != 0).sum())}

    def _fit(self, measured: list[Measured]) -> dict[str, Any]:
        raise NotFittedError("a calibrated estimator learns from sections; call fit")

    def _draw(self, spots: Spots, n_samples: int) -> Floats:
        return self._parts()[0]._draw(spots, max(n_samples, _LEAST_DRAWS))

    def _reach(self) -> Reach | None:
        return self.inside._reach()

    def _drawer(self, places: Spots, n_samples: int, shelf: MakeShelf) -> Drawer:
        return self._parts()[0]._drawer(places, max(n_samples, _LEAST_DRAWS), shelf)

    def _spots(self, section: AnnData) -> Spots:
        return self._parts()[0]._spots(section)

    def _facts(self, section: AnnData, n_draws: int) -> dict[str, Any]:
        told = self._parts()[0]._facts(section, n_draws)
        return told | {"level": self.level, QUANTILE_LEVELS: LEVELS, "calibrated_on": self.training_["calibrated_on"]}

    def _completed(self, predicted: AnnData, section: AnnData) -> AnnData:
        _, scale, quantiles = self._parts()
        mean = np.asarray(predicted.X)
        predicted.layers[SCALE] = scale(mean).astype(np.float32)
        predicted.varm[RESIDUAL_QUANTILES] = quantiles
        ends = predictive_quantiles(mean, predicted.layers[SCALE], quantiles, LEVELS, central_levels(self.level))
        predicted.layers[LOWER], predicted.layers[UPPER] = ends.astype(np.float32)
        if self._familiar is not None:
            predicted.obs[UNFAMILIAR] = self._familiar.unfamiliar(self._seen(self._spots(section)).embedding)
        return predicted

    def _seen(self, spots: Spots) -> Spots:
        """Places with what tells whether they are familiar: their embedding, or the mean of their super-pixels."""
        if not self.dense or self.embedding_ is None:
            return spots
        n_features = int(self.embedding_.get("n_features") or spots.embedding.shape[1])
        return replace(spots, embedding=spots.embedding.reshape(len(spots), -1, n_features).mean(axis=1))

    def _parts(self) -> tuple[Estimator, ResidualScale, Floats]:
        if self._inner is None or self._scale is None or self._quantiles is None:
            raise NotFittedError("Calibrated is not fitted; call fit first")
        return self._inner, self._scale, self._quantiles

    def _state(self) -> Arrays:
        inner, scale, quantiles = self._parts()
        familiar = {} if self._familiar is None else self._familiar.arrays()
        return {
            **named(_ESTIMATOR, inner._state()),
            **named(_SCALE, vars(scale)),
            **named(_FAMILIAR, familiar),
            _QUANTILES: quantiles,
        }

    def _restore(self, arrays: Arrays) -> None:
        inner = self.estimator.clone()
        inner.panel_, inner.embedding_, inner.pitch_um_ = self.panel_, self.embedding_, self.pitch_um_
        inner.training_ = self.training_
        inner._restore(under(_ESTIMATOR, arrays))
        familiar = under(_FAMILIAR, arrays)
        self._inner, self._quantiles = inner, arrays[_QUANTILES]
        self._scale = ResidualScale(**under(_SCALE, arrays))
        self._familiar = Familiar.of(familiar) if familiar else None
