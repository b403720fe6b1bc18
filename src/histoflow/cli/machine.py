"""Commands on this machine: encoders, cache, doctor."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from histoflow._errors import OptionError, OutputError
from histoflow._files import cache_folder
from histoflow.cli.root import PATH, json_option, say

if TYPE_CHECKING:
    from histoflow.pp import EncoderInfo

_CACHED = ("features", "slides", "weights", "data", "toy")
_MARKS = {"ok": "ok  ", "note": "note", "fail": "FAIL"}


@click.command()
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
    say({"encoders": found, "unavailable": unavailable()}, text, as_json=as_json)


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


@click.group()
def cache() -> None:
    """List or clear the cache folder: features, slides, weights, data."""


@cache.command("list")
@json_option
def cache_list(as_json: bool) -> None:
    """Tell how much each kind of cached file takes."""
    folder = cache_folder()
    sizes = {kind: _size_of(folder / kind) for kind in _CACHED}
    lines = [f"{kind:10s} {size / 1e6:10.1f} MB" for kind, size in sizes.items()]
    say({"cache": str(folder), "bytes": sizes}, "\n".join([f"cache folder {folder}", *lines]), as_json=as_json)


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
    say({"cache": str(folder), "removed": sizes}, f"removed {told}", as_json=as_json)


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


@click.command()
@click.argument("cohort", type=PATH, required=False)
@json_option
def doctor(cohort: Path | None, as_json: bool) -> None:
    """Tell what works on this machine and what is wrong in a COHORT, each finding with its fix."""
    from histoflow import workflow

    checks = workflow.check_machine() + ([] if cohort is None else workflow.check_cohort(cohort))
    failed = [check for check in checks if check.state == "fail"]
    lines = [f"{_MARKS[check.state]} {check.what}: {check.sentence}" for check in checks]
    told = [asdict(check) | {"ok": check.state != "fail"} for check in checks]
    say({"ok": not failed, "checks": told}, "\n".join(lines), as_json=as_json)
    if failed:
        raise click.exceptions.Exit(1)
