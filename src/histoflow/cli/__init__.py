"""The command line: each command parses, makes one public call, and says where the result is."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from histoflow._errors import HistoflowError, OptionError
from histoflow._files import system_number
from histoflow.cli import cohort_run, cohorts, evaluation, hest, machine, report, subspot
from histoflow.cli.root import cli

for _command in (
    *(cohorts.demo, cohorts.fit, cohorts.predict, evaluation.evaluate, hest.hest_bench, subspot.super_resolve),
    *(report.report, cohort_run.cohort),
    *(machine.encoders, machine.cache, machine.doctor),
):
    cli.add_command(_command)


_STOPPED = "stopped{by}: nothing is half-written, and the same command goes on from what is finished"
_NO_MEMORY = "there is not enough memory ({told}); give it more, or close what else takes it; what is finished is kept"
_OF_FILES = "{told}; check that this disk or share is there and has room, and run it again: what is finished is kept"

_IS_MEMORY = re.compile("allocate memory|memory allocation failed|bad_alloc|out of memory|ENOMEM", re.IGNORECASE)
"""How libraries in C say it."""
_OF_DISKS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN),
}
"""What a disk or a share says when it is full, locked or gone."""


def main() -> None:
    """Run the command line: exit code 0 on success, 2 on wrong usage, 1 on other errors, 130 and 143 when stopped."""
    # Threads of torch that wait do so asleep, not at full speed in the way of those that work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    given = sys.argv[1:]
    debug = "--debug" in given
    arguments = [*(["--debug"] if debug else []), *(word for word in given if word != "--debug")]
    try:
        with _stoppable():
            code = cli.main(arguments, standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as err:
        err.show()
        sys.exit(err.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo(_STOPPED.format(by=""), err=True)
        sys.exit(128 + signal.SIGINT)
    except TerminatedError:
        click.echo(_STOPPED.format(by=" by SIGTERM"), err=True)
        sys.exit(128 + signal.SIGTERM)
    except Exception as err:
        if debug:
            raise
        click.echo(f"error: {_in_words(err)}", err=True)
        sys.exit(2 if isinstance(err, OptionError) else 1)


class TerminatedError(BaseException):
    """SIGTERM has come: everything that is open is closed, and what is half-written is removed."""


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, rather than at once."""
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(*_: object) -> None:
    raise TerminatedError


def _in_words(err: Exception) -> str:
    """What an error says, in one line, and what to do."""
    told = " ".join(str(err).split())
    if isinstance(err, HistoflowError):
        return str(err)
    if isinstance(err, MemoryError) or _IS_MEMORY.search(told):
        return _NO_MEMORY.format(told=told or "the system gives no more")
    if system_number(err) in _OF_DISKS:
        where = getattr(err, "filename", None)
        return _OF_FILES.format(told=f"{where}: {os.strerror(system_number(err))}" if where else told)
    return f"{type(err).__name__}: {told}; run it again with --debug for the traceback"
