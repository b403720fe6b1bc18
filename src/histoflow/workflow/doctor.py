"""What works on this machine: parts, threads, memory, cache, encoders; each finding with its fix."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from histoflow import pp
from histoflow._errors import (
    CountsError,
    HistoflowError,
    ManifestError,
    OutputError,
    ReadError,
    ResolutionError,
    SlideMismatchError,
)
from histoflow._files import cache_folder

State = Literal["ok", "note", "fail"]
"""``"note"``: works, but know this; ``"fail"``: a run will stop here."""

_NEEDED = {
    "torch": "",
    **dict.fromkeys(("lazyslide", "wsidata", "openslide", "tifffile", "imagecodecs"), "slides"),
}
_OPTIONAL = {"scanpy": "hvg", "plotly": "report", "timm": "encoders"}
_DISTRIBUTIONS = {"openslide": "openslide-python"}
_GB = 1e9
_LEAST_DISK_GB, _LITTLE_DISK_GB, _LITTLE_MEMORY_GB = 1.0, 10.0, 4.0
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_REMEDIES: dict[type[HistoflowError], str] = {
    ReadError: "check the path, and fetch or export the file anew",
    ManifestError: "correct the manifest",
    ResolutionError: "give the column mpp",
    SlideMismatchError: "give the slide, counts and spots of one section",
    CountsError: "give raw counts",
}
_ANY_REMEDY = "see the class of this error in the documentation, reference/errors"


@dataclass(frozen=True)
class Check:
    """One finding of the doctor.

    Attributes
    ----------
    what
        The part of the machine, or the section of the cohort.
    state
        ``"ok"``, ``"note"`` or ``"fail"``.
    told
        What was found.
    fix
        What to do; empty where nothing is to be done.
    error
        The class of the error that a run would raise; empty where it would raise none.
    """

    what: str
    state: State
    told: str
    fix: str = ""
    error: str = ""

    @property
    def sentence(self) -> str:
        """What was found, and its fix."""
        return f"{self.told}; {self.fix}" if self.fix else self.told


def of_error(what: str, err: HistoflowError, state: State = "fail") -> Check:
    """The finding that an error is; errors end in what to do, after a semicolon."""
    told, _, fix = str(err).rpartition("; ")
    general = next((text for kind, text in _REMEDIES.items() if isinstance(err, kind)), _ANY_REMEDY)
    return Check(what, state, told or fix, fix if told else general, type(err).__name__)


def check_machine() -> list[Check]:
    """Look at the machine: installed parts, torch build, threads, memory, cache folder and its disk, encoders.

    Returns
    -------
    One finding for each, in a fixed order.
    """
    parts = [_part(name, extra, "fail") for name, extra in _NEEDED.items()]
    parts += [_part(name, extra, "note") for name, extra in _OPTIONAL.items()]
    return [*parts, *_torch(), _memory(), *_cache(), *_data(), *_encoders()]


def _part(name: str, extra: str, absent: State) -> Check:
    if find_spec(name) is None:
        return Check(name, absent, "not installed", f"pip install '{f'histoflow[{extra}]' if extra else name}'")
    try:
        return Check(name, "ok", version(_DISTRIBUTIONS.get(name, name)))
    except PackageNotFoundError:
        return Check(name, "ok", "installed")


def _torch() -> list[Check]:
    """What torch was built for, and how many threads it takes of those that this process may use."""
    if find_spec("torch") is None:
        return []
    import torch

    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "processor alone"
    seen = f"{torch.cuda.device_count()} devices" if torch.cuda.is_available() else "no device"
    idle = torch.version.cuda is not None and not torch.cuda.is_available()
    fix = (
        "check the driver (nvidia-smi), or ask the scheduler for a device; everything runs without one" if idle else ""
    )
    build = Check("torch build", "note" if idle else "ok", f"{built}, {seen}", fix)
    usable, taken = usable_processors(), torch.get_num_threads()
    told = f"{taken} of {usable} usable processors"
    if taken <= usable:
        return [build, Check("threads", "ok", told)]
    return [build, Check("threads", "note", f"{told}, so threads wait for each other", f"set OMP_NUM_THREADS={usable}")]


def usable_processors() -> int:
    """Processors that this process may run on, which a scheduler may have made fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> Check:
    total = memory_bytes()
    if total is None:
        return Check("memory", "ok", "not told by this system")
    told = f"{total / _GB:.1f} GB for this process"
    if total >= _LITTLE_MEMORY_GB * _GB:
        return Check("memory", "ok", told)
    return Check("memory", "note", told, "ask for more (--mem on SLURM), or work on one section at a time")


def memory_bytes() -> int | None:
    """Memory of the machine, or of the part of it that this process is limited to; None where nothing tells it."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    try:
        limit = _CGROUP_LIMIT.read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def _cache() -> list[Check]:
    """Whether the cache folder can be written to, and what room it has."""
    try:
        folder = cache_folder()
    except HistoflowError as err:
        return [of_error("cache", err)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as err:
        why = f"{folder} is not writable ({err.strerror or err})"
        return [Check("cache", "fail", why, "set HISTOFLOW_CACHE to a folder that is", OutputError.__name__)]
    return [Check("cache", "ok", str(folder)), _disk(folder)]


def _disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free / _GB
    state: State = "ok" if free >= _LITTLE_DISK_GB else "note" if free >= _LEAST_DISK_GB else "fail"
    fix = "" if state == "ok" else "set HISTOFLOW_CACHE to a larger disk, or run: histoflow cache clear"
    return Check("disk of the cache", state, f"{free:.1f} GB free", fix)


def _data() -> list[Check]:
    """The folder of data sets, where the environment names one."""
    named = os.environ.get("HISTOFLOW_DATA")
    if not named:
        return []
    if Path(named).is_dir():
        return [Check("HISTOFLOW_DATA", "ok", f"{named}: nothing is downloaded")]
    fix = "name a folder that exists, or unset it"
    return [Check("HISTOFLOW_DATA", "fail", f"{named} is not a folder", fix, ReadError.__name__)]


def _encoders() -> list[Check]:
    """How many encoders can be used, and why a library of them cannot."""
    found = pp.available_encoders()
    usable = [info.name for info in found if info.usable]
    told = f"{len(usable)} of {len(found)} usable here: {', '.join(usable[:6])}{', …' if len(usable) > 6 else ''}"
    broken = [
        Check(library, "note", why, "other encoders, scatter among them, work without it")
        for library, why in pp.unavailable().items()
    ]
    return [Check("encoders", "ok", told), *broken]
