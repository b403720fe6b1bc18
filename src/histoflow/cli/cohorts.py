"""Commands on cohorts and slides: demo, fit, predict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from histoflow._errors import OptionError
from histoflow.cli.root import (
    MANIFESTS,
    PATH,
    amp_option,
    encoder_option,
    json_option,
    level_of,
    level_option,
    min_counts_option,
    missing_option,
    normalize_option,
    panel_of,
    panel_option,
    say,
    weights_option,
)
from histoflow.cli.stpath import (
    encoder_weights_option,
    genes_option,
    model_and_target,
    stpath_options,
)


@click.command()
@click.option("--dataset", type=click.Choice(["toy", "her2st", "breast"]), default="toy", show_default=True)
@click.option("--out", type=PATH, default=Path("demo"), show_default=True)
@json_option
def demo(dataset: str, out: Path, as_json: bool) -> None:
    """Fit, predict a held-out section, evaluate, draw and report, on built-in data."""
    from histoflow import workflow

    result = workflow.demo(out, dataset=dataset)
    scores = "\n".join(f"  {model:40s} {r:.3f}" for model, r in result["mean_r"].items())
    pages = "\n".join(f"report of {name}: {path}" for name, path in result["reports"].items())
    text = f"mean r over genes on the held-out section of {dataset}:\n{scores}\nfigures, model and table are in {out}"
    text = f"{text}\n{pages}"
    say(result, text, as_json=as_json)


@click.command()
@click.argument("cohort", type=PATH)
@click.option("--out", type=PATH, required=True, help="Folder of the model.")
@click.option("--model", default="stflow", show_default=True, help="An estimator's name, or auto for the best.")
@encoder_option
@weights_option
@amp_option
@panel_option
@normalize_option
@min_counts_option
@missing_option
@click.option("--seed", default=0, show_default=True)
@level_option
@json_option
def fit(
    cohort: Path,
    out: Path,
    as_json: bool,
    encoder: str,
    weights: Path | None,
    amp: bool,
    panel: str,
    missing: str,
    level: str,
    **options: Any,
) -> None:
    """Fit a model on the references of a COHORT manifest; one that was killed goes on at its last epoch."""
    from histoflow import io, models, workflow

    sections = io.read_cohort(cohort, missing=missing)
    looks_through = workflow.chosen_encoder(encoder, weights, amp=amp)
    how = {"encoder": looks_through, "panel": panel_of(panel), "level": level_of(level), **options}
    model = workflow.fit_to_folder(sections, out, **how)
    known = ("sections", "n_spots", "n_spots_left_out", "auto")
    told = {key: model.training_[key] for key in known if key in model.training_}
    trained = f"{sum(told['n_spots'])} spots of {len(told['sections'])} sections ({told['n_spots_left_out']} left out)"
    chosen = f"{models.auto_sentence(told['auto'])}\n" if "auto" in told else ""
    text = f"{chosen}fitted {model.method} on {trained}; the model is in {out}"
    say({"model": str(out), **told}, text, as_json=as_json)


@click.command()
@click.argument("paths", nargs=-1, type=PATH, metavar="[MODEL] SLIDE|COHORT")
@click.option("--model", "pretrained", type=click.Choice(["stpath"]), help="In place of a saved MODEL.")
@click.option("--out", type=PATH, required=True, help="Where the prediction goes, as .h5ad or .zarr.")
@click.option("--section", help="Which section of a cohort.")
@click.option("--mpp", type=float, help="µm per pixel of a slide without a scale of its own.")
@click.option("--samples", default=16, show_default=True, help="Draws of the flow.")
@click.option("--at", type=click.Choice(["spots", "tiles"]), default=None, help="Spots of a section, or a grid.")
@click.option("--weights", type=PATH, help="Local file of the encoder's weights; with --model, of that model's.")
@stpath_options
@genes_option
@encoder_weights_option
@json_option
def predict(
    paths: tuple[Path, ...],
    pretrained: str | None,
    out: Path,
    section: str | None,
    mpp: float | None,
    samples: int,
    at: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Predict a SLIDE, or a section of a COHORT manifest, with a saved MODEL or a pretrained one."""
    from histoflow import workflow

    fitted, target, encoder_weights = model_and_target(paths, pretrained, options)
    of_cohort = target.suffix.lower() in MANIFESTS
    if (mpp is not None) if of_cohort else (section is not None):
        given, wanted = ("--mpp", "the column mpp of the manifest") if of_cohort else ("--section", "a cohort manifest")
        raise OptionError(f"{given} means nothing for {target}; use {wanted}")
    if not of_cohort and at == "spots":
        raise OptionError(f"--at spots needs a cohort manifest that says where the spots are, got {target}")
    embedded = _embedded(fitted, target, section if of_cohort else mpp, at, encoder_weights)
    n_spots, n_genes = workflow.predict_to_file(fitted, embedded, out, n_samples=samples)
    told = {"prediction": str(out), "n_spots": n_spots, "n_genes": n_genes}
    say(told, f"predicted {n_genes} genes at {n_spots} places; they are in {out}", as_json=as_json)


def _embedded(fitted: Any, target: Path, which: Any, at: str | None, weights: Path | None) -> Any:
    """The spots or tiles to predict; `which` is the section of a cohort, or the µm per pixel of a slide."""
    from histoflow import io, workflow

    if target.suffix.lower() not in MANIFESTS:
        return workflow.embed_tiles_for(fitted, io.open_wsi(target, mpp=which), weights)
    cohort = io.read_cohort(target)
    return workflow.embed_row_for(fitted, cohort, _row(cohort, which).section, at=at, weights=weights)


def _row(cohort: Any, section: str | None) -> Any:
    """The row of a cohort that is meant: the one of that name, or the only one that nothing was fitted on."""
    unseen = [row for row in cohort.rows if row.role != "reference"]
    rows = [row for row in cohort.rows if row.section == section] if section else unseen
    if len(rows) != 1:
        known = ", ".join(row.section for row in cohort.rows)
        raise OptionError(
            f"--section {section or 'is not given and'} names {len(rows)} sections; choose one of {known}"
        )
    return rows[0]
