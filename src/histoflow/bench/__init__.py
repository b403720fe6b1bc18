"""Evaluation: estimators × folds × seeds, one long table of held-out figures."""

from histoflow.bench.controls import shuffle_counts
from histoflow.bench.runner import COLUMNS, default_models, model_path, plan_folds, read_prediction, run, summary

__all__ = [
    "COLUMNS",
    "default_models",
    "model_path",
    "plan_folds",
    "read_prediction",
    "run",
    "shuffle_counts",
    "summary",
]
