"""One point: a run with a fault in a forked child, what it left, the run after it, and what is wrong with that."""

from __future__ import annotations

import contextlib
import csv
import errno
import faulthandler
import hashlib
import importlib
import io
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from faults.scenes import SCENES, Inputs, Scene, make_small, serve, serve_from, write_inputs
from faults.shim import CHANGING, EVERYTHING, Operation, arm, seen

_WHOLE_S = 120.0
_SECOND_S = 4.0
"""How long a second process is given before the first one, which is halted, goes on."""
_LARGE = 1 << 15
_LEAVES = ("seconds", "mtime_ns", "status", "warnings")
"""What of a record or a summary differs from run to run."""
_CRASHES = (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS)
_AFTER_STACK = "\nExtension modules: "
_NOT_SAID = "run it again with --debug"


@dataclass(frozen=True)
class Fault:
    """What is brought about: an error of the system from the n-th operation on, or a signal at it."""

    name: str
    operations: Operation
    error: int = 0
    signal: int = 0
    code: int = 1
    everywhere: bool = False


FAULTS = (
    Fault("SIGKILL", EVERYTHING & ~Operation.READ, signal=signal.SIGKILL, code=-signal.SIGKILL),
    Fault("SIGTERM", EVERYTHING & ~Operation.READ, signal=signal.SIGTERM, code=143),
    Fault("Ctrl-C", EVERYTHING & ~Operation.READ, signal=signal.SIGINT, code=130),
    Fault("disk full", CHANGING, error=errno.ENOSPC),
    Fault("read-only", CHANGING | Operation.UNLINK, error=errno.EROFS),
    Fault("share gone", EVERYTHING, error=errno.ESTALE, everywhere=True),
    Fault("no memory", Operation.ALLOCATE, error=errno.ENOMEM),
    Fault("two at once", EVERYTHING & ~Operation.READ, signal=signal.SIGSTOP, code=0),
)


@dataclass(frozen=True)
class Point:
    """A fault at the n-th of the operations that an undisturbed run makes; `over` an older result, or not."""

    scene: Scene
    fault: Fault
    nth: int
    of: int
    over: bool

    @property
    def where(self) -> str:
        """In words."""
        over = " over an older result" if self.over else ""
        return f"{self.scene.name}{over}, {self.fault.name} at operation {self.nth} of {self.of}"


@dataclass
class Verdict:
    """What became of a point: each list says what is wrong, none where nothing is.

    `died` says that there was no memory and a library in C ended the process, as the system's own killer may.
    """

    point: Point
    code: int = 0
    said: str = ""
    lost: list[str] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)
    unequal: list[str] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)
    died: bool = False
    left: int = 0
    left_bytes: int = 0

    @property
    def fine(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.lost or self.corrupt or self.unequal or self.unclear)

    def told(self) -> dict[str, Any]:
        """As JSON holds it."""
        known = {key: value for key, value in asdict(self).items() if key != "point"}
        return {"verb": self.point.scene.name, "fault": self.point.fault.name, "where": self.point.where, **known}


@dataclass
class Done:
    """How a child ended, and what it said."""

    code: int
    err: str
    n_seen: dict[str, int] = field(default_factory=dict)


