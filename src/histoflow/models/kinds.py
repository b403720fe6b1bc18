"""Every estimator that is none around another one, by name."""

from __future__ import annotations

from histoflow.models.base import Estimator
from histoflow.models.baselines import ColorBaseline, LibrarySizeBaseline, LocationBaseline, MeanBaseline
from histoflow.models.ridge import RidgeProbe
from histoflow.models.stflow import STFlow
from histoflow.models.stpath import STPathZeroShot
from histoflow.models.subspot import SubspotRegressor

KINDS: dict[str, type[Estimator]] = {
    kind.name: kind
    for kind in (
        *(MeanBaseline, LibrarySizeBaseline, ColorBaseline, LocationBaseline),
        *(RidgeProbe, STFlow, SubspotRegressor, STPathZeroShot),
    )
}
