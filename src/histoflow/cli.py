"""The command line: each command parses, makes one public call, and says where the result is."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from histoflow._errors import HistoflowError, HistoflowWarning, OptionError, OutputError
from histoflow._files import cache_folder

if TYPE_CHECKING:
    from histoflow.pp import EncoderInfo, Panel

_CACHED = ("features", "slides", "weights", "data", "toy")
_MANIFESTS = (".csv", ".tsv")
_PARTS = ("torch", "lazyslide", "wsidata", "openslide", "tifffile", "imagecodecs", "scanpy")
_PATH = click.Path(path_type=Path)

encoder_option = click.option("--encoder", default="scatter", show_default=True, help="Encoder of the patches.")
weights_option = click.option("--weights", type=_PATH, help="Local file of the encoder's weights.")
panel_option = click.option("--panel", default="50", show_default=True, help="Number of genes, or a file of names.")
normalize_option = click.option("--normalize", default="library", show_default=True, help="library or none.")
min_counts_option = click.option("--min-counts", default=0, show_default=True, help="Leave out poorer spots.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


@click.group()
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="histoflow")
def cli(debug: bool) -> None:
    """Spatial gene expression from ordinary H&E slides."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("histoflow").setLevel(logging.INFO)
    if not debug:
        # Other people's warnings help nobody here; our own are said as one line each.
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", HistoflowWarning)
        warnings.showwarning = _show_warning


@cli.command()
@click.option("--dataset", type=click.Choice(["toy", "her2st", "breast"]), default="toy", show_default=True)
@click.option("--out", type=_PATH, default=Path("demo"), show_default=True)
@json_option
def demo(dataset: str, out: Path, as_json: bool) -> None:
    """Fit, predict a held-out section, evaluate and draw, on built-in data."""
    from histoflow import workflow

    result = workflow.demo(out, dataset=dataset)
    scores = "\n".join(f"  {model:40s} {r:.3f}" for model, r in result["mean_r"].items())
    text = f"mean r over genes on the held-out section of {dataset}:\n{scores}\nfigures, model and table are in {out}"
    _say(result, text, as_json=as_json)


@cli.command()
@click.argument("cohort", type=_PATH)
@click.option("--out", type=_PATH, required=True, help="Folder of the model.")
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

    model = workflow.fit(io.read_cohort(cohort), panel=_panel(panel), **options)
    model.save(out)
    told = {key: model.training_[key] for key in ("sections", "n_spots", "n_spots_left_out")}
    trained = f"{sum(told['n_spots'])} spots of {len(told['sections'])} sections ({told['n_spots_left_out']} left out)"
    _say({"model": str(out), **told}, f"fitted {model.name} on {trained}; the model is in {out}", as_json=as_json)


@cli.command()
@click.argument("model", type=_PATH)
@click.argument("target", type=_PATH)
@click.option("--out", type=_PATH, required=True, help="Where the prediction goes, as .h5ad.")
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

    of_cohort = target.suffix.lower() in _MANIFESTS
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
    _say(told, f"predicted {predicted.n_vars} genes at {predicted.n_obs} places; they are in {out}", as_json=as_json)


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


@cli.command()
@click.argument("cohort", type=_PATH)
@click.option("--out", type=_PATH, required=True, help="Folder of table, predictions and figures.")
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
        "panel": _panel(panel),
        "normalize": normalize,
        "min_counts": min_counts,
        "seeds": range(seeds),
    }
    counted = sections.select(sections=[row.section for row in sections.rows if row.role != "query"])
    bench.plan_folds(counted, options["by"])
    if any(estimator.encoder == ready.name for estimator in chosen.values()):
        workflow.embed([s for s in counted if s.uns["histoflow"]["kind"] != "features"], ready)
    table = workflow.evaluate(sections, out, estimators=chosen, **options)
    scores = bench.summary(table)
    wide = scores.pivot_table(index="model", columns="metric", values="value", aggfunc="mean", sort=False, dropna=False)
    told = {"results": str(out / "results.parquet"), "mean": json.loads(wide.to_json(orient="index"))}
    shares = "; ".join(dict.fromkeys(table["shares"]))
    _say(
        told,
        f"{wide.round(3).to_string()}\nheld out: {shares}\ntable, predictions and figures are in {out}",
        as_json=as_json,
    )


