"""The command that scores models on what they have not seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from histoflow._errors import OptionError
from histoflow.cli.root import (
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
from histoflow.cli.stpath import stpath_options, stpath_weights_option

_STPATH = ("stpath_weights", "vocabulary", "organ", "tech")
_WITH_PROTOCOL = {"cohort", "out", "protocol", "as_json", "weights", *_STPATH}


@click.command()
@click.argument("cohort", type=PATH)
@click.option("--out", type=PATH, required=True, help="Folder of table, protocol, predictions and figures.")
@click.option("--by", default="section", show_default=True, help="section, block, patient, study; or area, within.")
@click.option("--buffer-um", type=float, help="With --by area: distance of training spots, in µm.")
@click.option("--models", "names", default="mean,library_size,color,hest_fm,stflow", show_default=True)
@encoder_option
@weights_option
@amp_option
@panel_option
@normalize_option
@min_counts_option
@missing_option
@click.option("--seeds", default=1, show_default=True, help="Number of seeds.")
@level_option
@click.option("--protocol", type=PATH, help="Run this protocol.json of an earlier evaluation again.")
@stpath_options
@stpath_weights_option
@json_option
def evaluate(cohort: Path, out: Path, protocol: Path | None, as_json: bool, **options: Any) -> None:
    """Score models on parts of a COHORT that they have not seen."""
    from histoflow import bench

    if protocol is None:
        table, patients = _evaluated(cohort, out, **options)
    else:
        _refuse_beside_protocol()
        table, patients = _again(cohort, out, protocol, **options)
    told = {"results": str(out / "results.parquet"), "protocol": str(out / "protocol.json")}
    where = f"table, protocol, predictions and figures are in {out}"
    say(told | bench.as_json(table, patients), f"{bench.in_words(table, patients)}\n{where}", as_json=as_json)


def _evaluated(
    cohort: Path, out: Path, by: str, buffer_um: float | None, names: str, missing: str, **options: Any
) -> tuple[Any, dict[str, str | None]]:
    """The table of a new evaluation, and the patient of each section."""
    from histoflow import io, workflow

    sections = io.read_cohort(cohort, missing=missing)
    split = _split(by, buffer_um)
    looks_through = workflow.chosen_encoder(options["encoder"], options["weights"], amp=options["amp"])
    how: dict[str, Any] = {"by": split, "normalize": options["normalize"], "level": level_of(options["level"])}
    chosen = workflow.models_for(
        sections, names.split(","), encoder=looks_through, of_stpath=_of_stpath(options), **how
    )
    same = {"normalize": options["normalize"], "min_counts": options["min_counts"]}
    asked = {"panel": panel_of(options["panel"]), "seeds": range(options["seeds"]), **same}
    table = workflow.evaluate(sections, out, estimators=chosen, by=split, **asked)
    return table, workflow.patients_of(sections)


def _again(cohort: Path, out: Path, protocol: Path, **options: Any) -> tuple[Any, dict[str, str | None]]:
    """The table of an evaluation that is run again, and the patient of each section."""
    from histoflow import bench, io, workflow

    sections = io.read_cohort(cohort, missing=bench.read_protocol(protocol)["missing"])
    own = {"weights": options["weights"], "of_stpath": _of_stpath(options)}
    return workflow.rerun(sections, protocol, out, **own), workflow.patients_of(sections)


def _split(by: str, buffer_um: float | None) -> Any:
    """What is held out: a level, or areas behind a buffer."""
    from histoflow import bench

    if buffer_um is not None and by != "area":
        raise OptionError(f"--buffer-um is for --by area, not for --by {by}; leave it out")
    return bench.Areas(buffer_um=buffer_um) if by == "area" else by


def _of_stpath(options: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("stpath_"): options[name] for name in _STPATH}


def _refuse_beside_protocol() -> None:
    """A protocol states everything but where files are."""
    context = click.get_current_context()
    given = [name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    flags = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    if beside := [flags[name] for name in given if name not in _WITH_PROTOCOL]:
        raise OptionError(f"{', '.join(beside)}: the protocol states it already; leave it out, or evaluate anew")
