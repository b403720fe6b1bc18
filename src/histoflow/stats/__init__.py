"""Metrics and splits: plain functions of arrays and facts that know neither models nor files."""

from histoflow.stats.metrics import (
    GeneMean,
    mean_with_nan_as_zero,
    moran,
    mse_skill,
    partial_pearson,
    pearson,
    spearman,
    variance_ratio,
)
from histoflow.stats.splits import Fold, Level, SectionFacts, describe_shares, leave_one_out, spatial_blocks

__all__ = [
    "Fold",
    "GeneMean",
    "Level",
    "SectionFacts",
    "describe_shares",
    "leave_one_out",
    "mean_with_nan_as_zero",
    "moran",
    "mse_skill",
    "partial_pearson",
    "pearson",
    "spatial_blocks",
    "spearman",
    "variance_ratio",
]
