"""Functions that the tests hand to the engine; workers import them."""

import os
import warnings
from pathlib import Path

import torch
from threadpoolctl import threadpool_info

from histoflow._errors import ReadError, ScaleWarning


def double(arguments):
    return {"doubled": 2 * arguments["number"]}


def refuse(arguments):
    count(arguments)
    raise ReadError("no such\nslide")


def fail_at_first(arguments):
    if count(arguments) <= arguments["n_failures"]:
        raise ZeroDivisionError("the disk was away")
    return {}


def count(arguments):
    """How often this was called, counted in a file."""
    path = Path(arguments["file"])
    path.write_text(path.read_text() + "x" if path.exists() else "x")
    return len(path.read_text())


def threads(arguments):
    blas = {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}
    return {"torch": torch.get_num_threads(), "blas": sorted(blas)}


def warn(arguments):
    warnings.warn("the scale is doubtful", ScaleWarning, stacklevel=1)
    warnings.warn("chatter of another library", UserWarning, stacklevel=1)
    return {}


def die(arguments):
    count(arguments)
    os.kill(os.getpid(), 9)


def die_once_and_double(arguments):
    if arguments["file"] and count(arguments) == 1:
        os.kill(os.getpid(), 9)
    return double(arguments)
