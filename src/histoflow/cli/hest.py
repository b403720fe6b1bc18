"""The command on the HEST-Benchmark's folder."""

from __future__ import annotations

import json
from pathlib import Path

import click

from histoflow.cli.root import PATH, encoder_option, json_option, say, weights_option

_LEGEND = """\
tasks, average: pooled r as the leaderboard has it, over genes, then folds, then tasks; a NaN stays one
average_nan_as_0, n_nan: the same with genes without a correlation as 0, and how many there were
per_section: mean r of single sections, which no difference between sections can raise
hest_fm-hest is the benchmark's recipe: predictions without a mean, so MSE and R² of it mean nothing"""


@click.command("hest-bench")
@click.argument("folder", type=PATH)
@click.option("--out", type=PATH, required=True, help="Folder of table, models and predictions.")
@encoder_option
@weights_option
@click.option("--models", "names", default="hest_fm,stflow", show_default=True, help="hest_fm runs both protocols.")
@click.option("--tasks", help="Names of the tasks wanted, such as IDC,PRAD; all if not given.")
@click.option("--seed", default=0, show_default=True)
@json_option
def hest_bench(
    folder: Path,
    out: Path,
    encoder: str,
    weights: Path | None,
    names: str,
    tasks: str | None,
    seed: int,
    as_json: bool,
) -> None:
    """Run the HEST-Benchmark's FOLDER, or one task of it, and print the leaderboard's table."""
    from histoflow import bench, pp, workflow

    ready = pp.get_encoder(encoder, weights=weights)
    chosen = bench.hest_models(names.split(","), encoder=ready.name, seed=seed)
    wanted = None if tasks is None else tasks.split(",")
    board = bench.hest_leaderboard(
        workflow.hest_bench(folder, out, encoder=ready, estimators=chosen, tasks=wanted, seed=seed)
    )
    told = {"results": str(out / "results.parquet"), "leaderboard": json.loads(board.to_json(orient="records"))}
    text = f"{board.round(4).to_string(index=False)}\n{_LEGEND}\nresults, models and predictions are in {out}"
    say(told | {"oddities": list(bench.HEST_ODDITIES)}, text, as_json=as_json)
