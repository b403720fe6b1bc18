"""The command that writes the report of an evaluation or of a prediction."""

from __future__ import annotations

from pathlib import Path

import click

from histoflow.cli.root import PATH, json_option, say


@click.command()
@click.argument("source", type=PATH, metavar="DIR|PRED.h5ad")
@click.option("--out", type=PATH, default=Path("report.html"), show_default=True, help="Where the page goes, as .html.")
@json_option
def report(source: Path, out: Path, as_json: bool) -> None:
    """Write the evaluation in DIR, or the prediction PRED.h5ad, as one HTML page that needs nothing else."""
    from histoflow import workflow

    written = workflow.report(source, out)
    size = written.stat().st_size
    told = {"report": str(written), "bytes": size}
    say(told, f"the report is in {written} ({size / 1e6:.1f} MB); open it in a browser", as_json=as_json)
