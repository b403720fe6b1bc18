"""What the maps of a page show: places, expression and widths of a section, cut down to what a page can carry."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from scipy.spatial import KDTree

from histoflow._errors import HistoflowError
from histoflow._keys import LOWER, SPATIAL_UM, STD, UPPER, check_section, facts
from histoflow.bench.parts import MEASURED
from histoflow.bench.report.packing import pack

BUDGET = 6_800_000
"""Bytes of expression and pictures in a page, before base64 makes them a third more."""
MOST_SPOTS, MOST_GENES = 5_000, 100
UNFAMILIAR = "unfamiliar"
"""``obs`` column of a prediction: places whose tissue or stain is unlike what the model was trained on."""
_LONE_SPOT_UM = 100.0

Read = Callable[[str, str], AnnData]
"""Gives the prediction of a section by a model; raises an error of ours where there is none."""


class Picture(NamedTuple):
    """A small picture of tissue, and the place it shows.

    Attributes
    ----------
    jpeg
        The file's bytes.
    extent_um
        Edges ``(left, right, top, bottom)`` in µm from the slide's upper left corner, y downwards.
    """

    jpeg: bytes
    extent_um: tuple[float, float, float, float]


@dataclass(frozen=True)
class _Cut:
    """Which spots and which columns of a prediction a page shows, and with how many bits a number."""

    spots: NDArray[np.intp]
    genes: list[str]
    bits: int

    @property
    def n_values(self) -> int:
        return len(self.spots) * len(self.genes)

    def packed(self, predicted: AnnData, values: Any) -> dict[str, Any]:
        """Pack values, (n_spots, n_genes)."""
        columns = predicted.var_names.get_indexer(self.genes)
        return pack(np.asarray(values)[np.ix_(self.spots, columns)], self.bits)


@dataclass
class Shown:
    """What fits into a page.

    Attributes
    ----------
    sections
        One record each, as the page's script reads them.
    left_out
        Sections for which no room was left.
    models
        Models whose predictions are mapped.
    n_thinned
        Spots of each section that is shown by a part of them.
    n_unfamiliar
        Flagged places of each section that has some, and how many places there are.
    lacking
        Sections without a prediction, and why, by model.
    trained_on
        Training sections, as the prediction of each section tells.
    cuts
        What is shown of each section.
    """

    sections: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    n_thinned: dict[str, int] = field(default_factory=dict)
    n_unfamiliar: dict[str, tuple[int, int]] = field(default_factory=dict)
    lacking: dict[str, tuple[list[str], str]] = field(default_factory=dict)
    trained_on: dict[str, list[str]] = field(default_factory=dict)
    cuts: dict[str, _Cut] = field(default_factory=dict)


def mapped_genes(ranked: Sequence[str]) -> list[str]:
    """All genes, or of very many some, from the first to the last at even distances in rank."""
    places = np.linspace(0, len(ranked) - 1, min(MOST_GENES, len(ranked))).round().astype(int)
    return [ranked[place] for place in places]


def shown_sections(
    sections: Sequence[str],
    models: Sequence[str],
    read: Read,
    *,
    genes: Sequence[str],
    pictures: dict[str, Picture],
    budget: int = BUDGET,
) -> Shown:
    """Collect the maps of sections: the first model's on as many as there is room for, then the other models'.

    Parameters
    ----------
    sections
        Their names, the most wanted first.
    models
        Names of the models, the most wanted first.
    read
        Gives the prediction of a section by a model.
    genes
        Genes wanted; a section shows those that it has.
    pictures
        Of tissue, by section.
    budget
        Bytes there are.
    """
    shown, left = Shown(), budget
    for section in sections:
        predicted = _read(read, section, models[0], shown)
        if predicted is None:
            continue
        cut, picture = _cut(predicted, genes, budget // len(sections)), pictures.get(section)
        size = 3 * cut.n_values * cut.bits // 8 + (0 if picture is None else len(picture.jpeg))
        if size > left and shown.sections:
            shown.left_out.append(section)
            continue
        record = _record(section, predicted, cut, picture, shown)
        shown.trained_on[section] = [str(name) for name in facts(predicted).get("trained_on", [])]
        shown.sections.append(record | {"maps": {models[0]: _layers(predicted, cut)}})
        shown.cuts[section], left = cut, left - size
    if shown.sections:
        shown.models.append(models[0])
    for model in models[1:]:
        left = _other_model(shown, model, read, left)
    return shown


def _read(read: Read, section: str, model: str, shown: Shown) -> AnnData | None:
    try:
        return read(section, model)
    except HistoflowError as err:
        sections, reason = shown.lacking.get(model, ([], str(err)))
        shown.lacking[model] = [*sections, section], reason
        return None


def _cut(predicted: AnnData, genes: Sequence[str], share: int) -> _Cut:
    """What to show of a section that should take `share` bytes of a page."""
    spots = np.arange(predicted.n_obs)
    if len(spots) > MOST_SPOTS:
        # At random: every second one of a lattice would leave stripes.
        spots = np.sort(np.random.default_rng(0).choice(spots, MOST_SPOTS, replace=False))
    own = [gene for gene in genes if gene in predicted.var_names]
    # Whole steps of 1/255 of a gene's range are too coarse to read a number from, but not to see a map.
    return _Cut(spots, own, 16 if 3 * 2 * len(spots) * len(own) <= share else 8)


def _record(section: str, predicted: AnnData, cut: _Cut, picture: Picture | None, shown: Shown) -> dict[str, Any]:
    """A section as the page's script reads it, but for its predictions."""
    check_section(predicted, needs=[SPATIAL_UM])
    xy = np.asarray(predicted.obsm[SPATIAL_UM], dtype=float)
    flagged = np.asarray(predicted.obs[UNFAMILIAR], bool) if UNFAMILIAR in predicted.obs else np.zeros(len(xy), bool)
    if len(cut.spots) < len(xy):
        shown.n_thinned[section] = len(cut.spots)
    if flagged.any():
        shown.n_unfamiliar[section] = (int(flagged.sum()), len(flagged))
    measured = predicted.layers.get(MEASURED)
    return {
        "name": section,
        "genes": cut.genes,
        "xy": pack(xy[cut.spots]),
        "spacing_um": round(spacing_um(xy), 2),
        "flagged": np.flatnonzero(flagged[cut.spots]).tolist(),
        "picture": None if picture is None else _picture(picture),
        "measured": None if measured is None else cut.packed(predicted, measured),
    }


