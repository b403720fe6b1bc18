"""Children: a process that reads inputs under limits of time and memory, and what it may not do."""

from __future__ import annotations

import faulthandler
import logging
import mmap
import os
import resource
import signal
import struct
import sys
import warnings
from pathlib import Path
from typing import Any

MOST_SECONDS = 5.0
"""Of computing, for one input."""
MOST_BYTES = 1 << 30
"""Of memory, beyond what the process has before its first input."""
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_PATHS = {
    "shutil.rmtree": 1,
    "os.rename": 2,
    "os.remove": 1,
    "os.mkdir": 1,
    "os.rmdir": 1,
    "os.link": 2,
    "os.symlink": 2,
    "os.truncate": 1,
}
_FORBIDDEN = (
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "pickle.find_class"),
    *("os.startfile", "os.spawn", "webbrowser.open", "urllib.Request"),
)


class Progress:
    """Number of the input at hand, which the parent sees."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 8)

    def set(self, number: int) -> None:
        """Tell the number."""
        self._shared[:] = struct.pack("q", number)

    def get(self) -> int:
        """The number that was told last."""
        return int(struct.unpack("q", self._shared[:])[0])


class Guard:
    """Notes what an input makes a process do that no reader may: write elsewhere, run or unpickle anything.

    An audit hook, which Python calls for its own functions; a library in C that writes by itself is not seen.

    Parameters
    ----------
    allowed
        Folders in which may be written.
    """

    def __init__(self, *allowed: Path) -> None:
        self._allowed = tuple(f"{folder}{os.sep}" for folder in map(os.path.realpath, allowed))
        self.seen: list[str] = []
        self.active = False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event in _FORBIDDEN:
            self.seen.append(f"{event}{arguments!r}"[:300])
        elif event == "open":
            path, mode, flags = arguments
            writes = flags & _WRITING if mode is None else any(letter in str(mode) for letter in "wax+")
            if writes and not isinstance(path, int):
                self._check(event, path)
        elif event in _PATHS and not _is_relative(event, arguments):
            for path in arguments[: _PATHS[event]]:
                self._check(event, path)

    def _check(self, event: str, path: Any) -> None:
        if path is None or isinstance(path, int):
            return
        text = os.fsdecode(path)
        where = os.path.join(os.path.realpath(os.path.dirname(text) or "."), os.path.basename(text))
        if where != "/dev/null" and not where.startswith(self._allowed):
            self.seen.append(f"{event} {where}"[:300])


def _is_relative(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether a path is one of an opened folder, as when a tree is removed; the tree itself is looked at then."""
    return event.startswith("os.") and event != "os.truncate" and isinstance(arguments[-1], int) and arguments[-1] >= 0


def prepare() -> None:
    """Say no warnings, which are not what is looked for; let the clock end the process."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    faulthandler.disable()
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, in whatever library it is


def limit() -> None:
    """Bound the memory of this process from here on."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_BYTES, used + MOST_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def start_clock(parts: float = 1.0) -> None:
    """Begin the time of an input, or of so many."""
    signal.setitimer(signal.ITIMER_PROF, parts * MOST_SECONDS)
