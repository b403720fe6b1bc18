"""Evaluation: estimators × folds × seeds, one long table of held-out figures."""

from histoflow.bench.audit import audit
from histoflow.bench.ceiling import CEILING_MODEL, noise_ceiling
from histoflow.bench.controls import shuffle_counts
from histoflow.bench.folds import Areas, plan_folds
from histoflow.bench.hest import HEST_COLUMNS, hest_leaderboard, hest_models, run_hest_task
from histoflow.bench.parts import Job, model_path, read_prediction
from histoflow.bench.protocol import check_cohort, models_of, options_of, read_protocol
from histoflow.bench.report import Picture, check_library, evaluation_page, prediction_page
from histoflow.bench.runner import COLUMNS, default_models, is_finished, plan_jobs, rerun, run, run_job, summary
from histoflow.bench.uncertainty import BASELINES, by_section, uncertainty
from histoflow.bench.words import as_json, in_words, undefined_genes
from histoflow.models.hest_recipe import ODDITIES as HEST_ODDITIES

__all__ = [
    "BASELINES",
    "CEILING_MODEL",
    "COLUMNS",
    "HEST_COLUMNS",
    "HEST_ODDITIES",
    "Areas",
    "Job",
    "Picture",
    "as_json",
    "audit",
    "by_section",
    "check_cohort",
    "check_library",
    "default_models",
    "evaluation_page",
    "hest_leaderboard",
    "hest_models",
    "in_words",
    "is_finished",
    "model_path",
    "models_of",
    "noise_ceiling",
    "options_of",
    "plan_folds",
    "plan_jobs",
    "prediction_page",
    "read_prediction",
    "read_protocol",
    "rerun",
    "run",
    "run_hest_task",
    "run_job",
    "shuffle_counts",
    "summary",
    "uncertainty",
    "undefined_genes",
]
