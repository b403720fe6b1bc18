"""Small computations whose results are kept in `values.json`: input from formulas, so that no random stream matters.

`python -m tests.golden.cases` writes the file anew. Do so only when a change of results is meant, and say why.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from histoflow.flow import Denoiser, EulerSampler, edge_geometry
from histoflow.models.inner import InnerFolds
from histoflow.models.member import Projection
from histoflow.models.ridge_folds import fit_grouped_ridge
from histoflow.pp.graph import neighbors
from histoflow.pp.scatter import encode
from histoflow.stats import metrics

VALUES = Path(__file__).with_name("values.json")


def waves(*shape: int, pace: float = 0.7) -> np.ndarray:
    """Numbers between -1 and 1, float64, told apart by their place."""
    place = np.arange(1, np.prod(shape) + 1, dtype=np.float64)
    return np.sin(pace * place + 0.01 * place**1.5).reshape(shape)


def denoised() -> np.ndarray:
    """The network with weights from a formula, on a bent lattice: one estimate, and where five Euler steps lead."""
    network = Denoiser(6, 3, hidden_dim=8, pairwise_dim=8, n_layers=2, n_heads=2).double().eval()
    for number, weight in enumerate(network.parameters()):
        weight.data = torch.from_numpy(0.3 * waves(*weight.shape, pace=0.7 + 0.1 * number))
    lattice = np.stack(np.meshgrid(np.arange(4.0), np.arange(4.0)), axis=-1).reshape(-1, 2)
    xy = lattice + 0.1 * waves(16, 2)
    graph = neighbors(xy, 4)
    index, mask = torch.from_numpy(graph.index), torch.from_numpy(graph.mask)
    geometry = edge_geometry(torch.from_numpy(xy), index, mask, dtype=torch.float64)
    with torch.inference_mode():
        context = network.context(torch.from_numpy(waves(16, 6)), geometry, index, mask)
        start = torch.from_numpy(waves(16, 3, pace=1.3))
        once = network(start, torch.tensor(0.3, dtype=torch.float64), context)
        carried = EulerSampler(5).sample(lambda x, t: network(x, t, context), start)
    return torch.stack([once, carried]).numpy()


def scattered() -> np.ndarray:
    """Every tenth feature of a patch of waves."""
    y, x = np.mgrid[:128, :128]
    channels = [150 + 60 * np.sin(0.2 * x + 0.05 * k * y) * np.cos(0.11 * y + k) for k in range(3)]
    patch = np.stack(channels, axis=-1).astype(np.uint8)
    return encode(torch.from_numpy(patch)[None])[0, ::10].double().numpy()


def ridge() -> np.ndarray:
    """Predictions of a ridge whose strength two inner folds choose."""
    x, y = waves(24, 5), waves(24, 2, pace=0.4) + waves(24, 5)[:, :2]
    rows = np.arange(24)
    folds = InnerFolds("halves", ((rows[:12], rows[12:]), (rows[12:], rows[:12])))
    head, _ = fit_grouped_ridge(x, y, folds)
    return np.asarray(head.predict(waves(4, 5, pace=0.9)))


def projected() -> np.ndarray:
    """Embeddings on their principal components."""
    return Projection.fit(waves(12, 7), 3)(waves(12, 7)).double().numpy()


def scored() -> np.ndarray:
    """Metrics of two genes."""
    measured, predicted = waves(20, 2), waves(20, 2, pace=0.75)
    covariate = waves(20, pace=0.33)
    return np.stack(
        [
            metrics.pearson(measured, predicted),
            metrics.spearman(measured, predicted),
            metrics.mse_skill(measured, predicted, baseline=np.zeros(2)),
            metrics.variance_ratio(measured, predicted),
            metrics.partial_pearson(measured, predicted, covariate=covariate),
        ]
    )


CASES: dict[str, tuple[Callable[[], np.ndarray], float]] = {
    "denoised": (denoised, 1e-9),
    "scattered": (scattered, 1e-4),
    "ridge": (ridge, 1e-6),
    "projected": (projected, 1e-4),
    "scored": (scored, 1e-9),
}
"""By name: the computation, and the relative error that another machine's rounding may make."""


if __name__ == "__main__":
    found = {name: compute().tolist() for name, (compute, _) in CASES.items()}
    VALUES.write_text(json.dumps(found, indent=1) + "\n")
