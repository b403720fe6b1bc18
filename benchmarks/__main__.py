"""All benchmarks, one after another, into RESULTS.md: `python benchmarks [--quick] [--only NAME …] [--fresh]`.

The outputs of finished commands are kept in results.json beside it with a hash of the source: a run that was cut is
taken up where it stopped, and nothing is measured twice of the same source unless `--fresh` asks for it. RESULTS.md is
written after every row; a row that was measured with an earlier source says so until it is measured again. The real
sections are those of `--data`, or of HISTOFLOW_DATA. Run it on a machine that does nothing else; the load when a row
began is told with it.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from rows import Row, rows

from histoflow._files import atomic_path, file_hash, read_json, value_hash, write_json

HERE = Path(__file__).parent
RESULTS, KEPT = HERE / "RESULTS.md", HERE / "results.json"
PACKAGES = ("histoflow", "torch", "numba", "numpy", "scipy", "scikit-learn", "timm", "lazyslide", "wsidata", "zarr")


def source_hash() -> str:
    """Hash of the package and of the benchmarks, without what only calls them."""
    own = [path for path in HERE.glob("*.py") if path.name not in {"__main__.py", "rows.py"}]
    files = sorted([*(HERE.parent / "src").rglob("*.py"), *own])
    return value_hash({str(path.relative_to(HERE.parent)): file_hash(path) for path in files})[:16]


def output(command: str, data: Path | None) -> dict:
    """Run one command; what it printed last, how long it took and the load before, or the error it ended with."""
    words = [str(data) if word == "DATA" else word for word in shlex.split(command)]
    before, start = os.getloadavg()[0], time.perf_counter()
    run = subprocess.run([sys.executable, "-W", "ignore", *words], cwd=HERE.parent, capture_output=True, text=True)
    about = {"took_s": round(time.perf_counter() - start, 1), "load": round(before, 2)}
    about["at"] = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    if run.returncode:
        return about | {"error": (run.stderr.strip().splitlines() or [f"exit {run.returncode}"])[-1]}
    return about | {"told": json.loads(run.stdout.strip().splitlines()[-1])}


def why_not(row: Row, data: Path | None) -> str:
    """Why a row cannot be measured here; empty where it can."""
    if row.needs == "data" and data is None:
        return "not measured: the real sections are not here (`--data`, HISTOFLOW_DATA)"
    if row.needs == "cuda" and not torch.cuda.is_available():
        return "not timed: no graphics card is at hand"
    return ""


def machine() -> list[str]:
    cpuinfo = Path("/proc/cpuinfo")
    told = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    model = next((line.partition(":")[2].strip() for line in told if line.startswith("model name")), platform.machine())
    versions = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            versions.append(f"{package} absent")
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "none: nothing was timed on a GPU"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [f"- Machine: {model}, {cores} cores, {platform.system()}", f"- GPU: {card}", f"- {', '.join(versions)}"]


def lines_of(row: Row, kept: dict, missing: str, source: str) -> list[str]:
    """Table lines of a row."""
    outputs = [kept[command] for command in row.commands if command in kept]
    commands = "<br>".join(f"`python {command}`" for command in row.commands)
    errors = [one["error"] for one in outputs if "error" in one]
    if missing or errors or len(outputs) < len(row.commands):
        why = missing or (f"failed: {errors[0]}" if errors else "not measured yet")
        return [f"| {row.name} | | {why} | | {commands} |"]
    load = max(one["load"] for one in outputs)
    earlier = [f"; earlier source {one['source']}, {one['at']}" for one in outputs if one["source"] != source][:1]
    answers = row.answers([one["told"] for one in outputs])
    verdicts = ("" if asked == "–" else "yes" if ok else "**no**" for _, asked, _, ok in answers)
    told = [
        f"| {what} | {asked} | {reached} | {v} |"
        for (what, asked, reached, _), v in zip(answers, verdicts, strict=True)
    ]
    return [f"{line} {commands}; load {load:.1f}{''.join(earlier)} |" for line in told]


def write(found: list[Row], kept: dict, data: Path | None, source: str) -> None:
    """Write RESULTS.md."""
    lines = [
        "# Results",
        "",
        "Written by `make bench`. Every ratio is to a reference in the same run, the median over interleaved pairs of",
        "processes; how many pairs, and how many threads where it is not two, stands in the command. A load above that",
        "of the benchmark itself means that the machine was busy; then processor times say more than seconds.",
        "A row of an earlier source, which says so, has not been measured since.",
        "",
        f"- {max((one['at'] for one in kept.values()), default='nothing measured yet')}, source {source}",
        *machine(),
        "",
        "| what | asked | reached | | command |",
        "|---|---|---|---|---|",
    ]
    for row in found:
        lines += lines_of(row, kept, why_not(row, data), source)
    with atomic_path(RESULTS) as temporary:
        temporary.write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks")
    parser.add_argument("--quick", action="store_true", help="Fewer pairs and smaller sizes, for about 20 minutes.")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="Rows by name.")
    parser.add_argument("--fresh", action="store_true", help="Measure again what is kept.")
    parser.add_argument("--data", type=Path, help="Folder of the real sections; else HISTOFLOW_DATA.")
    given = parser.parse_args()
    told = given.data or (Path(os.environ["HISTOFLOW_DATA"]) if os.environ.get("HISTOFLOW_DATA") else None)
    data = told.resolve() if told is not None and told.is_dir() else None
    found, source = rows(quick=given.quick), source_hash()
    if given.only and (unknown := set(given.only) - {row.name for row in found}):
        parser.error(f"no row {', '.join(sorted(unknown))}; there are {', '.join(row.name for row in found)}")
    stored = read_json(KEPT) if KEPT.is_file() else {}
    kept = {command: one for command, one in stored.items() if "source" in one}
    for row in found:
        if why_not(row, data) or (given.only and row.name not in given.only):
            continue
        for command in row.commands:
            known = kept.get(command, {})
            if known.get("source") == source and "error" not in known and not given.fresh:
                continue
            print(f"{row.name}: python {command}", flush=True)
            kept[command] = output(command, data) | {"source": source}
            write_json(KEPT, kept)
            write(found, kept, data, source)
    write(found, kept, data, source)


if __name__ == "__main__":
    main()
