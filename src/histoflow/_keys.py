"""Names of every AnnData slot that histoflow reads or writes, and the check that they are there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from anndata import AnnData

from histoflow._errors import MissingSlotError

UNS = "histoflow"
"""``uns`` entry with everything known about a section, a prediction or a model."""
SPATIAL = "spatial"
"""``obsm`` entry (n_spots, 2): x, y of the spot centre in level-0 pixels of the slide."""
SPATIAL_UM = "spatial_um"
"""``obsm`` entry (n_spots, 2): x, y of the spot centre in µm from the slide's upper left corner."""
PATIENT = "patient"
"""``obs`` column: the patient or animal a spot comes from."""
TISSUE = "tissue_id"
"""``obs`` column: the piece of tissue a spot lies on, from `embed` unless given; graph and context never cross it."""
STD, LOWER, UPPER = "std", "lower", "upper"
"""``layers`` of a prediction: spread of the draws, and the interval of a calibrated model (log1p)."""
SCALE = "scale"
"""``layers`` entry of a calibrated prediction: how far residuals spread at a spot, log1p, above 0."""
RESIDUAL_QUANTILES = "residual_quantiles"
"""``varm`` entry (n_genes, n_levels) of a calibrated prediction: quantiles of the residuals in units of ``SCALE``."""
QUANTILE_LEVELS = "quantile_levels"
"""Entry of ``uns[UNS]`` of a calibrated prediction: the levels of ``RESIDUAL_QUANTILES``, increasing, in (0, 1)."""
UNFAMILIAR = "unfamiliar"
"""``obs`` column of a calibrated prediction: whether the place looks unlike all that the model was trained on."""
HELD_OUT_R = "held_out_r"
"""``var`` column of a prediction: Pearson r of the gene on spots the model had not seen in training."""
EMBEDDINGS = "embeddings"
"""Entry of ``uns[UNS]``: how each embedding of the section was made."""

DENSE = "_dense"
"""End of the ``obsm`` entry of an encoder's super-pixels: ``"scatter_dense"`` beside ``"scatter"``."""

Missing = Literal["error", "zero"]
"""What a panel gene is that a section's table lacks: not measured, or without counts in a table that was trimmed."""

_MAKERS = {
    SPATIAL: "hf.read_visium, hf.read_st or hf.section_from_anndata",
    SPATIAL_UM: "hf.read_visium, hf.read_st or hf.section_from_anndata",
    UNS: "hf.read_visium, hf.read_st or hf.section_from_anndata",
    "X": "hf.read_visium, hf.read_st or hf.section_from_anndata",
}


def facts(section: AnnData) -> dict[str, Any]:
    """Everything known about a section: ``uns["histoflow"]``, or an empty dict that is not stored."""
    found: dict[str, Any] = section.uns.get(UNS, {})
    return found


def section_name(section: AnnData) -> str:
    """The section's id, or a placeholder for error texts."""
    return str(facts(section).get("section", "<unnamed section>"))


def check_section(section: AnnData, *, needs: Iterable[str]) -> None:
    """Raise unless every slot in `needs` is there.

    Parameters
    ----------
    section
        One tissue section.
    needs
        Slot names: ``"X"``, ``"histoflow"`` (the ``uns`` entry), or keys of ``obsm``.

    Raises
    ------
    MissingSlotError
        Naming the section, the slot, and the call that makes it.
    """
    for slot in needs:
        if slot == "X":
            present = section.X is not None and section.n_vars > 0
        elif slot == UNS:
            present = UNS in section.uns
        else:
            present = slot in section.obsm
        if not present:
            maker = _MAKERS.get(slot, f'hf.embed(section, "{slot}")')
            where = {"X": "X", UNS: f'uns["{UNS}"]'}.get(slot, f'obsm["{slot}"]')
            raise MissingSlotError(f"section {section_name(section)} has no {where}; {maker} makes it")
