"""Progress of long steps: a bar on a terminal, log lines otherwise."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from typing import TypeVar

import click

T = TypeVar("T")
_log = logging.getLogger(__name__)


def track(items: Sequence[T], label: str, *, unit: int = 10) -> Iterator[T]:
    """Go through `items` and tell how far we are.

    Parameters
    ----------
    items
        What to go through; its length must be known.
    label
        What is being done, for the bar and the log.
    unit
        Log lines per pass at most, where standard error is not a terminal.
    """
    if sys.stderr.isatty():
        with click.progressbar(items, label=label, file=sys.stderr) as bar:
            yield from bar
        return
    every = max(1, len(items) // unit)
    for index, item in enumerate(items):
        if index % every == 0:
            _log.info("%s: %d of %d", label, index, len(items))
        yield item
