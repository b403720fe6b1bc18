"""The verbs that people know, from paths to results. Thin: the work is below."""

from histoflow.workflow.cohorts import (
    demo,
    draw_evaluation,
    embed,
    embed_for,
    embedder,
    evaluate,
    fit,
    predict_section,
    predict_slide,
    slide_thumbnail,
    write_h5ad,
)
from histoflow.workflow.slides import (
    Pairs,
    available_backbones,
    match,
    predict_expression,
    read_visium_with_image,
    spot_features,
    tile,
)
from histoflow.workflow.subspot import resolve, super_resolve

__all__ = [
    "Pairs",
    "available_backbones",
    "demo",
    "draw_evaluation",
    "embed",
    "embed_for",
    "embedder",
    "evaluate",
    "fit",
    "match",
    "predict_expression",
    "predict_section",
    "predict_slide",
    "read_visium_with_image",
    "resolve",
    "slide_thumbnail",
    "spot_features",
    "super_resolve",
    "tile",
    "write_h5ad",
]