@cli.command()
@click.argument("pattern", default="*")
@json_option
def encoders(pattern: str, as_json: bool) -> None:
    """List encoders: numbers per patch, patch, µm per pixel, size, licence, access, usable here or why not."""
    from histoflow.pp import Recipe, available_encoders, unavailable

    um = min(Recipe().patch_um)
    found = [_told_of_encoder(info, um) for info in available_encoders(pattern)]
    lines = [_line_of_encoder(told) for told in found]
    lines += [f"{library} cannot be used here: {why}" for library, why in unavailable().items()]
    text = "\n".join(lines) if found else "\n".join([f"no encoder is called {pattern}", *lines])
    _say({"encoders": found, "unavailable": unavailable()}, text, as_json=as_json)


def _told_of_encoder(info: EncoderInfo, um: float) -> dict[str, Any]:
    """What is listed of an encoder; `mpp` is that of the default patch of `um` µm."""
    mpp = round(um / info.patch_px, 3) if info.patch_px else None
    names = ("name", "n_features", "patch_px", "n_parameters", "licence", "gated", "usable", "why_not")
    return {name: getattr(info, name) for name in names} | {"mpp": mpp, "trained_mpp": info.mpp}


def _line_of_encoder(told: dict[str, Any]) -> str:
    width = f"{told['n_features'] or '?':>5} numbers"
    size = f"{told['n_parameters'] / 1e6:.1f}M" if told["n_parameters"] else "-"
    access = "gated" if told["gated"] else "open"
    usable = "usable" if told["usable"] else f"not usable: {told['why_not']}"
    return f"{told['name']:20s} {width}  {told['mpp']} µm/px  {size:>7s}  {told['licence']}  {access}  {usable}"


@cli.group()
def cache() -> None:
    """List or clear the cache folder: features, slides, weights, data."""


@cache.command("list")
@json_option
def cache_list(as_json: bool) -> None:
    """Tell how much each kind of cached file takes."""
    folder = cache_folder()
    sizes = {kind: _size_of(folder / kind) for kind in _CACHED}
    lines = [f"{kind:10s} {size / 1e6:10.1f} MB" for kind, size in sizes.items()]
    _say({"cache": str(folder), "bytes": sizes}, "\n".join([f"cache folder {folder}", *lines]), as_json=as_json)


@cache.command("clear")
@click.argument("kind", type=click.Choice([*_CACHED, "all"]), default="all")
@click.option("--yes", is_flag=True, help="Remove; without it, only what would be removed is told.")
@json_option
def cache_clear(kind: str, yes: bool, as_json: bool) -> None:
    """Remove cached files of one KIND, or all; what is needed again is made or downloaded again."""
    folder = cache_folder()
    kinds = _CACHED if kind == "all" else (kind,)
    sizes = {name: _size_of(folder / name) for name in kinds}
    told = f"{sum(sizes.values()) / 1e6:.1f} MB ({', '.join(kinds)}) in {folder}"
    if not yes:
        raise OptionError(f"nothing was removed: {told} would be; add --yes to remove it")
    for name in kinds:
        _remove_cached(folder / name)
    _say({"cache": str(folder), "removed": sizes}, f"removed {told}", as_json=as_json)


def _size_of(folder: Path) -> int:
    """Bytes of the files in a folder; links, as the hub's cache has, are not followed."""
    if folder.is_symlink():
        return 0
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _remove_cached(path: Path) -> None:
    """Remove a folder of the cache; of a link, only the link, since what it names lies elsewhere."""
    try:
        if path.is_symlink():
            path.unlink()
        elif path.exists():
            shutil.rmtree(path)
    except OSError as err:
        raise OutputError(f"cannot remove {path}: {err.strerror or err}; check who owns it") from err