def _picture(picture: Picture) -> dict[str, Any]:
    source = "data:image/jpeg;base64," + b64encode(picture.jpeg).decode("ascii")
    return {"source": source, "extent_um": [round(edge, 2) for edge in picture.extent_um]}


def _layers(predicted: AnnData, cut: _Cut) -> dict[str, Any]:
    """Expression, and what tells how sure it is: an interval's width, or the spread of the draws, or nothing."""
    layers, level = predicted.layers, facts(predicted).get("level")
    kind, width = None, None
    if LOWER in layers and UPPER in layers:
        kind, width = "interval", np.asarray(layers[UPPER]) - np.asarray(layers[LOWER])
    elif STD in layers:
        kind, width = "spread", layers[STD]
    return {
        "predicted": cut.packed(predicted, predicted.X),
        "width": None if width is None else cut.packed(predicted, width),
        "width_kind": kind,
        "level": None if level is None else float(level),
    }


def _other_model(shown: Shown, model: str, read: Read, left: int) -> int:
    """Add another model's maps to the sections shown, to all or to none, and return the bytes left then."""
    size = sum(2 * cut.n_values * cut.bits // 8 for cut in shown.cuts.values())
    if size > left:
        return left
    for record in shown.sections:
        predicted = _read(read, record["name"], model, shown)
        if predicted is not None:
            record["maps"][model] = _layers(predicted, shown.cuts[record["name"]])
    if any(model in record["maps"] for record in shown.sections):
        shown.models.append(model)
    return left - size


def spacing_um(xy_um: NDArray[np.floating[Any]]) -> float:
    """Median distance of a place, (n_places, 2) in µm, to the nearest other one."""
    unique = np.unique(xy_um, axis=0)
    if len(unique) < 2:
        return _LONE_SPOT_UM
    return float(np.median(KDTree(unique).query(unique, k=2)[0][:, 1]))
