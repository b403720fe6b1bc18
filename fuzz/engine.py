"""The search: mutate inputs that reached new lines, read each in a child, and keep what ends in no error of our own."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import histoflow
from fuzz.child import Guard, Progress, limit, prepare, start_clock
from fuzz.mutate import Case, mutate
from fuzz.targets import Target
from histoflow._errors import HistoflowError

SOURCE = str(Path(histoflow.__file__).parent)
TRACED_ONE_IN = 16
"""Lines are counted in one of so many inputs, for that is slow; where an error comes from is looked at in all."""
MOST_KEPT = 400
_SILENT_S = 60.0
_BATCH = 2000


@dataclass
class Result:
    """What became of the inputs of one reader.

    Attributes
    ----------
    reader
        Its name.
    inputs, read, refused
        How many there were, were read, and were refused by an error of histoflow.
    findings
        How many ended in another way, by where they did.
    kept, lines
        Inputs that were kept for reaching something new, and lines of histoflow that were seen to be reached.
    refusals
        How many were refused by each class of error.
    seconds
        How long it took.
    """

    reader: str
    inputs: int = 0
    read: int = 0
    refused: int = 0
    findings: Counter[str] = field(default_factory=Counter)
    kept: int = 0
    lines: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


def search(target: Target, n_inputs: int, *, seed: int = 0, keep: Path | None = None) -> Result:
    """Read so many inputs of a reader.

    Parameters
    ----------
    target
        The reader.
    n_inputs
        How many.
    seed
        The only source of randomness; the same seed gives the same inputs where no child ends early.
    keep
        Folder for the inputs that are findings; None to count them only.

    Returns
    -------
    What became of them.
    """
    result, start, begun = Result(target.name), 0, time.perf_counter()
    with _scratch() as folder:
        while start < n_inputs:
            start = _run_child(target, (start, n_inputs, seed), folder, result, keep)
    result.seconds = time.perf_counter() - begun
    return result


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """A folder in memory, where there is one; in it the input at hand, and a cache."""
    memory = Path("/dev/shm")
    before = os.environ.get("HISTOFLOW_CACHE")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as made:
        os.environ["HISTOFLOW_CACHE"] = str(Path(made) / "cache")
        try:
            yield Path(made)
        finally:
            del os.environ["HISTOFLOW_CACHE"]
            os.environ.update({} if before is None else {"HISTOFLOW_CACHE": before})


def _run_child(target: Target, span: tuple[int, int, int], folder: Path, result: Result, keep: Path | None) -> int:
    """Run one child until it is done or dies; return the number of the next input."""
    list(target.seeds())  # made once, here: children share them
    progress, (reader, writer) = Progress(), os.pipe()
    progress.set(span[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of threads, which are idle here
        child = os.fork()
    if not child:
        os.close(reader)
        code = 1
        try:
            _explore(target, span, folder, progress, writer)
            code = 0
        except BaseException:  # noqa: BLE001  a child must not go on as its parent
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writer)
    _listen(reader, child, progress, result, keep)
    status = os.waitpid(child, 0)[1]
    return _after(status, span, folder, progress, result, keep)


def _listen(reader: int, child: int, progress: Progress, result: Result, keep: Path | None) -> None:
    """Take up what a child tells until it ends; end it if it is silent for long."""
    seen, since = progress.get(), time.monotonic()
    with os.fdopen(reader) as lines:
        while True:
            if select.select([lines], [], [], 1.0)[0]:
                if not (line := lines.readline()):
                    return
                take_up(json.loads(line), result, keep)
            if progress.get() != seen:
                seen, since = progress.get(), time.monotonic()
            elif time.monotonic() - since > _SILENT_S:
                os.kill(child, signal.SIGKILL)


def take_up(told: dict[str, Any], result: Result, keep: Path | None) -> None:
    """Add what a child told to a result, and keep its findings."""
    for name in ("inputs", "read", "refused", "kept"):
        setattr(result, name, getattr(result, name) + told[name])
    result.lines = max(result.lines, told["lines"])
    result.refusals.update(told["refusals"])
    for where, (count, text, files) in told["findings"].items():
        result.findings[where] += count
        _keep(keep, result.reader, where, text, {name: bytes.fromhex(held) for name, held in files.items()})


def _after(
    status: int, span: tuple[int, int, int], folder: Path, progress: Progress, result: Result, keep: Path | None
) -> int:
    """What the end of a child means, and which input comes next."""
    if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status) == 0:
        return span[1]
    number = progress.get()
    if os.WIFSIGNALED(status):
        ended_by = signal.Signals(os.WTERMSIG(status)).name
        where = {"SIGPROF": "hang", "SIGKILL": "hang (silent)"}.get(ended_by, f"crash {ended_by}")
    else:
        raise RuntimeError(f"the fuzzer itself failed at input {number} of {result.reader}, seed {span[2]}")
    result.findings[where] += 1
    result.inputs += 1
    files = {
        str(path.relative_to(folder / "case")): path.read_bytes()
        for path in sorted((folder / "case").rglob("*"))
        if path.is_file()
    }
    _keep(keep, result.reader, where, f"input {number} of seed {span[2]}", files)
    return number + 1


def _keep(keep: Path | None, reader: str, where: str, text: str, files: Case) -> None:
    """Write a finding, once for every place."""
    if keep is None:
        return
    folder = keep / reader / hashlib.sha256(where.encode()).hexdigest()[:12]
    if folder.exists():
        return
    write_case(files, folder / "case")
    (folder / "finding.txt").write_text(f"{where}\n\n{text}\n", errors="backslashreplace")


def write_case(case: Case, folder: Path) -> None:
    """Write the files of an input into a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, held in case.items():
        path = folder / name
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True)
        path.write_bytes(held)


