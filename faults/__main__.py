"""`python -m faults`: bring faults about at random points, and tell what was lost, corrupt or unequal.

Run again with the same seed and `--out`, it keeps the points that were fine.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

from faults import shim


def main() -> int:
    """Run so many points, print a table, write it as JSON; 1 where anything is wrong."""
    asked = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    asked.add_argument("--points", type=int, default=216)
    asked.add_argument("--seed", type=int, default=None, help="drawn where it is not given, and told")
    asked.add_argument("--out", type=Path, default=Path("faults.json"))
    asked.add_argument("--only", default="", help="verbs whose names begin so, with commas between")
    options = asked.parse_args()
    shim.load()
    from faults.points import Bench, drawn
    from faults.scenes import SCENES
    from faults.tables import is_fine, table

    seed = int(time.time()) if options.seed is None else options.seed
    same = {"seed": seed, "n_points": options.points, "only": options.only}
    kept = _kept(options.out, same)
    print(f"{options.points} points, seed {seed}, {len(kept)} of them known to be fine", flush=True)
    scenes = [scene for scene in SCENES if scene.name.startswith(tuple(options.only.split(",")))]
    place = tempfile.TemporaryDirectory(prefix="histoflow-faults-")
    with place as folder, closing(Bench(Path(folder), scenes)) as bench:
        for number, point in enumerate(drawn(bench, options.points, seed, scenes), start=1):
            if str(number) in kept:
                continue
            verdict = bench.verdict(point)
            kept[str(number)] = verdict.told()
            _write(options.out, same, kept)
            if verdict.fine:
                print(f"{number}: {point.where}: ended with {verdict.code}", flush=True)
            else:
                print(f"{number}: {json.dumps(verdict.told(), indent=1, ensure_ascii=False)}", flush=True)
    shim.unload()
    print(table(kept.values()))
    return int(not all(map(is_fine, kept.values())))


def _kept(out: Path, same: dict[str, Any]) -> dict[str, Any]:
    """The points of an earlier run of the same in which nothing was wrong, by number."""
    from faults.tables import is_fine

    told = json.loads(out.read_text()) if out.is_file() else {}
    if {name: told.get(name) for name in same} != same:
        return {}
    return {number: point for number, point in told["points"].items() if is_fine(point)}


def _write(out: Path, same: dict[str, Any], kept: dict[str, Any]) -> None:
    from faults.tables import is_fine, summary

    told = {
        "command": f"python -m faults --points {same['n_points']} --seed {same['seed']} --only '{same['only']}'",
        **same,
        "versions": {name: version(name) for name in ("histoflow", "torch", "numpy", "h5py", "zarr")},
        "machine": platform.platform(),
        "summary": summary(kept.values()),
        "wrong": [point for point in kept.values() if not is_fine(point)],
        "points": kept,
    }
    beside = out.with_name(f".tmp-{out.name}")
    beside.write_text(json.dumps(told, indent=2) + "\n")
    beside.replace(out)


if __name__ == "__main__":
    sys.exit(main())
