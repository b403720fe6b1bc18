"""The trivial baselines that stand in every table of an evaluation."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from histoflow import bench, io, models
from histoflow.workflow.cohorts import FEATURES

_LOG = logging.getLogger(__name__)
_COLOR = models.ColorBaseline.name


def with_baselines(
    cohort: io.Cohort, estimators: Mapping[str, models.Estimator | models.Auto]
) -> dict[str, models.Estimator | models.Auto]:
    """Add the trivial baselines that are not among some estimators, and say so.

    Parameters
    ----------
    cohort
        Where its sections came as patch features there is no baseline of colours.
    estimators
        By the name they have in the table.

    Returns
    -------
    The baselines that were missing, then the estimators. The library size is predicted through the encoder of the first
    estimator that lets one choose, or from the colours if there is none.
    """
    present = {one.name if isinstance(one, models.Auto) else one.method for one in estimators.values()}
    has_slides = all(row.kind != FEATURES for row in cohort.rows)
    encoder = _encoder(estimators)
    made = {name: models.from_name(name, encoder=encoder or _COLOR) for name in bench.BASELINES if name not in present}
    added = {name: one for name, one in made.items() if has_slides or one.encoder in (None, encoder)}
    if added:
        _LOG.info("added to the table: the trivial baselines %s", ", ".join(added))
    return {**added, **estimators}


def _encoder(estimators: Mapping[str, models.Estimator | models.Auto]) -> str | None:
    """The encoder of the first estimator that looks at patches through one of the user's choice."""
    each = [one for several in estimators.values() for one in candidates(several)]
    choosing = [one for one in each if one.embedding_recipe is None and not one.dense and one.method != _COLOR]
    return next((one.encoder for one in choosing if one.encoder), None)


def candidates(estimator: models.Estimator | models.Auto) -> list[models.Estimator]:
    """An estimator itself, or the candidates of a choice."""
    return [*estimator.candidates.values()] if isinstance(estimator, models.Auto) else [estimator]
