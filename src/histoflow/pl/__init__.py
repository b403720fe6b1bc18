"""Figures: maps on the slide, scatters and benchmark bars; they take arrays and tables and know no model.

Every function returns a `matplotlib.figure.Figure` of its own, outside pyplot's global state; `save` writes it.
"""

from histoflow.pl.charts import gene_bars, gene_scatter, model_bars
from histoflow.pl.figures import LOG1P_LIBRARY, save
from histoflow.pl.maps import Thumbnail, expression_map, measured_beside_predicted, spots_on_slide

__all__ = [
    "LOG1P_LIBRARY",
    "Thumbnail",
    "expression_map",
    "gene_bars",
    "gene_scatter",
    "measured_beside_predicted",
    "model_bars",
    "save",
    "spots_on_slide",
]
