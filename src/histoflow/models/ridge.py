"""RidgeProbe: the linear probe on embeddings ("hest_fm"), its protocol stated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, final, get_args

import numpy as np

from histoflow._errors import OptionError
from histoflow.models.arrays import Arrays
from histoflow.models.base import Estimator
from histoflow.models.hest_recipe import HestHead, fit_hest_ridge
from histoflow.models.inner import inner_folds
from histoflow.models.linear import LinearHead
from histoflow.models.parts import Reach
from histoflow.models.ridge_folds import ALPHAS, fit_grouped_ridge
from histoflow.models.smoothing import Smoother
from histoflow.models.spots import Floats, Measured, Spots

Protocol = Literal["grouped-cv", "hest"]

_SMOOTH_WEIGHT = "smooth_weight"


@final
class RidgeProbe(Estimator):
    """Ridge regression of log1p expression on embeddings, of a panel or of a whole transcriptome at once.

    ``"grouped-cv"`` is the protocol to use: standardised features, an intercept, and the strength with the best R² on
    inner folds of the training data, whole sections where there are three or more (see `inner_folds`).

    ``"hest"`` is for comparison with published figures alone: the HEST-Benchmark's recipe number for number, which
    standardises, projects onto 256 principal components, and fits ridge of a fixed strength by ``lsqr`` (see
    `models.hest_recipe`). It is odd in that its predictions have no mean, so that MSE and R² of them mean nothing and
    only correlations do; that its strength is chosen by no data; that it takes log1p of raw counts, although its
    docstring says library-normalised, so give ``normalize="none"``; that the benchmark chose its genes over all
    slides, those of the test included; and that its correlation pools the test slides, so that differences between
    slides count as predicted. `training_` says so too, under `oddities`, and under `differs` what is not the recipe's.

    Parameters
    ----------
    protocol
        ``"grouped-cv"`` or ``"hest"``.
    encoder, normalize, seed
        As in `Estimator`; nothing here is random.
    alphas
        Strengths that grouped-cv tries, for standardised features; None for 25 from 1 to 10⁶.
    per_gene_alpha
        Whether grouped-cv chooses the strength of every gene for itself, rather than one for all of them.
    smooth_um
        Radius in µm within which predictions of grouped-cv are averaged over the neighbours on the same piece of
        tissue, with a weight, 0 included, that the inner folds choose; None for no smoothing. A spot without
        neighbours keeps its own prediction.

    Raises
    ------
    OptionError
        If the protocol or the normalisation is not offered, a strength or the radius is not above 0, or one of the
        last three options is given to the protocol hest, which has no such choice.
    """

    name: ClassVar[str] = "hest_fm"

    def __init__(
        self,
        protocol: Protocol = "grouped-cv",
        *,
        encoder: str = "scatter",
        normalize: str = "library",
        seed: int = 0,
        alphas: Sequence[float] | None = None,
        per_gene_alpha: bool = False,
        smooth_um: float | None = None,
    ) -> None:
        super().__init__(encoder=encoder, normalize=normalize, seed=seed)
        self.protocol = _offered(protocol)
        self.alphas = None if alphas is None else [float(alpha) for alpha in alphas]
        self.per_gene_alpha = bool(per_gene_alpha)
        self.smooth_um = None if smooth_um is None else float(smooth_um)
        self._check()
        self._head: LinearHead | HestHead | None = None
        self._smooth_weight = 0.0

    def _check(self) -> None:
        given = self.alphas is not None or self.per_gene_alpha or self.smooth_um is not None
        if given and self.protocol == "hest":
            raise OptionError(
                "protocol hest has a fixed strength and no smoothing; leave out alphas, per_gene_alpha and smooth_um, "
                "or use protocol grouped-cv"
            )
        if self.alphas is not None and not (self.alphas and all(0 < alpha < np.inf for alpha in self.alphas)):
            raise OptionError(f"alphas is {self.alphas}; give one strength or more, each above 0")
        if self.smooth_um is not None and not 0 < self.smooth_um < np.inf:
            raise OptionError(f"smooth_um is {self.smooth_um}; give a radius in µm above 0, or None")

    def _fit(self, measured: list[Measured]) -> dict[str, Any]:
        x, y = stacked(measured)
        if self.protocol == "hest":
            self._head, report = fit_hest_ridge(x, y)
            if self.normalize != "none":
                report["differs"].append("the scale is not log1p of raw counts: give normalize='none' for the recipe's")
            return report
        spots = [part.spots for part in measured]
        self._head, report = fit_grouped_ridge(
            x,
            y,
            inner_folds(spots),
            alphas=ALPHAS if self.alphas is None else self.alphas,
            per_target=self.per_gene_alpha,
            smoother=None if self.smooth_um is None else Smoother.of(spots, self.smooth_um),
        )
        self._smooth_weight = float(report.get(_SMOOTH_WEIGHT, 0.0))
        return report

    def _reach(self) -> Reach | None:
        return None if self.smooth_um is not None else Reach(0, 0)

    def _draw(self, spots: Spots, n_samples: int) -> Floats:
        draws = drawn(self._head, spots, floor=None if self.protocol == "hest" else 0.0)
        if self.smooth_um is None or self._smooth_weight == 0:
            return draws
        return Smoother.of([spots], self.smooth_um).blend(draws[0], self._smooth_weight)[None]

    def _state(self) -> Arrays:
        arrays = {} if self._head is None else self._head.arrays()
        return arrays | {_SMOOTH_WEIGHT: np.array([self._smooth_weight])}

    def _restore(self, arrays: Arrays) -> None:
        self._head = HestHead.of(arrays) if self.protocol == "hest" else LinearHead.of(arrays)
        self._smooth_weight = float(arrays[_SMOOTH_WEIGHT][0])


def _offered(protocol: str) -> Protocol:
    for offered in get_args(Protocol):
        if protocol == offered:
            return offered  # type: ignore[no-any-return]
    raise OptionError(f"protocol is {protocol!r}; choose one of {', '.join(get_args(Protocol))}")


def stacked(measured: list[Measured]) -> tuple[Floats, Floats]:
    """Embeddings (n_spots, n_features) and log1p expression (n_spots, n_genes) of all sections, one below the other."""
    return np.concatenate([part.spots.embedding for part in measured]), np.concatenate(
        [part.log1p for part in measured]
    )


def drawn(head: LinearHead | HestHead | None, spots: Spots, *, floor: float | None) -> Floats:
    """The one draw of a linear head, (1, n_spots, n_genes), log1p; expression is not below `floor`."""
    if head is None:
        raise OptionError("this head holds nothing yet; fit the estimator first")
    predicted = head.predict(spots.embedding)
    if floor is not None:
        np.maximum(predicted, floor, out=predicted)
    return predicted[None].astype(np.float32, copy=False)
