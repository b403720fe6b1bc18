"""Which one? Estimators compared on held-out parts of the training sections; the best is fitted on all of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from anndata import AnnData

from histoflow._errors import OptionError, SplitError
from histoflow._keys import HELD_OUT_R, Missing
from histoflow._progress import track
from histoflow.models.base import Estimator
from histoflow.models.calibrated import Calibrated
from histoflow.models.crossfit import CrossFit, cross_fit, training_folds
from histoflow.models.progress import Progress
from histoflow.pp.expression import Normalize, Panel, keep_spots

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Auto:
    """A choice among estimators, made by the cross-fit.

    It is no estimator itself: `fit` returns the one that was chosen.

    Parameters
    ----------
    candidates
        Estimators by name, none of them fitted.
    level
        Level of the intervals of the one that is chosen, see `Calibrated`; None for no intervals.
    """

    candidates: Mapping[str, Estimator]
    level: float | None = None
    name: ClassVar[str] = "auto"

    def fit(
        self,
        sections: Sequence[AnnData],
        *,
        panel: Panel | Sequence[str],
        min_counts: int = 0,
        missing: Missing = "error",
    ) -> Estimator:
        """Cross-fit every candidate, and fit the one with the highest mean r on all sections.

        Parameters
        ----------
        sections, panel, min_counts, missing
            As in `Estimator.fit`; sections are embedded as every candidate needs.

        Returns
        -------
        The best candidate, fitted. Its ``training_["auto"]`` tells what was held out, and of each candidate mean r
        (over sections, of the mean over genes), its MSE skill and its r by section; ``training_["held_out_r"]`` the r
        of every gene.

        Raises
        ------
        OptionError
            If there is no candidate.
        SplitError
            If there are too few spots to hold any out.
        PanelMismatchError, MissingSlotError, EncoderMismatchError
            As `Estimator.fit`.
        """
        if not self.candidates:
            raise OptionError("auto has no candidates; give one estimator or more")
        kept = [keep_spots(section, min_counts=min_counts) for section in sections]
        genes = panel if isinstance(panel, Panel) else Panel(tuple(panel))
        folds = training_folds(kept)
        if not folds.folds:
            raise SplitError(f"auto compares on held-out spots, and holds out {folds.how}; choose a model by name")
        everyone = track(list(self.candidates.items()), "auto, candidates")
        found = {name: cross_fit(one, kept, folds, panel=genes, missing=missing) for name, one in everyone}
        told = comparison(found)
        best = told["chosen"]
        _LOG.info("%s", sentence(told))
        chosen = self.candidates[best].clone()
        ready = chosen if self.level is None else Calibrated(chosen, self.level)
        fitted = ready.fit(sections, panel=genes, min_counts=min_counts, missing=missing)
        fitted.training_ |= {"auto": told, HELD_OUT_R: found[best].held_out_r()}
        return fitted

    @property
    def normalize(self) -> Normalize:
        """Scale of the expression, one for all candidates."""
        return next(iter(self.candidates.values())).normalize

    @property
    def seed(self) -> int:
        """Seed, one for all candidates."""
        return next(iter(self.candidates.values())).seed

    def clone(self, **changes: Any) -> Auto:
        """The same choice among candidates that have these options changed."""
        return replace(self, candidates={name: c.clone(**changes) for name, c in self.candidates.items()})

    def with_progress(self, progress: Progress) -> Auto:
        """The same choice, every candidate taken up where it was, see `Estimator.with_progress`."""
        return replace(self, candidates={name: c.with_progress(progress) for name, c in self.candidates.items()})

    def identity(self) -> dict[str, Any]:
        """Everything that the choice depends on beside its data: what each candidate's fit depends on."""
        told = {name: candidate.identity() for name, candidate in self.candidates.items()}
        return told if self.level is None else told | {"level": self.level}


def comparison(found: Mapping[str, CrossFit]) -> dict[str, Any]:
    """A table of cross-fits, best first, as JSON holds it.

    Returns
    -------
    `how` (what was held out), `rows` (model, mean_r, mse_skill, r_by_section), `chosen`, and `ahead_by`, the lead in
    mean r over the next; None without a next.
    """
    rows = [
        {
            "model": name,
            "mean_r": fit.mean_r(),
            "mse_skill": fit.skill(),
            "r_by_section": {str(s): float(r) for s, r in fit.r_by_section().fillna(0.0).mean(axis=1).items()},
        }
        for name, fit in found.items()
    ]
    rows.sort(key=lambda row: -row["mean_r"])  # type: ignore[operator]
    lead = None if len(rows) < 2 else rows[0]["mean_r"] - rows[1]["mean_r"]  # type: ignore[operator]
    return {"how": next(iter(found.values())).how, "rows": rows, "chosen": rows[0]["model"], "ahead_by": lead}


def sentence(told: Mapping[str, Any]) -> str:
    """What `comparison` found, in words."""
    best, *others = told["rows"]
    behind = f", ahead of {others[0]['model']} by {told['ahead_by']:.3f}" if others else ""
    return f"auto chose {best['model']}: mean r {best['mean_r']:.3f} on {told['how']} of the training data{behind}"
