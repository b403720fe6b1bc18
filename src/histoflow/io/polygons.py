"""Polygons that a person drew, from a GeoJSON file as QuPath writes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from histoflow._errors import ReadError
from histoflow._files import read_json
from histoflow.io.hdf5 import READING_ERRORS
from histoflow.io.images import extra


def read_polygons(path: str | Path) -> Any:
    """Read the union of all polygons of a GeoJSON file.

    Parameters
    ----------
    path
        A FeatureCollection, a list of features, a feature or a geometry, in level-0 pixels, x right, y down.

    Returns
    -------
    A shapely geometry.

    Raises
    ------
    ReadError
        If the file is missing, is not JSON, or holds no polygon.
    MissingDependencyError
        If the part that opens slides is not installed.
    """
    shapely = extra("shapely")
    try:
        found = [part for part in _geometries(read_json(path)) if part.get("type") in ("Polygon", "MultiPolygon")]
        shapes = [shapely.make_valid(shapely.geometry.shape(geometry)) for geometry in found]
        union = shapely.unary_union(shapes)
    except ReadError:
        raise
    except (*READING_ERRORS, shapely.errors.ShapelyError) as err:
        raise ReadError(f"{path} holds a polygon that is none ({err}); export it anew") from err
    if union.is_empty or not np.isfinite(union.bounds).all():
        raise ReadError(f"{path} holds no polygon; draw the regions as closed shapes and export them as GeoJSON")
    if not union.is_valid:
        raise ReadError(f"{path} holds a polygon that no area can be told of; export it anew")
    return union


def _geometries(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, list):
        for part in value:
            yield from _geometries(part)
    elif isinstance(value, dict):
        inner = value.get("features", value.get("geometry", value.get("geometries")))
        if inner is None:
            yield value
        else:
            yield from _geometries(inner)
