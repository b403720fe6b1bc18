"""The registry of encoders: what turns patches into embeddings, and under which name, version and licence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from histoflow._errors import OptionError, ShapeError
from histoflow.pp import scatter

EncodeFunction = Callable[[torch.Tensor], torch.Tensor]
"""Maps RGB patches, uint8 (n_patches, height, width, 3), to embeddings (n_patches, n_features)."""


@dataclass(frozen=True)
class Encoder:
    """One way to describe a patch by numbers.

    Parameters
    ----------
    name
        What it is called everywhere; also the ``obsm`` slot of its embeddings.
    version
        Changes whenever the numbers change.
    n_features
        Length of an embedding of one patch.
    patch_px
        Side of the patches it takes, in pixels.
    encode
        The function itself; a row of its result may depend on that row's patch alone.
    licence
        Licence of code and weights.
    weights_hash
        SHA-256 of the weights, or ``"none"`` where there are none.
    gated
        Whether the weights must be asked for.
    """

    name: str
    version: str
    n_features: int
    patch_px: int
    encode: EncodeFunction
    licence: str
    weights_hash: str = "none"
    gated: bool = False

    def facts(self) -> dict[str, Any]:
        """Everything that is recorded with an embedding, a model and a prediction."""
        names = ("name", "version", "n_features", "patch_px", "licence", "weights_hash")
        return {name: getattr(self, name) for name in names}

    def __call__(self, patches: NDArray[np.uint8], device: str = "cpu") -> NDArray[np.float32]:
        """Encode patches, uint8 (n_patches, patch_px, patch_px, 3), to float32 (n_patches, n_features).

        Raises
        ------
        ShapeError
            If the encoder returns another shape than it promised.
        """
        with torch.inference_mode():
            encoded = self.encode(torch.from_numpy(patches).to(device))
        if encoded.shape != (len(patches), self.n_features):
            raise ShapeError(
                f"encoder {self.name} returned shape {tuple(encoded.shape)} for {len(patches)} patches; "
                f"it promised ({len(patches)}, {self.n_features})"
            )
        return encoded.float().cpu().numpy()


def get_encoder(name: str) -> Encoder:
    """Return the encoder called `name`.

    Raises
    ------
    OptionError
        If there is none of that name.
    """
    for encoder in available_encoders():
        if encoder.name == name:
            return encoder
    offered = ", ".join(encoder.name for encoder in available_encoders())
    raise OptionError(f"encoder is {name!r}; choose one of {offered}")


def available_encoders(pattern: str = "*") -> list[Encoder]:
    """Encoders whose name fits a shell pattern such as ``"*uni*"``, best-known default first."""
    return [encoder for encoder in (_scatter(), _color()) if fnmatch(encoder.name, pattern)]


def _scatter() -> Encoder:
    return Encoder(
        name="scatter",
        version=scatter.VERSION,
        n_features=scatter.N_FEATURES,
        patch_px=scatter.PATCH_PX,
        encode=scatter.encode,
        licence="BSD-3-Clause",
    )


def _color() -> Encoder:
    return Encoder(
        name="color",
        version=scatter.VERSION,
        n_features=3 * len(scatter.QUANTILES),
        patch_px=scatter.PATCH_PX,
        encode=scatter.stain_quantiles,
        licence="BSD-3-Clause",
    )
