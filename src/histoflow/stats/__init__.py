"""Metrics and splits: plain functions of arrays and facts that know neither models nor files."""

from histoflow.stats.audit import Contents, Finding, audit_contents, audit_ids
from histoflow.stats.bootstrap import bootstrap_mean
from histoflow.stats.ceiling import NoiseCeiling, noise_ceiling
from histoflow.stats.intervals import central_levels, coverage, crps, interval_width, predictive_quantiles
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
from histoflow.stats.structure import ssim, svg_overlap

__all__ = [
    "Contents",
    "Finding",
    "Fold",
    "GeneMean",
    "Level",
    "NoiseCeiling",
    "SectionFacts",
    "audit_contents",
    "audit_ids",
    "bootstrap_mean",
    "central_levels",
    "coverage",
    "crps",
    "describe_shares",
    "interval_width",
    "leave_one_out",
    "mean_with_nan_as_zero",
    "moran",
    "mse_skill",
    "noise_ceiling",
    "partial_pearson",
    "pearson",
    "predictive_quantiles",
    "spatial_blocks",
    "spearman",
    "ssim",
    "svg_overlap",
    "variance_ratio",
]