# in the child


class Tally:
    """What a child has to tell."""

    def __init__(self) -> None:
        self.lines: set[tuple[str, int]] = set()
        self.places: set[str] = set()
        self._anew()

    def _anew(self) -> None:
        self.inputs = self.read = self.refused = self.kept = 0
        self.refusals: Counter[str] = Counter()
        self.findings: dict[str, tuple[int, str, dict[str, str]]] = {}

    def finding(self, where: str, text: str, case: Case) -> None:
        """Note one; of several at a place the first input is kept."""
        count, told, files = self.findings.get(where, (0, text, {name: held.hex() for name, held in case.items()}))
        self.findings[where] = (count + 1, told, files)

    def told(self) -> dict[str, Any]:
        """What has come since the last time, as JSON holds it."""
        names = ("inputs", "read", "refused", "kept", "refusals", "findings")
        return {name: getattr(self, name) for name in names} | {"lines": len(self.lines)}

    def tell(self, writer: int) -> None:
        """Send it, and begin anew."""
        text = (json.dumps(self.told()) + "\n").encode()
        while text:
            text = text[os.write(writer, text) :]
        self._anew()


def _explore(target: Target, span: tuple[int, int, int], folder: Path, progress: Progress, writer: int) -> None:
    start, stop, seed = span
    seeds = list(target.seeds())
    corpus, tally = list(seeds), Tally()
    guard = Guard(folder)
    target_tmp = folder / "tmp"
    target_tmp.mkdir(exist_ok=True)
    tempfile.tempdir = str(target_tmp)
    prepare()
    start_clock(12)
    with contextlib.suppress(Exception):  # imports are not of any input, nor is their memory
        write_case(seeds[0], folder / "case")
        target.read(folder / "case")
    limit()
    for number in range(start, stop):
        progress.set(number)
        rng = random.Random(f"{target.name} {seed} {number}")
        base = seeds[number] if number < len(seeds) else rng.choice(seeds if rng.random() < 0.4 else corpus)
        case = base if number < len(seeds) else target.repair(mutate(base, rng, seeds))
        write_case(case, folder / "case")
        start_clock()
        is_new = read_one(target, case, folder / "case", tally, guard, traced=number % TRACED_ONE_IN == 0)
        if is_new and sum(map(len, case.values())) < 1 << 18:
            tally.kept += 1
            corpus = [*corpus, case][-MOST_KEPT:]
        if tally.inputs >= _BATCH or tally.findings:
            tally.tell(writer)
            shutil.rmtree(folder / "cache", ignore_errors=True)
    tally.tell(writer)


def read_one(target: Target, case: Case, folder: Path, tally: Tally, guard: Guard, *, traced: bool) -> bool:
    """Read one input; tell whether it reached a line, or an error at a place, that none before it has."""
    tally.inputs += 1
    lines: set[tuple[str, int]] = set()
    guard.seen.clear()
    where = "read"
    try:
        guard.active = True
        if traced:
            sys.settrace(_tracer(lines))
        target.read(folder)
        tally.read += 1
    except HistoflowError as err:
        where = _place(err)
        tally.refused += 1
        tally.refusals[type(err).__name__] += 1
        if len(str(err)) < 20:
            tally.finding(f"an error that tells nothing: {where}", "", case)
    except Exception as err:  # noqa: BLE001  this is what is looked for
        where = _place(err)
        tally.finding(where, "".join(traceback.format_exception(err)), case)
    finally:
        sys.settrace(None)
        guard.active = False
    for event in guard.seen:
        tally.finding(f"forbidden: {event.split(' ')[0].partition('(')[0]}", event, case)
    is_new = where not in tally.places or not lines <= tally.lines
    tally.places.add(where)
    tally.lines |= lines
    return is_new


def _place(err: BaseException) -> str:
    """Kind of an error and the line of histoflow where it came up, with that of the error below it."""
    cause = err.__cause__
    below = "" if cause is None else f" from {type(cause).__name__} at {_line(cause.__traceback__)}"
    return f"{type(err).__name__} at {_line(err.__traceback__)}{below}"


def _line(trace: TracebackType | None) -> str:
    found = "?"
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if name.startswith(SOURCE):
            found = f"{name[len(SOURCE) + 1 :]}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found


def _tracer(lines: set[tuple[str, int]]) -> Any:
    def local(frame: FrameType, event: str, _: object) -> Any:
        if event == "line":
            lines.add((frame.f_code.co_filename, frame.f_lineno))
        return local

    def called(frame: FrameType, event: str, _: object) -> Any:
        return local if frame.f_code.co_filename.startswith(SOURCE) else None

    return called
