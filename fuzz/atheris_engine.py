"""The search by atheris (libFuzzer), where it is installed: the same targets, mutators, limits and findings."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fuzz.mutate import Case

_LARGEST = 1 << 22


def packed(case: Case) -> bytes:
    """The files of an input in one text of bytes, as libFuzzer holds them."""
    head = json.dumps([[name, len(held)] for name, held in case.items()]).encode()
    return len(head).to_bytes(4, "little") + head + b"".join(case.values())


def unpacked(data: bytes) -> Case | None:
    """What `packed` was given; None of other bytes."""
    length = int.from_bytes(data[:4], "little")
    try:
        entries = json.loads(data[4 : 4 + length])
        case, here = {}, 4 + length
        for name, size in entries:
            case[name] = data[here : here + size]
            here += size
    except (ValueError, TypeError):
        return None
    return case


def run(name: str, n_inputs: int, seed: int, keep: Path) -> int:
    """Search in a process of its own, for atheris ends the process; return its exit status."""
    arguments = [name, str(n_inputs), str(seed), str(keep)]
    return subprocess.run([sys.executable, "-m", "fuzz.atheris_engine", *arguments], check=False).returncode


def _search(name: str, n_inputs: int, seed: int, keep: Path) -> None:
    import atheris

    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
    os.environ["HISTOFLOW_CACHE"] = str(folder / "cache")
    with atheris.instrument_imports(include=["histoflow"]):  # also what the first input makes readers import
        from fuzz.child import Guard, limit, prepare, start_clock
        from fuzz.engine import Result, Tally, read_one, take_up, write_case
        from fuzz.mutate import mutate
        from fuzz.targets import TARGETS

        target, tally, result, guard = TARGETS[name], Tally(), Result(name), Guard(folder)
        seeds = list(target.seeds())
        prepare()
        write_case(seeds[0], folder / "case")
        read_one(target, seeds[0], folder / "case", tally, guard, traced=False)
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, case in enumerate(seeds):
        (corpus / str(number)).write_bytes(packed(case))
    limit()
    begun = time.perf_counter()

    def one(data: bytes) -> None:
        if (case := unpacked(data)) is None:
            return
        write_case(case, folder / "case")
        start_clock()
        read_one(target, case, folder / "case", tally, guard, traced=False)
        if tally.inputs >= n_inputs:
            take_up(tally.told(), result, keep)
            result.seconds = time.perf_counter() - begun
            print(json.dumps(vars(result)), flush=True)
            shutil.rmtree(folder, ignore_errors=True)
            os._exit(1 if result.findings else 0)

    def other(data: bytes, most: int, number: int) -> bytes:
        rng = random.Random(f"{name} {seed} {number}")
        return packed(target.repair(mutate(unpacked(data) or rng.choice(seeds), rng, seeds)))

    options = [f"-seed={seed + 1}", "-timeout=30", "-rss_limit_mb=0", f"-max_len={_LARGEST}", "-verbosity=0"]
    atheris.Setup([name, *options, str(corpus)], one, custom_mutator=other)
    atheris.Fuzz()


if __name__ == "__main__":
    _search(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
