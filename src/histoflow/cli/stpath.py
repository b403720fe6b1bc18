"""What the pretrained model adds to the commands: its options, and what is made of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from histoflow._errors import OptionError
from histoflow.cli.root import PATH, genes_of

_OWN = ("vocabulary", "organ", "tech", "genes", "encoder_weights")

genes_option = click.option(
    "--genes", help="Of a pretrained model: all (the default), a file of names, or names separated by commas."
)
encoder_weights_option = click.option(
    "--encoder-weights", type=PATH, help="With --model: local file of the encoder's weights."
)
stpath_weights_option = click.option("--stpath-weights", type=PATH, help="File of STPath's weights, yours to bring.")


def stpath_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what STPath has to be told, whichever the command."""
    for option in (
        click.option("--tech", help="Technology whose counts STPath predicts.  [default: Visium]"),
        click.option("--organ", help="Organ of the tissue, for STPath."),
        click.option(
            "--vocabulary", type=PATH, help="STPath's gene vocabulary.  [default: symbol2ensembl.json beside weights]"
        ),
    ):
        command = option(command)
    return command


def model_and_target(
    paths: tuple[Path, ...], pretrained: str | None, options: dict[str, Any]
) -> tuple[Any, Path, Path | None]:
    """The model, saved or pretrained; what it is to predict; and a local file of its encoder's weights."""
    from histoflow import models, workflow

    wanted = ["SLIDE|COHORT"] if pretrained else ["MODEL", "SLIDE|COHORT"]
    if len(paths) != len(wanted):
        got = " ".join(map(str, paths)) or "nothing"
        raise click.UsageError(f"wanted {' '.join(wanted)}, got {got}")
    if pretrained:
        how = {name: options[name] for name in ("vocabulary", "organ")} | {"tech": options["tech"] or "Visium"}
        fitted = workflow.zero_shot(options["weights"], genes=genes_of(options["genes"]), **how)
        return fitted, paths[0], options["encoder_weights"]
    if idle := [name for name in _OWN if options[name] is not None]:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in idle)
        raise OptionError(f"{flags}: meant for --model stpath, not for the saved model {paths[0]}; leave it out")
    return models.load(paths[0]), paths[1], options["weights"]
