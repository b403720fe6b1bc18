"""What an estimator sees of a section: places and embeddings, and for training the measured expression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from histoflow._errors import EncoderMismatchError, MissingSlotError, NotFiniteError
from histoflow._keys import EMBEDDINGS, SPATIAL_UM, TISSUE, UNS, Missing, check_section, facts, section_name
from histoflow.pp.expression import Normalize, Panel, library_size, panel_log1p

Floats = NDArray[np.float32]

_DESCRIBED = (
    *("id", "name", "version", "n_features", "patch_px", "licence", "weights_hash", "mean", "std", "amp"),
    *("parts", "patch_um", "context_um", "grid_um", "standardize", "dense_version", "superpixel_um", "around_um"),
)
"""What of an embedding's facts belongs to the way it is made, rather than to one slide."""


@dataclass(frozen=True)
class Spots:
    """Spots or tiles of one section, without counts.

    Attributes
    ----------
    section, slide_id
        Id of the section, and content id of its slide.
    ids
        ``obs_names``, shape (n_spots,).
    xy_um
        Centres, shape (n_spots, 2), x, y in µm from the slide's upper left corner.
    tissue
        Code of the piece of tissue of each spot, shape (n_spots,); neighbours are of one piece.
    pitch_um
        Distance of neighbouring spots in µm.
    embedding
        Shape (n_spots, n_features), float32; no columns for an estimator that looks at no image.
    """

    section: str
    slide_id: str
    ids: NDArray[np.str_]
    xy_um: NDArray[np.float64]
    tissue: NDArray[np.int64]
    pitch_um: float
    embedding: Floats

    def __len__(self) -> int:
        """Count the spots."""
        return len(self.ids)


@dataclass(frozen=True)
class Measured:
    """Spots with what was measured there.

    Attributes
    ----------
    spots
        The places.
    log1p
        Expression of the panel, shape (n_spots, n_genes), log1p on the model's scale, float32.
    totals
        Counts of each spot over all genes, shape (n_spots,).
    """

    spots: Spots
    log1p: Floats
    totals: NDArray[np.float64]


def spots_of(section: AnnData, encoder: str | None, wanted: dict[str, Any] | None = None) -> Spots:
    """Take places and embeddings of a section; counts are not looked at.

    Parameters
    ----------
    section
        One section, embedded by `encoder`.
    encoder
        ``obsm`` slot of the embeddings; None for an estimator that looks at no image.
    wanted
        How the embeddings must have been made, from `embedding_of`.

    Raises
    ------
    MissingSlotError
        If places or embeddings are missing.
    EncoderMismatchError
        If the embeddings were made another way than wanted.
    NotFiniteError
        If an embedding holds NaN or infinity.
    """
    check_section(section, needs=[SPATIAL_UM, UNS, *([encoder] if encoder else [])])
    if wanted is not None:
        _check_embedding(section, str(encoder), wanted)
    known = facts(section)
    tissue = pd.factorize(section.obs[TISSUE])[0] if TISSUE in section.obs else np.zeros(section.n_obs)
    embedding = np.asarray(section.obsm[encoder], dtype=np.float32) if encoder else np.empty((section.n_obs, 0))
    if not np.isfinite(embedding).all():
        raise NotFiniteError(f"section {section_name(section)}: its embeddings hold NaN or infinity; embed it anew")
    return Spots(
        section=section_name(section),
        slide_id=str(known.get("slide_id", "")),
        ids=section.obs_names.to_numpy(dtype=str),
        xy_um=np.asarray(section.obsm[SPATIAL_UM], dtype=np.float64),
        tissue=np.asarray(tissue, dtype=np.int64),
        pitch_um=float(known.get("pitch_um", np.nan)),
        embedding=embedding.astype(np.float32, copy=False),
    )


def measured_of(
    section: AnnData, encoder: str | None, panel: Panel, normalize: Normalize, *, missing: Missing = "error"
) -> Measured:
    """Take places, embeddings and measured expression of a training section.

    Parameters
    ----------
    section
        One section, X raw counts, embedded by `encoder`.
    encoder
        ``obsm`` slot of the embeddings; None for an estimator that looks at no image.
    panel, normalize, missing
        As in `panel_log1p`.

    Raises
    ------
    MissingSlotError, EncoderMismatchError, NotFiniteError
        As `spots_of`.
    PanelMismatchError
        If the section lacks a gene of the panel.
    """
    log1p = panel_log1p(section, panel, normalize, missing=missing)
    return Measured(spots_of(section, encoder), log1p, library_size(section))


def embedding_of(sections: Sequence[AnnData], encoder: str) -> dict[str, Any]:
    """How the embeddings of training sections were made: one way for all of them.

    Raises
    ------
    MissingSlotError
        If a section does not record it.
    EncoderMismatchError
        If two sections differ.
    """
    made = [_recorded(section, encoder) for section in sections]
    for section, other in zip(sections[1:], made[1:], strict=True):
        if other["id"] != made[0]["id"]:
            _refuse(section, other, made[0], f"section {section_name(sections[0])}")
    return made[0]


def _recorded(section: AnnData, encoder: str) -> dict[str, Any]:
    stored = facts(section).get(EMBEDDINGS, {}).get(encoder)
    if stored is None or "id" not in stored:
        raise MissingSlotError(
            f'section {section_name(section)} does not record in uns["{UNS}"]["{EMBEDDINGS}"] how its {encoder} '
            f'embeddings were made; hf.embed(section, "{encoder}") makes them'
        )
    return {key: _plain(stored[key]) for key in _DESCRIBED if key in stored}


def _plain(value: Any) -> Any:
    """A value as JSON holds it; files give numpy's own types back."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _check_embedding(section: AnnData, encoder: str, wanted: dict[str, Any]) -> None:
    made = _recorded(section, encoder)
    if made["id"] != wanted["id"]:
        _refuse(section, made, wanted, "the model")


def _refuse(section: AnnData, made: dict[str, Any], wanted: dict[str, Any], by: str) -> None:
    differing = [key for key in _DESCRIBED if key not in ("id", "licence") and made.get(key) != wanted.get(key)]
    came = ", ".join(f"{key} {made.get(key)}" for key in differing)
    needed = ", ".join(f"{key} {wanted.get(key)}" for key in differing)
    raise EncoderMismatchError(
        f"section {section_name(section)} was embedded with {came}, but {by} with {needed}; "
        "embed the section anew the same way"
    )
