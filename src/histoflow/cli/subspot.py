"""The command that resolves a slide into super-pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from histoflow._errors import OptionError
from histoflow.cli.root import MANIFESTS, PATH, genes_of, json_option, say, weights_option


@click.command("super-resolve")
@click.argument("model", type=PATH)
@click.argument("target", type=PATH)
@click.option("--out", type=PATH, required=True, help="Folder .zarr, or file .h5ad, of the super-pixels.")
@click.option("--section", help="Which section of a cohort.")
@click.option("--mpp", type=float, help="µm per pixel of a slide without a scale of its own.")
@click.option("--genes", help="Names with commas between them, or a file of names; all of the model's panel otherwise.")
@click.option("--factor", default=8, show_default=True, help="Super-pixels along 64 µm: 8, 4, 2 or 1.")
@click.option("--with-counts", is_flag=True, help="Make the sums over measured spots what was measured.")
@weights_option
@json_option
def super_resolve(
    model: Path, target: Path, out: Path, section: str | None, mpp: float | None, as_json: bool, **options: Any
) -> None:
    """Resolve a slide, or a section of a cohort manifest, into super-pixels with a saved MODEL of istar."""
    from histoflow import models, workflow

    if out.suffix not in (".zarr", ".h5ad"):
        raise OptionError(f"--out is {out}; give a name that ends in .zarr or .h5ad")
    options["genes"] = genes_of(options["genes"])
    wsi, spots = _opened(target, section, mpp, with_counts=options["with_counts"])
    made = workflow.resolve(models.load(model), wsi, out, spots=spots, **options)
    told = {"superpixels": str(out), "n_genes": len(made["panel"]), "superpixel_um": made["superpixel_um"]}
    scale = f"{made['scale']}; sums over a spot agree with the {made['agrees_with']}"
    text = f"resolved {told['n_genes']} genes into squares of {told['superpixel_um']:g} µm in {out} ({scale})"
    say(told | {"scale": made["scale"]}, text, as_json=as_json)


def _opened(target: Path, section: str | None, mpp: float | None, *, with_counts: bool) -> tuple[Any, Any]:
    """The slide, and the section whose spots lie on it where the target is a row of a cohort with counts."""
    from histoflow import io

    if target.suffix.lower() not in MANIFESTS:
        if section is not None or with_counts:
            raise OptionError(f"--section and --with-counts need a cohort manifest, got {target}")
        return io.open_wsi(target, mpp=mpp), None
    if mpp is not None:
        raise OptionError(f"--mpp means nothing for {target}; use the column mpp of the manifest")
    cohort = io.read_cohort(target)
    rows = [row for row in cohort.rows if row.section == section]
    if len(rows) != 1 or rows[0].kind == "features":
        known = ", ".join(row.section for row in cohort.rows if row.kind != "features")
        raise OptionError(f"--section is {section}; choose one of {known}")
    if rows[0].kind == "slide":
        if with_counts:
            raise OptionError(f"--with-counts: section {section} has no counts")
        return io.open_wsi(str(rows[0].slide), mpp=rows[0].mpp), None
    read = cohort.select(sections=[rows[0].section])[0]
    return io.open_section_slide(read), read
