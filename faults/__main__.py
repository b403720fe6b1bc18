"""`python -m faults`: bring faults about at random points, and tell what was lost, corrupt or unequal."""

from __future__ import annotations

import argparse
import json
import logging
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from faults import shim


def main() -> int:
    """Run so many points, print a table, write it as JSON; 1 where anything is wrong."""
    asked = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    asked.add_argument("--points", type=int, default=224)
    asked.add_argument("--seed", type=int, default=None, help="drawn where it is not given, and told")
    asked.add_argument("--out", type=Path, default=Path("faults.json"))
    asked.add_argument("--only", default="", help="verbs whose names begin so, with commas between")
    options = asked.parse_args()
    shim.load()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from faults.points import Bench, drawn
    from faults.tables import summary, table

    seed = int(time.time()) if options.seed is None else options.seed
    print(f"{options.points} points, seed {seed}", flush=True)
    verdicts = []
    with tempfile.TemporaryDirectory(prefix="histoflow-faults-") as folder:
        bench = Bench(Path(folder))
        for number, point in enumerate(drawn(bench, options.points, seed, options.only.split(",")), start=1):
            verdict = bench.verdict(point)
            verdicts.append(verdict)
            logging.getLogger(__name__).info("%d: %s: %d", number, point.where, verdict.code)
            if not verdict.fine:
                print(f"{number}: {json.dumps(verdict.told(), indent=1)}", flush=True)
    shim.unload()
    told = {
        "command": f"python -m faults --points {options.points} --seed {seed}",
        "versions": {name: version(name) for name in ("histoflow", "torch", "numpy", "h5py", "zarr")},
        "machine": platform.platform(),
        "summary": summary(verdicts),
        "wrong": [verdict.told() for verdict in verdicts if not verdict.fine],
    }
    options.out.write_text(json.dumps(told, indent=2) + "\n")
    print(table(verdicts))
    return int(bool(told["wrong"]))


if __name__ == "__main__":
    sys.exit(main())
