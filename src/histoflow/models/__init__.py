"""Estimators: fit on sections that have both images and counts, predict on slides that have not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from histoflow._errors import OptionError
from histoflow.models.auto import Auto
from histoflow.models.auto import sentence as auto_sentence
from histoflow.models.base import Estimator, load_estimator
from histoflow.models.baselines import ColorBaseline, LibrarySizeBaseline, LocationBaseline, MeanBaseline
from histoflow.models.calibrated import Calibrated
from histoflow.models.crossfit import CrossFit, cross_fit, training_folds
from histoflow.models.kinds import KINDS
from histoflow.models.lazyslide import as_lazyslide_model
from histoflow.models.member import Network
from histoflow.models.ridge import RidgeProbe
from histoflow.models.stflow import STFlow
from histoflow.models.stpath import STPathZeroShot
from histoflow.models.subspot import SubspotRegressor
from histoflow.models.training import Training

NAMES = tuple(KINDS)
"""Names of all estimators, as options take them."""
AUTO_NAMES = (
    *(MeanBaseline.name, LibrarySizeBaseline.name, ColorBaseline.name),
    *(RidgeProbe.name, STFlow.name, SubspotRegressor.name),
)
"""What `auto` chooses from."""
_WITH_INTERVALS = (*AUTO_NAMES[:1], *AUTO_NAMES[2:])
_ALL_KINDS: dict[str, type[Estimator]] = {**KINDS, Calibrated.name: Calibrated}

__all__ = [
    "AUTO_NAMES",
    "NAMES",
    "Auto",
    "Calibrated",
    "ColorBaseline",
    "CrossFit",
    "Estimator",
    "LibrarySizeBaseline",
    "LocationBaseline",
    "MeanBaseline",
    "Network",
    "RidgeProbe",
    "STFlow",
    "STPathZeroShot",
    "SubspotRegressor",
    "Training",
    "as_lazyslide_model",
    "auto",
    "auto_sentence",
    "cross_fit",
    "from_name",
    "from_options",
    "load",
    "training_folds",
]


def load(path: str | Path) -> Estimator:
    """Read a model that `Estimator.save` wrote.

    Parameters
    ----------
    path
        Its folder.

    Raises
    ------
    ReadError
        If the folder or a file in it is missing.
    ModelFormatError
        If it is damaged, or written by a newer version.

    Examples
    --------
    >>> model = load("model/")  # doctest: +SKIP
    """
    return load_estimator(path, _ALL_KINDS)


def from_name(
    name: str, *, encoder: str = "scatter", normalize: str = "library", seed: int = 0, level: float | None = None
) -> Estimator:
    """Make the estimator called `name`, with its defaults.

    Parameters
    ----------
    name
        One of `NAMES`.
    encoder
        Encoder of the estimators that let one choose.
    normalize
        ``"library"`` or ``"none"``, see `Estimator`.
    seed
        The only source of randomness.
    level
        Level of its intervals, see `Calibrated`; None for no intervals. The trivial baselines ``"library_size"`` and
        ``"location"``, and the pretrained model, have none in any case.

    Raises
    ------
    OptionError
        If there is none of that name, or it does not predict on that scale.
    """
    if name not in KINDS:
        raise OptionError(f"model is {name!r}; choose one of {', '.join(NAMES)}")
    made = KINDS[name].from_options({"normalize": normalize, "seed": seed})
    chooses = made.encoder is not None and made.embedding_recipe is None and name != ColorBaseline.name
    made = made.clone(encoder=encoder) if chooses else made
    return Calibrated(made, level) if level is not None and name in _WITH_INTERVALS else made


def from_options(name: str, options: Mapping[str, Any]) -> Estimator:
    """Make the estimator called `name` of what `Estimator.options` returned.

    Raises
    ------
    OptionError
        If there is none of that name.
    """
    if name not in _ALL_KINDS:
        raise OptionError(f"model is {name!r}; choose one of {', '.join(NAMES)}")
    return _ALL_KINDS[name].from_options(options)


def auto(
    *,
    encoder: str = "scatter",
    normalize: str = "library",
    seed: int = 0,
    looks_at_slides: bool = True,
    level: float | None = None,
) -> Auto:
    """Make the choice among `AUTO_NAMES`, with their defaults.

    Parameters
    ----------
    encoder, normalize, seed, level
        As in `from_name`.
    looks_at_slides
        Whether sections have slides; without them, only candidates that look through `encoder`, or at nothing, remain.
    """
    made = {name: from_name(name, encoder=encoder, normalize=normalize, seed=seed) for name in AUTO_NAMES}
    if not looks_at_slides:
        made = {name: one for name, one in made.items() if one.slot in (None, encoder)}
    return Auto(made, level)