@cli.command()
@click.argument("cohort", type=_PATH, required=False)
@json_option
def doctor(cohort: Path | None, as_json: bool) -> None:
    """Tell what works on this machine and what is wrong in a COHORT, each failure with its fix."""
    checks = [_check_part(part) for part in _PARTS] + [_check_cache()]
    if cohort is not None:
        checks += _check_cohort(cohort)
    lines = [f"{'ok  ' if check['ok'] else 'FAIL'} {check['what']}: {check['told']}" for check in checks]
    _say({"checks": checks}, "\n".join(lines), as_json=as_json)
    if not all(check["ok"] for check in checks):
        raise click.exceptions.Exit(1)


def _check_part(part: str) -> dict[str, Any]:
    extra = "hvg" if part == "scanpy" else "slides"
    if find_spec(part) is None:
        return {"what": part, "ok": part == "scanpy", "told": f"not installed; pip install 'histoflow[{extra}]'"}
    try:
        return {"what": part, "ok": True, "told": version({"openslide": "openslide-python"}.get(part, part))}
    except PackageNotFoundError:
        return {"what": part, "ok": True, "told": "installed"}


def _check_cache() -> dict[str, Any]:
    folder = cache_folder()
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    ok = os.access(nearest, os.W_OK)
    return {"what": "cache", "ok": ok, "told": str(folder) if ok else f"{folder} is not writable; set HISTOFLOW_CACHE"}


def _check_cohort(path: Path) -> list[dict[str, Any]]:
    from histoflow import io

    try:
        cohort = io.read_cohort(path)
    except HistoflowError as err:
        return [{"what": str(path), "ok": False, "told": str(err)}]
    checks = []
    for row in cohort.rows:
        try:
            checks.append({"what": row.section, "ok": True, "told": _told_of(cohort, row)})
        except HistoflowError as err:
            checks.append({"what": row.section, "ok": False, "told": str(err)})
    return checks


def _told_of(cohort: Any, row: Any) -> str:
    """Size and scale of a row of a cohort, read or opened as the other commands would."""
    from histoflow import io

    if row.counts is None:
        known = io.open_wsi(row.slide, mpp=row.mpp).attrs["histoflow"]
        size = "slide without counts"
    else:
        read = cohort.select(sections=[row.section])[0]
        known = read.uns["histoflow"]
        size = f"{read.n_obs} spots, {read.n_vars} genes"
    return f"{size}, {known['mpp_x']:.3g} × {known['mpp_y']:.3g} µm/px (from {known['mpp_source']})"


def _panel(text: str) -> int | Panel:
    """A number of genes, or the panel that a file lists, one name per line."""
    from histoflow.pp import Panel

    if text.isdigit():
        return int(text)
    try:
        return Panel(tuple(line.strip() for line in Path(text).read_text().splitlines() if line.strip()))
    except (OSError, UnicodeDecodeError) as err:
        why = getattr(err, "strerror", None) or "it is not text"
        raise OptionError(f"--panel {text} is neither a number nor a file of gene names ({why})") from err


def _say(result: dict[str, Any], text: str, *, as_json: bool) -> None:
    click.echo(json.dumps(result, default=str) if as_json else text)


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    click.echo(f"warning: {message}", err=True)


def main() -> None:
    """Run the command line: exit code 0 on success, 2 on wrong usage, 1 on any other error."""
    given = sys.argv[1:]
    debug = "--debug" in given
    arguments = [*(["--debug"] if debug else []), *(word for word in given if word != "--debug")]
    try:
        code = cli.main(arguments, standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as err:
        err.show()
        sys.exit(err.exit_code)
    except click.Abort:
        sys.exit(1)
    except HistoflowError as err:
        if debug:
            raise
        click.echo(f"error: {err}", err=True)
        sys.exit(2 if isinstance(err, OptionError) else 1)
    except Exception as err:
        if debug:
            raise
        click.echo(f"error: {type(err).__name__}: {err}; run it again with --debug for the traceback", err=True)
        sys.exit(1)
