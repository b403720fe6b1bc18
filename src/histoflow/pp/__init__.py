"""From an opened slide to embeddings, and from counts to the expression that a model predicts."""

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
