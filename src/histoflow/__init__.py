"""Spatial gene expression from ordinary H&E slides: fit on your own sections, predict on any slide."""

from __future__ import annotations

from importlib import import_module as _import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from histoflow import bench, datasets, models, pl
    from histoflow.io import Cohort, open_wsi, read_cohort, read_st, read_visium, section_from_anndata
    from histoflow.pp import Panel, choose_panel
    from histoflow.workflow import embed, evaluate, fit

__version__ = _version("histoflow")

_MODULES = ("bench", "datasets", "models", "pl")
_NAMES = {
    "Cohort": "io",
    "Panel": "pp",
    "choose_panel": "pp",
    "embed": "workflow",
    "evaluate": "workflow",
    "fit": "workflow",
    "match": "workflow",
    "open_wsi": "io",
    "predict_expression": "workflow",
    "read_cohort": "io",
    "read_st": "io",
    "read_visium": "io",
    "read_visium_with_image": "workflow",
    "section_from_anndata": "io",
    "spot_features": "workflow",
    "tile": "workflow",
}

__all__ = [
    "Cohort",
    "Panel",
    "bench",
    "choose_panel",
    "datasets",
    "embed",
    "evaluate",
    "fit",
    "match",
    "models",
    "open_wsi",
    "pl",
    "predict_expression",
    "read_cohort",
    "read_st",
    "read_visium",
    "read_visium_with_image",
    "section_from_anndata",
    "spot_features",
    "tile",
]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first asked for, so that importing histoflow costs nothing."""
    if name in _MODULES:
        return _import_module(f"histoflow.{name}")
    if name in _NAMES:
        return getattr(_import_module(f"histoflow.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'histoflow' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names."""
    return [*__all__, "__version__"]
