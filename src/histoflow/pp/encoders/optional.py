"""Libraries that may be absent or broken, imported in one place, with a plain reason where they cannot be."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import version
from typing import Any

from histoflow._errors import MissingDependencyError

ZOO = "lazyslide_models"
TIMM = "timm"


@cache
def why_not(library: str) -> str:
    """Why `library` cannot be imported here and what to do about it; empty where it can."""
    try:
        import_module(library)
    except ImportError as err:
        return f"{library} cannot be imported ({err}): pip install 'histoflow[encoders]'"
    except RuntimeError as err:
        # What a torchvision raises that was built for another torch; any other RuntimeError is a fault to be seen.
        if "torchvision::" not in str(err):
            raise
        pair = f"torchvision {version('torchvision')} does not fit torch {version('torch')}"
        return f"{pair} ({err}); install two that were released together"
    return ""


def needed(library: str, what: str) -> Any:
    """Import `library` for `what`.

    Raises
    ------
    MissingDependencyError
        If it cannot be imported, with the reason.
    """
    if reason := why_not(library):
        raise MissingDependencyError(f"{what} cannot be used here: {reason}")
    return import_module(library)
