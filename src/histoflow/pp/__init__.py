"""From an opened slide to embeddings, and from counts to the expression that a model predicts."""

from histoflow.pp.embed import Embedder, Recipe, embedding_facts
from histoflow.pp.encoders import Encoder, available_encoders, get_encoder
from histoflow.pp.expression import Panel, choose_panel, panel_log1p
from histoflow.pp.graph import Neighbors, neighbors

__all__ = [
    "Embedder",
    "Encoder",
    "Neighbors",
    "Panel",
    "Recipe",
    "available_encoders",
    "choose_panel",
    "embedding_facts",
    "get_encoder",
    "neighbors",
    "panel_log1p",
]
