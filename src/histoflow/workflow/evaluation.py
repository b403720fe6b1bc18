"""Held-out evaluation of a cohort, from paths to a table and its figures. Thin: the work is below."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from histoflow import bench, io, models, pl
from histoflow._files import file_name
from histoflow._keys import LOWER, SPATIAL_UM, UNS, UPPER, facts, section_name
from histoflow.io.tissue import thumbnail
from histoflow.pp import Encoder, Panel
from histoflow.workflow.baselines import with_baselines
from histoflow.workflow.cohorts import FEATURES, embed_for, look_through, named
from histoflow.workflow.reports import keep_pictures
from histoflow.workflow.zeroshot import tell_stpath

if TYPE_CHECKING:
    from wsidata import WSIData

LEVEL = 0.9
"""Of intervals, where nothing else is asked for."""
N_SHOWN = 4
"""Genes in a figure."""


def models_for(
    cohort: io.Cohort,
    names: Iterable[str],
    *,
    encoder: str | Encoder = "scatter",
    weights: str | Path | None = None,
    by: Any = "section",
    normalize: str = "library",
    level: float | None = LEVEL,
    of_stpath: Mapping[str, Any] | None = None,
) -> dict[str, models.Estimator | models.Auto]:
    """Make estimators to compare, and embed the sections of a cohort for them.

    Parameters
    ----------
    cohort
        From `read_cohort`; its rows of role query are left alone.
    names
        Names of estimators, ``"auto"`` among them.
    encoder, weights
        As in `fit`, for those that let one choose.
    by
        As in `bench.run`; what cannot be split is refused before minutes of embedding.
    normalize
        As in `Estimator`.
    level
        Level of the intervals of those that may have some, see `models.from_name`; None for no intervals.
    of_stpath
        Options of the pretrained model, where it is among the names, as in `models.STPathZeroShot`.

    Returns
    -------
    Estimators by name, for `evaluate`.

    Raises
    ------
    OptionError
        If a name or the encoder is not offered.
    SplitError
        If the cohort cannot be split so.
    WeightsError
        If the pretrained model's weights or vocabulary are missing.
    """
    counted = counted_part(cohort)
    bench.plan_folds(counted, by)
    how: dict[str, Any] = {"normalize": normalize, "level": level, "of_stpath": of_stpath}
    return estimators_for(counted, names, encoder=encoder, weights=weights, **how)


def estimators_for(
    sections: Sequence[AnnData],
    names: Iterable[str],
    *,
    encoder: str | Encoder = "scatter",
    weights: str | Path | None = None,
    normalize: str = "library",
    level: float | None = LEVEL,
    of_stpath: Mapping[str, Any] | None = None,
) -> dict[str, models.Estimator | models.Auto]:
    """Make estimators to compare, and embed sections for them; as `models_for`, without a look at how they split."""
    name, ready = look_through(sections, encoder, weights)
    chosen = {model: named(model, ready, encoder=name, normalize=normalize, level=level) for model in names}
    tell_stpath(chosen, of_stpath or {})
    embed_for(sections, chosen.values(), encoder=ready)
    return chosen


def counted_part(cohort: io.Cohort) -> io.Cohort:
    """The part of a cohort that an evaluation looks at: all rows but those to predict."""
    return cohort.select(sections=[row.section for row in cohort.rows if row.role != "query"])


def evaluate(
    cohort: io.Cohort,
    out: str | Path,
    *,
    estimators: Mapping[str, models.Estimator | models.Auto] | None = None,
    by: Any = "section",
    panel: int | Panel = 50,
    normalize: str = "library",
    min_counts: int = 0,
    seeds: Iterable[int] = (0,),
) -> pd.DataFrame:
    """Embed a cohort, score every model on what it has not seen beside the trivial baselines, and draw the figures.

    Parameters
    ----------
    cohort
        From `read_cohort`; its rows of role query are left alone.
    out
        Folder of the table, predictions and figures; a later run takes up what is finished there.
    estimators
        By the name they have in the table; None for `bench.default_models` with intervals. Of `bench.BASELINES` those
        that are not among them are added, before them, looking through the same encoder.
    by, panel, normalize, min_counts, seeds
        As in `bench.run`.

    Returns
    -------
    The long table of `bench.run`; also ``results.parquet`` in `out`, beside ``protocol.json``, predictions and figures.
    """
    counted = counted_part(cohort)
    chosen = with_baselines(counted, bench.default_models(level=LEVEL) if estimators is None else estimators)
    bench.plan_folds(counted, by)  # refuses what cannot be split before minutes of embedding
    embed_for(counted, chosen.values())
    options = {"by": by, "panel": panel, "normalize": normalize, "min_counts": min_counts, "seeds": tuple(seeds)}
    table = bench.run(counted, models=chosen, out=out, **options)
    draw_evaluation(table, Path(out), counted)
    return table


def patients_of(cohort: io.Cohort) -> dict[str, str | None]:
    """Patient of each section that an evaluation looks at; None where it is not stated."""
    known = {section_name(section): facts(section).get("patient") for section in counted_part(cohort)}
    return {name: None if patient is None else str(patient) for name, patient in known.items()}


def draw_evaluation(table: pd.DataFrame, out: Path, sections: Sequence[AnnData]) -> list[Path]:
    """Draw the figures of an evaluation: models, genes, and maps of every held-out section; keep pictures for a report.

    Parameters
    ----------
    table
        From `bench.run`.
    out
        The folder that it wrote to; figures go to ``figures/`` in it, pictures of tissue to ``thumbnails/``.
    sections
        The sections of that run.

    Returns
    -------
    The figures' files.
    """
    keep_pictures(out, sections, table["section"].unique())
    scores = bench.summary(table)
    of_r = scores[scores["metric"] == "pearson"]
    label = "; ".join(dict.fromkeys(table["shares"]))
    figures = [
        pl.save(
            pl.model_bars(of_r[["model", "fold", "value"]], title=f"held out: {label}"), out / "figures" / "models.png"
        )
    ]
    of_sections = table[table["section"] != ""]
    drawn = [str(model) for model in table["model"].unique() if model != bench.CEILING_MODEL][-1]
    for (fold, section), part in of_sections.groupby(["fold", "section"], sort=False):
        figures += _draw_section(part, out, str(fold), drawn, next(s for s in sections if section_name(s) == section))
    return figures


def _draw_section(part: pd.DataFrame, out: Path, fold: str, model: str, section: AnnData) -> list[Path]:
    """Maps, scatters and bars of one held-out section, as the last model of the table predicts it."""
    scored = part[(part["model"] == model) & (part["metric"] == "pearson")]
    name, seed = section_name(section), int(scored["seed"].min())
    own = scored[scored["seed"] == seed]
    if (own["error"] != "").any():
        return []
    predicted = bench.read_prediction(out, fold=fold, section=name, model=model, seed=seed)
    r = own.set_index("gene")["value"]
    genes = _spread_by_rank(r)
    shown = predicted[:, genes]
    pair = (np.asarray(shown.layers["measured"]), np.asarray(shown.X))
    scale = str(facts(predicted)["scale"])
    about: dict[str, Any] = {"genes": genes, "r": r[genes].tolist(), "scale_label": scale}
    width = np.asarray(shown.layers[UPPER]) - shown.layers[LOWER] if UPPER in shown.layers else None
    maps = pl.measured_beside_predicted(
        *pair,
        xy_um=shown.obsm[SPATIAL_UM],
        thumbnail=None if facts(section).get("kind") == FEATURES else slide_thumbnail(io.open_section_slide(section)),
        width=width,
        **about,
    )
    bars = pl.gene_bars(r, title=f"{name}, {model}: {part['shares'].iloc[0]}")
    folder = out / "figures"
    drawn = {"maps": maps, "scatter": pl.gene_scatter(*pair, **about), "genes": bars}
    stem = fold if fold.startswith(f"{name}-") else name  # an area of the section, of which there are several
    return [pl.save(figure, folder / f"{file_name(stem)}-{kind}.png") for kind, figure in drawn.items()]


def _spread_by_rank(r: pd.Series) -> list[str]:
    """Genes from the best to the worst predicted, at even distances in rank: no picking of the good ones."""
    ranked = list(r.fillna(0.0).sort_values(ascending=False, kind="stable").index)
    places = np.linspace(0, len(ranked) - 1, min(N_SHOWN, len(ranked))).round().astype(int)
    return [str(ranked[place]) for place in places]


def slide_thumbnail(wsi: WSIData) -> pl.Thumbnail:
    """Reduce an opened slide to a small image that knows its place in µm."""
    known = wsi.attrs[UNS]
    width, height = known["slide_size_px"]
    return pl.Thumbnail(thumbnail(wsi), (0.0, width * known["mpp_x"], 0.0, height * known["mpp_y"]))
