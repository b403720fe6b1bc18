"""Out-of-fold predictions of the training spots: what an estimator is worth, known from its training sections alone."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from histoflow._errors import TrainingWarning
from histoflow._keys import Missing, section_name
from histoflow.models.base import Estimator
from histoflow.models.inner import InnerFolds, inner_folds
from histoflow.models.spots import Floats, Measured, spots_of
from histoflow.pp.expression import Panel, panel_log1p
from histoflow.stats.metrics import mean_with_nan_as_zero, mse_skill, pearson


@dataclass(frozen=True)
class CrossFit:
    """Predictions of training spots by models that had not seen them.

    Attributes
    ----------
    how
        In plain words, what was held out at a time.
    genes
        The panel.
    section
        Section id of each spot that was held out once, shape (n_spots,).
    measured, predicted, baseline
        log1p expression on the model's scale, each of shape (n_spots, n_genes): what was measured, what the model
        predicted, and the mean over the spots that it was trained on.
    """

    how: str
    genes: tuple[str, ...]
    section: NDArray[np.str_]
    measured: Floats
    predicted: Floats
    baseline: Floats

    @classmethod
    def of(cls, measured: Sequence[Measured], predicted: Floats, folds: InnerFolds, genes: Sequence[str]) -> CrossFit:
        """Make it of predictions of the training spots, each by a model that had not seen its fold.

        Parameters
        ----------
        measured
            The training sections, stacked in this order.
        predicted
            log1p expression on the model's scale, shape (n_spots, n_genes).
        folds
            Which rows were held out together; those of no fold are left out.
        genes
            The panel.
        """
        log1p = np.concatenate([part.log1p for part in measured])
        names = np.repeat([part.spots.section for part in measured], [len(part.spots) for part in measured])
        order = np.concatenate([test for _, test in folds.folds])
        means = [np.tile(log1p[train].mean(axis=0, dtype=np.float64), (len(test), 1)) for train, test in folds.folds]
        baseline = np.concatenate(means).astype(np.float32)
        return cls(folds.how, tuple(genes), names[order], log1p[order], predicted[order], baseline)

    def r_by_section(self) -> pd.DataFrame:
        """Pearson r of every gene in every section.

        Returns
        -------
        Shape (n_sections, n_genes): a row per section, a column per gene; NaN where a gene is constant.
        """
        rows = {
            name: pearson(self.measured[self.section == name], self.predicted[self.section == name])
            for name in dict.fromkeys(self.section.tolist())
        }
        return pd.DataFrame.from_dict(rows, orient="index", columns=list(self.genes))

    def held_out_r(self) -> dict[str, float]:
        """Pearson r of every gene, mean over sections; a section in which a gene is constant counts as 0."""
        return {str(gene): float(r) for gene, r in self.r_by_section().fillna(0.0).mean().items()}

    def mean_r(self) -> float:
        """Mean over sections of the mean over genes of Pearson r, undefined ones counted as 0."""
        return float(np.mean([mean_with_nan_as_zero(row).mean for row in self.r_by_section().to_numpy()]))

    def skill(self) -> float:
        """MSE skill against the mean of the training spots, mean over genes; one that is constant counts as 0."""
        departures = self.measured - self.baseline, self.predicted - self.baseline
        return mean_with_nan_as_zero(mse_skill(*departures, baseline=np.zeros(len(self.genes)))).mean


def training_folds(sections: Sequence[AnnData]) -> InnerFolds:
    """Folds for `cross_fit`, of the stacked spots of these sections; see `inner_folds` for what it warns of."""
    return inner_folds([spots_of(section, None) for section in sections])


def cross_fit(
    estimator: Estimator,
    sections: Sequence[AnnData],
    folds: InnerFolds,
    *,
    panel: Panel,
    missing: Missing = "error",
) -> CrossFit:
    """Fit an estimator on all but one fold of its training data and predict that fold, fold after fold.

    Parameters
    ----------
    estimator
        Not fitted here; clones of it are.
    sections
        Training sections: X raw counts, embedded as the estimator needs.
    folds
        From `training_folds`, for these sections.
    panel, missing
        As in `Estimator.fit`.

    Returns
    -------
    Out-of-fold predictions; of no spots where the folds are empty, because there are too few to hold any out.

    Raises
    ------
    PanelMismatchError, MissingSlotError, EncoderMismatchError
        As `Estimator.fit`.
    """
    starts = np.cumsum([0, *(section.n_obs for section in sections)])
    parts = [_held_out(estimator, _split(sections, starts, fold), panel, missing) for fold in folds.folds]
    empty = np.empty((0, len(panel)), dtype=np.float32)
    names: list[NDArray[np.str_]] = [part[0] for part in parts]
    measured, predicted, baseline = (
        np.concatenate([empty, *(part[place] for part in parts)]).astype(np.float32) for place in (1, 2, 3)
    )
    stacked = np.concatenate([np.empty(0, dtype=str), *names])
    return CrossFit(folds.how, panel.genes, stacked, measured, predicted, baseline)


Sides = tuple[list[AnnData], list[AnnData]]


def _split(
    sections: Sequence[AnnData], starts: NDArray[np.int64], fold: tuple[NDArray[np.intp], NDArray[np.intp]]
) -> Sides:
    """Training and held-out part of the sections; those without any spot on a side are not in it."""
    sides: list[list[AnnData]] = []
    for rows in fold:
        inside = [rows[(rows >= first) & (rows < last)] - first for first, last in pairwise(starts)]
        sides.append([s[own].copy() for s, own in zip(sections, inside, strict=True) if len(own)])
    return sides[0], sides[1]


def _held_out(
    estimator: Estimator, sides: Sides, panel: Panel, missing: Missing
) -> tuple[NDArray[np.str_], Floats, Floats, Floats]:
    """Section of each held-out spot, and what was measured, predicted, and the training mean there."""
    train, test = sides
    with warnings.catch_warnings():
        # Of the cruder folds inside a fold; those of the whole training data were told by `training_folds`.
        warnings.simplefilter("ignore", TrainingWarning)
        fitted = estimator.clone().fit(train, panel=panel, missing=missing)
    measure = [[panel_log1p(s, panel, estimator.normalize, missing=missing) for s in side] for side in sides]
    measured = np.concatenate(measure[1])
    mean = np.concatenate(measure[0]).mean(axis=0, dtype=np.float64)
    predicted = np.concatenate([np.asarray(fitted.predict(section).X) for section in test])
    names = np.concatenate([np.full(section.n_obs, section_name(section)) for section in test])
    return names, measured, predicted, np.tile(mean, (len(measured), 1))
