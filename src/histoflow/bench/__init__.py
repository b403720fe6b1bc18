"""Evaluation: estimators × folds × seeds, one long table of held-out figures."""

from histoflow.bench.controls import shuffle_counts
from histoflow.bench.hest import HEST_COLUMNS, hest_leaderboard, hest_models, run_hest_task
from histoflow.bench.parts import model_path, read_prediction
from histoflow.bench.report import Picture, check_library, evaluation_page, prediction_page
from histoflow.bench.runner import COLUMNS, default_models, plan_folds, run, summary
from histoflow.models.hest_recipe import ODDITIES as HEST_ODDITIES

__all__ = [
    "COLUMNS",
    "HEST_COLUMNS",
    "HEST_ODDITIES",
    "Picture",
    "check_library",
    "default_models",
    "evaluation_page",
    "hest_leaderboard",
    "hest_models",
    "model_path",
    "plan_folds",
    "prediction_page",
    "read_prediction",
    "run",
    "run_hest_task",
    "shuffle_counts",
    "summary",
]
