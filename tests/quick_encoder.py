"""The default encoder made quick, under its own name, for tests of what is not its numbers."""

from dataclasses import replace

import torch

from histoflow.pp import Encoder
from histoflow.pp.encoders.dense import scatter_dense


def quick_scatter() -> Encoder:
    """Mean colours of the quarters of a patch, under the name of the default encoder; super-pixels are its own."""

    def quarters(images: torch.Tensor) -> torch.Tensor:
        return images.unflatten(3, (2, -1)).unflatten(2, (2, -1)).mean((3, 5)).flatten(1)

    dense = replace(scatter_dense(), tokens=quick_cells)
    return replace(Encoder.from_callable(quarters, name="scatter", patch_px=32), dense=dense)


def quick_cells(windows: torch.Tensor) -> torch.Tensor:
    """Mean colours of super-pixels, in as many channels as the default encoder has."""
    size = scatter_dense().window.token_px
    means = windows.float().unflatten(2, (-1, size)).unflatten(1, (-1, size)).mean((2, 4))
    return means.repeat(1, 1, 1, -(-scatter_dense().n_channels // 3))[..., : scatter_dense().n_channels]
