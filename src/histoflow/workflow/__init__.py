"""The verbs that people know, from paths to results. Thin: the work is below."""

from histoflow._files import write_h5ad
from histoflow.workflow.again import rerun
from histoflow.workflow.baselines import with_baselines
from histoflow.workflow.cohort_run import run_cohort
from histoflow.workflow.cohorts import (
    chosen_encoder,
    embed,
    embed_for,
    embed_row_for,
    embed_spots_for,
    embed_tiles_for,
    embedder,
    fit,
    predict_section,
    predict_slide,
)
from histoflow.workflow.demo import demo
from histoflow.workflow.doctor import Check, check_machine
from histoflow.workflow.evaluation import draw_evaluation, evaluate, models_for, patients_of, slide_thumbnail
from histoflow.workflow.hest import hest_bench
from histoflow.workflow.preflight import check_cohort
from histoflow.workflow.progress import ProgressFolder, fit_to_folder
from histoflow.workflow.reports import report
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
from histoflow.workflow.zeroshot import predict_to_file, zero_shot

__all__ = [
    "Check",
    "Pairs",
    "ProgressFolder",
    "available_backbones",
    "check_cohort",
    "check_machine",
    "chosen_encoder",
    "demo",
    "draw_evaluation",
    "embed",
    "embed_for",
    "embed_row_for",
    "embed_spots_for",
    "embed_tiles_for",
    "embedder",
    "evaluate",
    "fit",
    "fit_to_folder",
    "hest_bench",
    "match",
    "models_for",
    "patients_of",
    "predict_expression",
    "predict_section",
    "predict_slide",
    "predict_to_file",
    "read_visium_with_image",
    "report",
    "rerun",
    "resolve",
    "run_cohort",
    "slide_thumbnail",
    "spot_features",
    "super_resolve",
    "tile",
    "with_baselines",
    "write_h5ad",
    "zero_shot",
]
