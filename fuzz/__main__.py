"""`python -m fuzz`: readers against hostile input; ends with 1 where there is a finding."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")


def arguments() -> argparse.Namespace:
    """What was asked for."""
    from fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--reader", action="append", choices=sorted(TARGETS), help="one or several; all if not given")
    parser.add_argument("--inputs", type=int, default=20_000, help="of each reader, or with --total of all together")
    parser.add_argument("--total", action="store_true", help="share --inputs among the readers, fast ones get more")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=("own", "atheris"), default="own")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"), help="folder for inputs that are findings")
    parser.add_argument("--replay", type=Path, help="read the folder of one input (with --reader), errors shown")
    parser.add_argument("--json", type=Path, help="write the counts there")
    return parser.parse_args()


def main() -> int:
    """Search, and print a line for each reader."""
    asked = arguments()
    from fuzz.engine import search
    from fuzz.targets import TARGETS

    names = asked.reader or list(TARGETS)
    if asked.replay:
        TARGETS[names[0]].read(asked.replay)
        return 0
    if asked.engine == "atheris":
        from fuzz import atheris_engine

        ended = [atheris_engine.run(name, asked.inputs, asked.seed, asked.keep) for name in names]
        return int(any(ended))
    parts = sum(TARGETS[name].share for name in names)
    print(f"{'reader':12s} {'inputs':>9s} {'read':>8s} {'refused':>9s} {'findings':>8s}  kept lines    1/s")
    results = []
    for name in names:
        n_inputs = round(asked.inputs * TARGETS[name].share / parts) if asked.total else asked.inputs
        result = search(TARGETS[name], n_inputs, seed=asked.seed, keep=asked.keep)
        results.append(result)
        n_findings = sum(result.findings.values())
        print(
            f"{name:12s} {result.inputs:9d} {result.read:8d} {result.refused:9d} {n_findings:8d} {result.kept:5d} "
            f"{result.lines:5d} {result.inputs / result.seconds:6.0f}",
            flush=True,
        )
        for where, count in result.findings.most_common():
            print(f"    {count:6d} × {where}", flush=True)
    total, found = sum(one.inputs for one in results), sum(sum(one.findings.values()) for one in results)
    seconds = sum(one.seconds for one in results)
    print(f"{'all':12s} {total:9d} inputs, seed {asked.seed}, {found} findings, {seconds:.0f} s")
    if asked.json:
        asked.json.write_text(json.dumps([vars(one) for one in results], indent=1) + "\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