class Bench:
    """Inputs, undisturbed results and a place for the runs, all in one folder."""

    def __init__(self, folder: Path, scenes: Sequence[Scene] = SCENES) -> None:
        self.folder, self.place = folder / "all", folder / "all" / "place"
        self.place.mkdir(parents=True)
        self.url = ""
        (folder / "all" / "inputs").mkdir()
        self.inputs = Inputs(folder / "all" / "inputs")
        write_inputs(self.inputs.folder, self._prepare, scenes)
        self.url, self._server = serve(self.inputs.folder / "served")
        self.before = digests(self.inputs.folder)
        self._undisturbed: dict[str, dict[str, str]] = {}
        self._older: dict[str, dict[str, str]] = {}
        self._counts: dict[tuple[str, bool, bool], dict[str, int]] = {}

    def _prepare(self, command: list[str], cache: Path) -> None:
        done = self._run(command, cache=cache, modules=self.folder / "modules.txt")
        assert done.code == 0, done.err
        # What a run imports is imported here once, so that children start with it.
        for name in (self.folder / "modules.txt").read_text().split():
            with contextlib.suppress(Exception):
                importlib.import_module(name)

    def close(self) -> None:
        """End the server."""
        os.kill(self._server, signal.SIGKILL)
        os.waitpid(self._server, 0)

    # runs

    def run(self, point: Point | None = None, command: list[str] | None = None, scene: Scene | None = None) -> Done:
        """A command in a child, with the fault of a point, or none."""
        own = command or (scene or point.scene).command(self.inputs, self.place)  # type: ignore[union-attr]
        if point is not None and point.fault.signal == signal.SIGSTOP:
            return self._two(point, own)
        return self._run(own, point=point)

    def _run(
        self, command: list[str], *, point: Point | None = None, cache: Path | None = None, modules: Path | None = None
    ) -> Done:
        pid, said = self._start(command, point=point, cache=cache, modules=modules)
        return self._ended(pid, said)

    def _start(self, command: list[str], *, name: str = "a", **how: Any) -> tuple[int, Path]:
        said = self.folder.parent / f"said-{name}.txt"
        pid = os.fork()
        if pid == 0:
            self._child(command, said, **how)
        return pid, said

    def _child(
        self, command: list[str], said: Path, point: Point | None, cache: Path | None, modules: Path | None
    ) -> None:
        """In the child: run the command as the installed script does, and end."""
        code = 99
        try:
            with said.open("w", buffering=1) as err:
                os.dup2(err.fileno(), 2)
                sys.stderr, sys.stdout = err, io.StringIO()
                faulthandler.enable(err)
                signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell takes from what it runs behind
                os.environ["HISTOFLOW_CACHE"] = str(cache or self.place / "cache")
                os.environ.pop("HISTOFLOW_DATA", None)
                make_small()
                if self.url:
                    serve_from(self.url, self.inputs.folder / "served")
                sys.argv = ["histoflow", *command]
                code = self._main(point, said)
                if modules is not None:
                    modules.write_text("\n".join(sys.modules))
        except BaseException:  # noqa: BLE001  a child must not go on as its parent
            with said.open("a") as err:
                traceback.print_exc(file=err)
        finally:
            os._exit(code)

    def _main(self, point: Point | None, said: Path) -> int:
        import torch

        from histoflow.cli import main

        torch.set_num_threads(2 if sys.argv[1] == "fit" else 1)  # networks of a fit are trained beside each other
        if point is not None:
            fault = point.fault
            folder = self.folder if fault.everywhere else self.place
            arm(folder, fault.operations, nth=point.nth, error=fault.error, signal=fault.signal, least=_LARGE)
        code = 98
        try:
            main()
        except SystemExit as err:
            code = int(err.code or 0)
        except BaseException:  # noqa: BLE001  what the command lets through is what is looked for
            seen()
            traceback.print_exc()
        finally:
            said.with_suffix(".seen").write_text(json.dumps({kind.name: n for kind, n in seen().items()}))
        return code

    def _ended(self, pid: int, said: Path) -> Done:
        code = os.waitstatus_to_exitcode(_waited(pid, _WHOLE_S) or 0)
        counted = said.with_suffix(".seen")
        n_seen = json.loads(counted.read_text()) if counted.is_file() else {}
        counted.unlink(missing_ok=True)
        return Done(code, said.read_text().partition(_AFTER_STACK)[0], n_seen)

    def _two(self, point: Point, command: list[str]) -> Done:
        """One process is halted at its n-th operation, and another one does the same meanwhile."""
        first, said = self._start(command, point=point, cache=None, modules=None)
        _waited(first, _WHOLE_S, os.WUNTRACED)
        second, said_by_second = self._start(command, name="b", point=None, cache=None, modules=None)
        ended = _waited(second, _SECOND_S)
        with contextlib.suppress(ProcessLookupError):
            os.kill(first, signal.SIGCONT)
        done = self._ended(first, said)
        if ended is None:
            other = self._ended(second, said_by_second)
        else:
            other = Done(os.waitstatus_to_exitcode(ended), said_by_second.read_text())
        return other if done.code == 0 else done

    # what is there

    def count(self, scene: Scene, fault: Fault, *, over: bool) -> int:
        """How many operations, of those that a fault is about, an undisturbed run makes."""
        self.undisturbed(scene)
        if over and (scene.name, False, True) not in self._counts:
            self._counted(scene, everywhere=False, over=True)
        seen_here = self._counts[scene.name, fault.everywhere, over and not fault.everywhere]
        return sum(n for name, n in seen_here.items() if Operation[name] & fault.operations)

    def undisturbed(self, scene: Scene) -> dict[str, str]:
        """What an undisturbed run leaves, by name; the same twice."""
        if scene.name not in self._undisturbed:
            for everywhere in (False, True):
                found = self._counted(scene, everywhere=everywhere, over=False)
                assert self._undisturbed.setdefault(scene.name, found) == found, f"{scene.name} differs from run to run"
        return self._undisturbed[scene.name]

    def _counted(self, scene: Scene, *, everywhere: bool, over: bool) -> dict[str, str]:
        """What a run leaves in which operations are counted, and no fault comes."""
        self._lay(scene, over=over)
        counting = Fault("", EVERYTHING | Operation.ALLOCATE, everywhere=everywhere)
        done = self.run(Point(scene, counting, 0, 0, over))
        assert done.code == 0, done.err
        self._counts[scene.name, everywhere, over] = done.n_seen
        return digests(self.place)

    def _lay(self, scene: Scene, *, over: bool) -> None:
        """Empty the place, or lay an older result of other options there."""
        shutil.rmtree(self.place)
        self.place.mkdir()
        if scene.embedded:
            shutil.copytree(self.inputs.cache, self.place / "cache")
        if not over:
            return
        kept = self.folder.parent / f"older-{scene.name.replace(' ', '-')}"
        if not kept.exists():
            assert scene.older is not None
            done = self.run(command=scene.older(self.inputs, self.place))
            assert done.code == 0, done.err
            self._older[scene.name] = digests(self.place)
            shutil.copytree(self.place, kept)
        else:
            shutil.copytree(kept, self.place, dirs_exist_ok=True)

    # verdicts

    def verdict(self, point: Point) -> Verdict:
        """Bring a fault about, run once more, and say what is wrong."""
        wanted = self.undisturbed(point.scene)
        self._lay(point.scene, over=point.over)
        older = self._older.get(point.scene.name, {}) if point.over else {}
        done = self.run(point)
        verdict = Verdict(point, done.code, done.err.strip()[-600:])
        verdict.died = point.fault.error == errno.ENOMEM and done.code in _CRASHES
        verdict.unclear = [] if verdict.died else _unclear(point.fault, done)
        after = digests(self.place)
        _look(verdict, after, wanted, older)
        again = self.run(scene=point.scene)
        if again.code != 0:
            verdict.unequal.append(f"the next run ended with {again.code}: {again.err.strip()[-400:]}")
        _compare(verdict, digests(self.place), wanted, older)
        if digests(self.inputs.folder) != self.before:
            verdict.lost.append("an input was changed")
        left = list(self.place.rglob(".tmp-*"))
        verdict.left = len(left)
        verdict.left_bytes = sum(_size(path) for path in left)
        return verdict


