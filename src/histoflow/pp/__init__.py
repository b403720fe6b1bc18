"""From an opened slide to embeddings, and from counts to the expression that a model predicts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from histoflow._lazy import loader as _loader

if TYPE_CHECKING:
    from histoflow.pp.context import add_context
    from histoflow.pp.dense import DenseEmbedder, DenseMap
    from histoflow.pp.embed import Embedder, Recipe, embedding_facts
    from histoflow.pp.encoders import (
        Card,
        Dense,
        Encoder,
        EncoderInfo,
        available_encoders,
        get_encoder,
        load_weights,
        unavailable,
    )
    from histoflow.pp.expression import Panel, choose_panel, panel_log1p
    from histoflow.pp.graph import Neighbors, neighbors
    from histoflow.pp.lattice import Lattice
    from histoflow.pp.patches import embed_patches

_HOMES = {
    "Card": "encoders",
    "Dense": "encoders",
    "DenseEmbedder": "dense",
    "DenseMap": "dense",
    "Embedder": "embed",
    "Encoder": "encoders",
    "EncoderInfo": "encoders",
    "Lattice": "lattice",
    "Neighbors": "graph",
    "Panel": "expression",
    "Recipe": "embed",
    "add_context": "context",
    "available_encoders": "encoders",
    "choose_panel": "expression",
    "embed_patches": "patches",
    "embedding_facts": "embed",
    "get_encoder": "encoders",
    "load_weights": "encoders",
    "neighbors": "graph",
    "panel_log1p": "expression",
    "unavailable": "encoders",
}

__all__ = [
    "Card",
    "Dense",
    "DenseEmbedder",
    "DenseMap",
    "Embedder",
    "Encoder",
    "EncoderInfo",
    "Lattice",
    "Neighbors",
    "Panel",
    "Recipe",
    "add_context",
    "available_encoders",
    "choose_panel",
    "embed_patches",
    "embedding_facts",
    "get_encoder",
    "load_weights",
    "neighbors",
    "panel_log1p",
    "unavailable",
]

__getattr__ = _loader(__name__, _HOMES)


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
