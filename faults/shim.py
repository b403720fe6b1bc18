"""The shim in C: built, loaded into this process and all that it forks, armed and read out."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from enum import IntFlag
from pathlib import Path

_SOURCE = Path(__file__).with_name("shim.c")
_LOADED = "HISTOFLOW_FAULTS_SHIM"


class Operation(IntFlag):
    """What is counted, as in shim.c."""

    OPEN = 1
    CREATE = 2
    WRITE = 4
    SYNC = 8
    RENAME = 16
    MKDIR = 32
    UNLINK = 64
    READ = 128
    ALLOCATE = 256


CHANGING = Operation.CREATE | Operation.WRITE | Operation.SYNC | Operation.RENAME | Operation.MKDIR
EVERYTHING = CHANGING | Operation.OPEN | Operation.UNLINK | Operation.READ


def load() -> None:
    """Build the shim and start this process anew with it, unless it is loaded."""
    if os.environ.get(_LOADED):
        return
    library = Path(tempfile.mkdtemp(prefix="histoflow-faults-")) / "shim.so"
    command = ["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(_SOURCE), "-ldl"]
    try:
        subprocess.run(command, check=True)
    except (OSError, subprocess.CalledProcessError) as err:
        sys.exit(f"error: the shim cannot be built ({err}); install a C compiler on Linux")
    own = {"LD_PRELOAD": str(library), _LOADED: str(library), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    os.execve(sys.executable, [sys.executable, "-m", "faults", *sys.argv[1:]], os.environ | own)


def arm(folder: Path, operations: Operation, *, nth: int, error: int = 0, signal: int = 0, least: int = 0) -> None:
    """Bring a fault at the n-th operation under a folder: an error from then on, or a signal once; neither: count."""
    library = ctypes.CDLL(None)
    library.faults_arm(os.fsencode(folder), int(operations), ctypes.c_long(nth), error, signal, ctypes.c_size_t(least))


def seen() -> dict[Operation, int]:
    """How many operations of each kind there were since the shim was armed, which is at an end."""
    library = ctypes.CDLL(None)
    library.faults_disarm()
    library.faults_seen.restype = ctypes.c_long
    return {kind: int(library.faults_seen(place)) for place, kind in enumerate(Operation)}


def unload() -> None:
    """Remove the library's file, which no other process is going to load."""
    shutil.rmtree(Path(os.environ[_LOADED]).parent, ignore_errors=True)
