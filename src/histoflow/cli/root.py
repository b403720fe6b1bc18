"""What every command shares: the group, its options, how a result is said and an error told."""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from histoflow._errors import HistoflowWarning, OptionError, ReadError

if TYPE_CHECKING:
    from histoflow.pp import Panel

MANIFESTS = (".csv", ".tsv")
PATH = click.Path(path_type=Path)
_EVERY, _LISTS = "all", (".txt", ".csv", ".tsv")

_NO_LEVEL = "off"

encoder_option = click.option("--encoder", default="scatter", show_default=True, help="Encoder of the patches.")
weights_option = click.option("--weights", type=PATH, help="Local file of the encoder's weights.")
level_option = click.option(
    "--level", default="0.9", show_default=True, help="Part of measured values that intervals are to hold, or off."
)
amp_option = click.option("--amp", is_flag=True, help="Encode in bfloat16 where that is faster and agrees.")
panel_option = click.option("--panel", default="50", show_default=True, help="Number of genes, or a file of names.")
normalize_option = click.option("--normalize", default="library", show_default=True, help="library or none.")
min_counts_option = click.option("--min-counts", default=0, show_default=True, help="Leave out poorer spots.")
missing_option = click.option(
    "--missing",
    type=click.Choice(["error", "zero"]),
    default="error",
    show_default=True,
    help="A panel gene that a table lacks: an error, or zero in tables of one chemistry trimmed of empty genes.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


@click.group()
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="histoflow")
def cli(debug: bool) -> None:
    """Spatial gene expression from ordinary H&E slides."""
    said = logging.StreamHandler(sys.stderr)
    said.addFilter(_is_worth_saying)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[said])
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("histoflow").setLevel(logging.INFO)
    if not debug:
        # Other people's warnings help nobody here; our own are said as one line each.
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", HistoflowWarning)
        warnings.showwarning = show_warning


def _is_worth_saying(record: logging.LogRecord) -> bool:
    """Of others only warnings: some libraries turn their own chatter on when they are imported."""
    return record.levelno >= logging.WARNING or record.name.split(".")[0] == "histoflow"


def panel_of(text: str) -> int | Panel:
    """A number of genes, or the panel that a file lists, one name per line."""
    from histoflow.pp import Panel

    if text.isdecimal():
        return int(text)
    return Panel(tuple(_lines(text, "--panel", "neither a number nor a file of gene names")))


def _lines(text: str, option: str, what: str) -> list[str]:
    """Lines of a file that are not empty."""
    try:
        return [line.strip() for line in Path(text).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, ValueError) as err:
        if isinstance(err, OSError) and err.errno in (errno.EIO, errno.ESTALE):
            raise ReadError(f"cannot read {text}: {err.strerror}; check the disk or share it lies on") from err
        why = getattr(err, "strerror", None) or "it is not text"
        raise OptionError(f"{option} {text} is {what} ({why})") from err


def level_of(text: str) -> float | None:
    """The level of intervals, or None where none are wanted."""
    if text == _NO_LEVEL:
        return None
    from histoflow.models.residuals import HIGHEST_LEVEL

    try:
        level = float(text)
    except ValueError:
        level = float("nan")
    if not 0 < level <= HIGHEST_LEVEL:
        raise OptionError(f"--level {text}: give a part above 0 and up to {HIGHEST_LEVEL}, as 0.9, or {_NO_LEVEL}")
    return level


def genes_of(text: str | None) -> list[str] | None:
    """Names in a file, one a line, or in the text itself, with commas between them; None for all."""
    if text is None or text == _EVERY:
        return None
    if os.path.isfile(text):
        return _lines(text, "--genes", "no file of gene names")
    if Path(text).suffix.lower() in _LISTS:
        raise OptionError(f"--genes {text} does not exist; give a file of gene names, or the names themselves")
    return [name.strip() for name in text.split(",") if name.strip()]


def say(result: dict[str, Any], text: str, *, as_json: bool) -> None:
    """Print a result on standard output: as JSON, or the sentence that says where it is."""
    click.echo(json.dumps(result, default=str) if as_json else text)


def show_warning(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    """Say a warning as one line on standard error."""
    click.echo(f"warning: {message}", err=True)
