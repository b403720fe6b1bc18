"""The command that runs a task over a cohort, here or on a cluster."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

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

_WHERE = ("scheduler", "cluster", "n_workers", "threads", "retries", "memory", "walltime", "queue")
_READ: dict[str, Callable[[str], Any]] = {
    "level": level_of,
    "panel": panel_of,
    "models": lambda names: names.split(","),
}


def _where_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what says where tasks run."""
    for option in (
        click.option("--queue", help="Partition or queue of the jobs."),
        click.option("--walltime", help="Longest time of a job, as the queue writes it.  [default: a day]"),
        click.option("--memory", help="Memory of a job.  [default: 8GB]"),
        click.option("--retries", default=2, show_default=True, help="New tries after an error not of the data."),
        click.option("--threads", default=1, show_default=True, help="Threads of one task; results depend on it."),
        click.option("--workers", "n_workers", default=2, show_default=True, help="Workers of a started cluster."),
        click.option("--cluster", type=click.Choice(["local", "slurm", "pbs"]), help="Start one of these."),
        click.option("--scheduler", metavar="tcp://…", help="Use this Dask scheduler."),
    ):
        command = option(command)
    return command


def _task_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of the tasks; those that are given are handed on, so that a wrong one is told."""
    for option in (
        *(stpath_weights_option, stpath_options, level_option),
        click.option("--seeds", default=1, show_default=True, help="evaluate: number of seeds."),
        *(missing_option, min_counts_option, normalize_option, panel_option),
        click.option("--models", help="evaluate: names of the models, as evaluate takes them."),
        click.option("--buffer-um", type=float, help="evaluate, --by area: distance of training spots, in µm."),
        click.option("--by", help="evaluate: section (the default), block, patient, study, area or within."),
        click.option("--at", type=click.Choice(["spots", "tiles"]), help="predict: spots of a section, or a grid."),
        click.option("--samples", default=16, show_default=True, help="predict: draws of the flow."),
        click.option("--model", type=PATH, help="predict: folder of the model."),
        click.option("--step-um", type=float, help="embed: distance of the tiles of a slide.  [default: 112]"),
        *(amp_option, weights_option, encoder_option),
    ):
        command = option(command)
    return command


@click.group()
def cohort() -> None:
    """Work on all slides of a cohort."""


@cohort.command("run")
@click.argument("manifest", type=PATH, metavar="COHORT")
@click.option("--task", required=True, type=click.Choice(["embed", "predict", "evaluate"]))
@click.option("--out", type=PATH, required=True, help="Folder of the results, a summary, and records.")
@_where_options
@click.option("--resume/--no-resume", default=True, show_default=True, help="Keep what is finished.")
@click.option("--device", default="cpu", show_default=True, help="Where the encoder runs; cuda: one GPU a worker.")
@_task_options
@json_option
def run(manifest: Path, task: str, out: Path, resume: bool, device: str, as_json: bool, **options: Any) -> None:
    """Do a task for every slide of a COHORT manifest; a second run does what is missing."""
    from histoflow import workflow
    from histoflow.cohort import Where

    where = Where(**{name: options[name] for name in _WHERE})
    chosen = {name: _READ[name](options[name]) if name in _READ else options[name] for name in _given()}
    table = workflow.run_cohort(manifest, out, task=task, where=where, device=device, resume=resume, **chosen)
    failed = table[table["status"] == "failed"]
    counted = table["status"].value_counts()
    told = {"out": str(out), "task": task, "summary": str(out / "summary.csv"), **_counts(counted)}
    text = f"{', '.join(f'{n} {status}' for status, n in counted.items())}; the table is {out / 'summary.csv'}"
    say(told | {"tasks": json.loads(table.to_json(orient="records"))}, text, as_json=as_json)
    if len(failed):
        first = failed.iloc[0]
        click.echo(
            f"error: {len(failed)} of {len(table)} failed: {', '.join(failed['name'])} ({first['error']}: "
            f"{first['message']}); see {out / 'summary.csv'}, and run it again when they are mended",
            err=True,
        )
        raise click.exceptions.Exit(1)


def _given() -> list[str]:
    """Options of the task that stand on the command line."""
    context = click.get_current_context()
    own = {"manifest", "task", "out", "resume", "device", "as_json", *_WHERE}
    named = [name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    return [name for name in named if name not in own]


def _counts(counted: Any) -> dict[str, int]:
    return {f"n_{status}": int(counted.get(status, 0)) for status in ("done", "kept", "failed")}
