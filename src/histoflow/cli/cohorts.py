"""Commands on cohorts and slides: demo, fit, predict, evaluate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from histoflow._errors import OptionError
from histoflow.cli.root import (
    MANIFESTS,
    PATH,
    encoder_option,
    json_option,
    min_counts_option,
    normalize_option,
    panel_of,
    panel_option,
    say,
    weights_option,
)


@click.command()
@click.option("--dataset", type=click.Choice(["toy", "her2st", "breast"]), default="toy", show_default=True)
@click.option("--out", type=PATH, default=Path("demo"), show_default=True)
@json_option
def demo(dataset: str, out: Path, as_json: bool) -> None:
    """Fit, predict a held-out section, evaluate and draw, on built-in data."""
    from histoflow import workflow

    result = workflow.demo(out, dataset=dataset)
    scores = "\n".join(f"  {model:40s} {r:.3f}" for model, r in result["mean_r"].items())
    text = f"mean r over genes on the held-out section of {dataset}:\n{scores}\nfigures, model and table are in {out}"
    say(result, text, as_json=as_json)


@click.command()
@click.argument("cohort", type=PATH)
@click.option("--out", type=PATH, required=True, help="Folder of the model.")
@click.option("--model", default="stflow", show_default=True)
@encoder_option
@weights_option
@panel_option
@normalize_option
@min_counts_option
@click.option("--seed", default=0, show_default=True)
@json_option
def fit(cohort: Path, out: Path, as_json: bool, panel: str, **options: Any) -> None:
    """Fit a model on the references of a COHORT manifest."""
    from histoflow import io, workflow

    model = workflow.fit(io.read_cohort(cohort), panel=panel_of(panel), **options)
    model.save(out)
    told = {key: model.training_[key] for key in ("sections", "n_spots", "n_spots_left_out")}
    trained = f"{sum(told['n_spots'])} spots of {len(told['sections'])} sections ({told['n_spots_left_out']} left out)"
    say({"model": str(out), **told}, f"fitted {model.name} on {trained}; the model is in {out}", as_json=as_json)


@click.command()
@click.argument("model", type=PATH)
@click.argument("target", type=PATH)
@click.option("--out", type=PATH, required=True, help="Where the prediction goes, as .h5ad.")
@click.option("--section", help="Which section of a cohort.")
@click.option("--mpp", type=float, help="µm per pixel of a slide without a scale of its own.")
@click.option("--samples", default=16, show_default=True, help="Draws of the flow.")
@click.option("--at", type=click.Choice(["spots", "tiles"]), default=None, help="Spots of a section, or a grid.")
@weights_option
@json_option
def predict(
    model: Path,
    target: Path,
    out: Path,
    section: str | None,
    mpp: float | None,
    samples: int,
    at: str | None,
    weights: Path | None,
    as_json: bool,
) -> None:
    """Predict a slide, or a section of a cohort manifest, with a saved MODEL."""
    from histoflow import io, models, workflow

    of_cohort = target.suffix.lower() in MANIFESTS
    if (mpp is not None) if of_cohort else (section is not None):
        given, wanted = ("--mpp", "the column mpp of the manifest") if of_cohort else ("--section", "a cohort manifest")
        raise OptionError(f"{given} means nothing for {target}; use {wanted}")
    fitted = models.load(model)
    how: dict[str, Any] = {"n_samples": samples, "weights": weights}
    if of_cohort:
        predicted = _predict_row(fitted, io.read_cohort(target), section, at, how)
    elif at == "spots":
        raise OptionError(f"--at spots needs a cohort manifest that says where the spots are, got {target}")
    else:
        predicted = workflow.predict_slide(fitted, io.open_wsi(target, mpp=mpp), **how)
    workflow.write_h5ad(predicted, out)
    told = {"prediction": str(out), "n_spots": predicted.n_obs, "n_genes": predicted.n_vars}
    say(told, f"predicted {predicted.n_vars} genes at {predicted.n_obs} places; they are in {out}", as_json=as_json)


def _predict_row(fitted: Any, cohort: Any, section: str | None, at: str | None, how: dict[str, Any]) -> Any:
    from histoflow import io, workflow

    unseen = [row for row in cohort.rows if row.role != "reference"]
    rows = [row for row in cohort.rows if row.section == section] if section else unseen
    if len(rows) != 1:
        known = ", ".join(row.section for row in cohort.rows)
        raise OptionError(
            f"--section {section or 'is not given and'} names {len(rows)} sections; choose one of {known}"
        )
    row = rows[0]
    if row.kind == "slide" or (at == "tiles" and row.counts is None and row.kind != "features"):
        return workflow.predict_slide(fitted, io.open_wsi(row.slide, mpp=row.mpp), **how)
    read = cohort.select(sections=[row.section])[0]
    if at == "tiles":
        return workflow.predict_slide(fitted, io.open_section_slide(read), **how)
    return workflow.predict_section(fitted, read, **how)


@click.command()
@click.argument("cohort", type=PATH)
@click.option("--out", type=PATH, required=True, help="Folder of table, predictions and figures.")
@click.option("--by", default="section", show_default=True, help="section, block, patient or study.")
@click.option("--models", "names", default="mean,library_size,color,hest_fm,stflow", show_default=True)
@encoder_option
@weights_option
@panel_option
@normalize_option
@min_counts_option
@click.option("--seeds", default=1, show_default=True, help="Number of seeds.")
@json_option
def evaluate(
    cohort: Path,
    out: Path,
    by: str,
    names: str,
    encoder: str,
    weights: Path | None,
    panel: str,
    normalize: str,
    min_counts: int,
    seeds: int,
    as_json: bool,
) -> None:
    """Score models on sections of a COHORT that they have not seen."""
    from histoflow import bench, io, models, pp, workflow

    ready = pp.get_encoder(encoder, weights=weights)
    chosen = {name: models.from_name(name, encoder=ready.name) for name in names.split(",")}
    sections = io.read_cohort(cohort)
    options: dict[str, Any] = {
        "by": by,
        "panel": panel_of(panel),
        "normalize": normalize,
        "min_counts": min_counts,
        "seeds": range(seeds),
    }
    counted = sections.select(sections=[row.section for row in sections.rows if row.role != "query"])
    bench.plan_folds(counted, options["by"])
    workflow.embed_for(counted, chosen.values(), encoder=ready)
    table = workflow.evaluate(sections, out, estimators=chosen, **options)
    scores = bench.summary(table)
    wide = scores.pivot_table(index="model", columns="metric", values="value", aggfunc="mean", sort=False, dropna=False)
    told = {"results": str(out / "results.parquet"), "mean": json.loads(wide.to_json(orient="index"))}
    shares = "; ".join(dict.fromkeys(table["shares"]))
    say(
        told,
        f"{wide.round(3).to_string()}\nheld out: {shares}\ntable, predictions and figures are in {out}",
        as_json=as_json,
    )
