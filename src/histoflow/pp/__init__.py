"""From slides and counts to arrays: panels, scales, neighbours, embeddings."""

from histoflow.pp.expression import Panel, choose_panel, panel_log1p
from histoflow.pp.graph import Neighbors, neighbors

__all__ = ["Neighbors", "Panel", "choose_panel", "neighbors", "panel_log1p"]