def _waited(pid: int, seconds: float, options: int = 0) -> int | None:
    """Wait for a child, so long at most; past the longest, it is ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG | options)
        if found:
            return status
        time.sleep(0.005)
    if seconds >= _WHOLE_S:
        os.kill(pid, signal.SIGKILL)
        return os.waitpid(pid, 0)[1]
    return None


def _unclear(fault: Fault, done: Done) -> list[str]:
    """What is wrong with how a disturbed command ended."""
    if done.code == fault.code == -signal.SIGKILL or done.code == 0:
        return []
    lines = [line for line in done.err.splitlines() if line and not line.startswith(("warning: ", "taking up "))]
    told = [line for line in lines if line.startswith(("error: ", "stopped"))]
    found = []
    if done.code != fault.code:
        found.append(f"ended with {done.code}, not {fault.code}: {done.err.strip()[-800:]}")
    if any("Traceback" in line for line in lines):
        found.append(f"a traceback: {done.err.strip()[-1500:]}")
    elif len(told) != 1 or _NOT_SAID in told[0]:
        found.append(f"no message of our own: {done.err.strip()[-800:]}")
    return found


def _look(verdict: Verdict, after: dict[str, str], wanted: dict[str, str], older: dict[str, str]) -> None:
    """What a reader would find after the fault: every file whole, and of one run."""
    for name, digest in after.items():
        if name.startswith("place") or "/figures/" in name:
            continue
        if digest not in (wanted.get(name), older.get(name)) and not _may_grow(name):
            verdict.corrupt.append(name)
    verdict.lost += [name for name in older if name.split("/")[0] != "cache" and name not in after]
    results = [name for name in after if name.startswith(("model/", "out/p.zarr/")) and name in older]
    kinds = {after[name] == older[name] for name in results if wanted.get(name) != older[name]}
    if len(kinds) > 1:
        verdict.corrupt.append("one result of two runs")


def _may_grow(name: str) -> bool:
    """What is written again and again as a run goes on, or is not a result: it has to be whole, not equal."""
    return name.endswith(("summary.csv", "done.npy")) or ".progress/" in name or ".parts/" in name


def _compare(verdict: Verdict, found: dict[str, str], wanted: dict[str, str], older: dict[str, str]) -> None:
    """What differs from an undisturbed run once the next one has ended."""
    differing = [name for name, digest in wanted.items() if found.get(name) != digest]
    extra = [name for name in found if name not in wanted and not (name.startswith("cache/") and name in older)]
    verdict.unequal += [f"differs: {name}" for name in differing] + [f"too much: {name}" for name in extra]


def digests(folder: Path) -> dict[str, str]:
    """The files under a folder by name, with what they hold; none of those that are temporary or locks."""
    return {
        str(path.relative_to(folder)): _digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock" and not any(p.startswith(".tmp-") for p in path.parts)
    }


def _digest(path: Path) -> str:
    """Hash of a file, without what differs from run to run, such as seconds."""
    content = path.read_bytes()
    with contextlib.suppress(ValueError):
        if path.suffix == ".json":
            content = json.dumps(_lasting(json.loads(content))).encode()
        elif path.name == "summary.csv":
            rows = csv.DictReader(io.StringIO(content.decode()))
            content = json.dumps([_lasting(row) for row in rows]).encode()
    return hashlib.sha256(content).hexdigest()


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lasting(own) for key, own in value.items() if key not in _LEAVES}
    return [_lasting(own) for own in value] if isinstance(value, list) else value


def _size(path: Path) -> int:
    return sum(own.stat().st_size for own in [path, *path.rglob("*")] if own.is_file())


def drawn(bench: Bench, n_points: int, seed: int, scenes: Sequence[Scene] = SCENES) -> Iterator[Point]:
    """Draw points: every verb and fault by weight, the operation at random."""
    rng = np.random.default_rng(seed)
    pairs = [(scene, fault) for fault in FAULTS for scene in scenes for _ in range(scene.weight)]
    order = [pairs[i] for _ in range(-(-n_points // len(pairs))) for i in rng.permutation(len(pairs))]
    for scene, fault in order[:n_points]:
        over = scene.older is not None and bool(rng.random() < 0.5)
        n = bench.count(scene, fault, over=over)
        yield Point(scene, fault, int(rng.integers(1, max(n, 1) + 1)), n, over)
