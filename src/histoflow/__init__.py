"""Spatial gene expression from ordinary H&E slides: fit on your own sections, predict on any slide."""

from __future__ import annotations

from importlib.metadata import version as _version
from typing import TYPE_CHECKING

from histoflow._lazy import loader as _loader

if TYPE_CHECKING:
    from histoflow import bench, datasets, models, pl, stats
    from histoflow.datasets import download_breast, load_breast
    from histoflow.io import (
        Cohort,
        SuperPixels,
        from_spatialdata,
        open_wsi,
        read_cohort,
        read_features,
        read_st,
        read_visium,
        read_visium_hd,
        rename_genes,
        section_from_anndata,
        to_geojson,
        to_spatialdata,
    )
    from histoflow.pp import Panel, add_context, choose_panel
    from histoflow.workflow import (
        available_backbones,
        embed,
        evaluate,
        fit,
        hest_bench,
        match,
        predict_expression,
        read_visium_with_image,
        report,
        run_cohort,
        spot_features,
        super_resolve,
        tile,
    )

__version__ = _version("histoflow")

_HOMES = {
    **dict.fromkeys(("bench", "datasets", "models", "pl", "stats"), ""),
    "Cohort": "io",
    "Panel": "pp",
    "SuperPixels": "io",
    "add_context": "pp",
    "available_backbones": "workflow",
    "choose_panel": "pp",
    "download_breast": "datasets",
    "embed": "workflow",
    "evaluate": "workflow",
    "fit": "workflow",
    "from_spatialdata": "io",
    "hest_bench": "workflow",
    "load_breast": "datasets",
    "match": "workflow",
    "open_wsi": "io",
    "predict_expression": "workflow",
    "read_cohort": "io",
    "read_features": "io",
    "read_st": "io",
    "read_visium": "io",
    "read_visium_hd": "io",
    "read_visium_with_image": "workflow",
    "rename_genes": "io",
    "report": "workflow",
    "run_cohort": "workflow",
    "section_from_anndata": "io",
    "spot_features": "workflow",
    "super_resolve": "workflow",
    "tile": "workflow",
    "to_geojson": "io",
    "to_spatialdata": "io",
}

__all__ = [
    "Cohort",
    "Panel",
    "SuperPixels",
    "add_context",
    "available_backbones",
    "bench",
    "choose_panel",
    "datasets",
    "download_breast",
    "embed",
    "evaluate",
    "fit",
    "from_spatialdata",
    "hest_bench",
    "load_breast",
    "match",
    "models",
    "open_wsi",
    "pl",
    "predict_expression",
    "read_cohort",
    "read_features",
    "read_st",
    "read_visium",
    "read_visium_hd",
    "read_visium_with_image",
    "rename_genes",
    "report",
    "run_cohort",
    "section_from_anndata",
    "spot_features",
    "stats",
    "super_resolve",
    "tile",
    "to_geojson",
    "to_spatialdata",
]

__getattr__ = _loader(__name__, _HOMES)


def __dir__() -> list[str]:
    """List the public names."""
    return [*__all__, "__version__"]
