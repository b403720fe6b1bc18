"""Flow matching on tensors: prior, path, denoiser, sampler; knows no genes, no files, no AnnData."""

from histoflow.flow.denoiser import Denoiser, SpotContext
from histoflow.flow.dropout import draw_keys_from
from histoflow.flow.geometry import EdgeGeometry, edge_geometry
from histoflow.flow.path import LinearPath, PathSample
from histoflow.flow.precision import PRECISIONS, matrices
from histoflow.flow.prior import GaussianPrior, Prior, ZeroPrior, ZINBPrior, prior_from_name
from histoflow.flow.sampler import DenoiserFunction, EulerSampler

__all__ = [
    "PRECISIONS",
    "Denoiser",
    "DenoiserFunction",
    "EdgeGeometry",
    "EulerSampler",
    "GaussianPrior",
    "LinearPath",
    "PathSample",
    "Prior",
    "SpotContext",
    "ZINBPrior",
    "ZeroPrior",
    "draw_keys_from",
    "edge_geometry",
    "matrices",
    "prior_from_name",
]
