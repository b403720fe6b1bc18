"""The verbs that people know, from paths to results. Thin: the work is below."""

from histoflow.workflow.cohorts import (
    demo,
    draw_evaluation,
    embed,
    embed_for,
    embed_spots_for,
    embed_tiles_for,
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
from histoflow.workflow.zeroshot import predict_to_file, zero_shot

__all__ = [
    "Pairs",
    "available_backbones",
    "demo",
    "draw_evaluation",
    "embed",
    "embed_for",
    "embed_spots_for",
    "embed_tiles_for",
    "embedder",
    "evaluate",
    "fit",
    "match",
    "predict_expression",
    "predict_section",
    "predict_slide",
    "predict_to_file",
    "read_visium_with_image",
    "slide_thumbnail",
    "spot_features",
    "tile",
    "write_h5ad",
    "zero_shot",
]
