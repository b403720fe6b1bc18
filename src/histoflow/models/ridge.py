"""RidgeProbe: the linear probe on embeddings ("hest_fm"), its protocol stated."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, final, get_args

import numpy as np

from histoflow._errors import OptionError
from histoflow.models.base import Arrays, Estimator
from histoflow.models.inner import inner_folds
from histoflow.models.linear import LinearHead, fit_grouped_ridge, fit_hest_ridge
from histoflow.models.spots import Floats, Measured, Spots

Protocol = Literal["grouped-cv", "hest"]


@final
class RidgeProbe(Estimator):
    """Ridge regression of log1p expression on embeddings.

    Parameters
    ----------
    protocol
        ``"grouped-cv"``: standardised features, intercept, strength chosen on inner folds of the training data.
        ``"hest"``: the HEST-Benchmark's own recipe (see `fit_hest_ridge`), whose predictions have no mean.
    encoder, normalize, seed
        As in `Estimator`; nothing here is random.

    Raises
    ------
    OptionError
        If the protocol or the normalisation is not offered.
    """

    name: ClassVar[str] = "hest_fm"

    def __init__(
        self,
        protocol: Protocol = "grouped-cv",
        *,
        encoder: str = "scatter",
        normalize: str = "library",
        seed: int = 0,
    ) -> None:
        super().__init__(encoder=encoder, normalize=normalize, seed=seed)
        if protocol not in get_args(Protocol):
            raise OptionError(f"protocol is {protocol!r}; choose one of {', '.join(get_args(Protocol))}")
        self.protocol = protocol
        self._head: LinearHead | None = None

    def _fit(self, measured: list[Measured]) -> dict[str, Any]:
        x, y = stacked(measured)
        if self.protocol == "hest":
            self._head, report = fit_hest_ridge(x, y)
        else:
            self._head, report = fit_grouped_ridge(x, y, inner_folds([part.spots for part in measured]))
        return report

    def _draw(self, spots: Spots, n_samples: int) -> Floats:
        return drawn(self._head, spots, floor=None if self.protocol == "hest" else 0.0)

    def _state(self) -> Arrays:
        return {} if self._head is None else self._head.arrays()

    def _restore(self, arrays: Arrays) -> None:
        self._head = LinearHead.of(arrays)


def stacked(measured: list[Measured]) -> tuple[Floats, Floats]:
    """Embeddings (n_spots, n_features) and log1p expression (n_spots, n_genes) of all sections, one below the other."""
    return np.concatenate([part.spots.embedding for part in measured]), np.concatenate(
        [part.log1p for part in measured]
    )


def drawn(head: LinearHead | None, spots: Spots, *, floor: float | None) -> Floats:
    """The one draw of a linear head, (1, n_spots, n_genes), log1p; expression is not below `floor`."""
    if head is None:
        raise OptionError("this head holds nothing yet; fit the estimator first")
    predicted = head.predict(spots.embedding)
    return (predicted if floor is None else np.maximum(predicted, floor))[None].astype(np.float32)
