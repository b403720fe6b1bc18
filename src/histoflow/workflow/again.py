"""An evaluation run again from its protocol, from paths to a table and its figures. Thin: the work is below."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from histoflow import bench, io, models
from histoflow.workflow.baselines import candidates
from histoflow.workflow.cohorts import embed_for, look_through
from histoflow.workflow.evaluation import counted_part, draw_evaluation
from histoflow.workflow.zeroshot import tell_stpath


def rerun(
    cohort: io.Cohort,
    protocol: str | Path,
    out: str | Path,
    *,
    weights: str | Path | None = None,
    of_stpath: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Embed a cohort, and run an evaluation again as its protocol states it, figures included.

    Parameters
    ----------
    cohort
        The same data, from `read_cohort`.
    protocol
        A ``protocol.json`` of `evaluate`, or its folder.
    out
        As in `evaluate`.
    weights
        Weights of the encoder as a local file, if it needs one.
    of_stpath
        Files of the pretrained model, if it was among the models, as in `models_for`.

    Returns
    -------
    As `evaluate`.

    Raises
    ------
    ReadError, ProtocolError
        As `bench.rerun`.
    """
    told = bench.read_protocol(protocol)
    counted = counted_part(cohort)
    bench.check_cohort(told, counted)  # refuses other data before minutes of embedding
    chosen = bench.models_of(told)
    tell_stpath(chosen, of_stpath or {})
    encoder = _encoder(chosen) if weights is not None else None
    ready = None if encoder is None else look_through(counted, encoder, weights)[1]
    embed_for(counted, chosen.values(), encoder=ready)
    table = bench.rerun(told, counted, models=chosen, out=out)
    draw_evaluation(table, Path(out), counted)
    return table


def _encoder(chosen: Mapping[str, models.Estimator | models.Auto]) -> str | None:
    """The encoder that a file of weights is for."""
    each = [one for several in chosen.values() for one in candidates(several)]
    return next((one.encoder for one in each if one.encoder and one.method != models.ColorBaseline.name), None)
