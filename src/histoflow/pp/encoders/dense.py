"""What an encoder says of every 8 µm of a window, not only of the whole: the tokens of a network, or our own cells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from histoflow.pp import scatter_cells

SUPERPIXEL_UM = 8.0
"""Side of a super-pixel: the square that one token describes."""

_WIDTHS = (1, 7, 63)
_MARGIN_PART = 7


class TokenWindow(NamedTuple):
    """The images that tokens are made of: `side` tokens of `token_px` pixels, of which the outer `margin` are dropped.

    A token is 8 µm wide whatever its pixels; those near the border see too little around them.
    """

    token_px: int
    side: int
    margin: int


@dataclass(frozen=True)
class Dense:
    """One way to describe every super-pixel of a window by numbers.

    Parameters
    ----------
    tokens
        From windows, uint8 (n_windows, side * token_px, side * token_px, 3), to (n_windows, side, side, n_channels);
        what it says of a window may depend on that window alone.
    window
        Size of the windows and of their tokens.
    n_channels
        Numbers per token; means of them over many tokens must make sense.
    n_features
        Numbers per super-pixel that `describe` makes.
    version
        Changes whenever the numbers change.
    widths
        Sides, in super-pixels and odd, of the squares around each one over which tokens are averaged.
    describe
        From means (..., n_widths, n_channels) to features (..., n_features); None to take them as they are.
    """

    tokens: Callable[[Tensor], Tensor]
    window: TokenWindow
    n_channels: int
    n_features: int
    version: str = "1"
    widths: tuple[int, ...] = _WIDTHS
    describe: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = None

    def facts(self) -> dict[str, Any]:
        """What is recorded with every embedding, model and prediction."""
        return {
            "dense_version": self.version,
            "n_features": self.n_features,
            "superpixel_um": SUPERPIXEL_UM,
            "around_um": [SUPERPIXEL_UM * width for width in self.widths],
        }


def scatter_dense() -> Dense:
    """The super-pixels of the encoder `scatter`."""
    cells = scatter_cells
    return Dense(
        cells.encode_cells,
        TokenWindow(cells.CELL_PX, cells.WINDOW_CELLS, cells.MARGIN_CELLS),
        n_channels=cells.N_CHANNELS,
        n_features=cells.N_FEATURES,
        version=cells.VERSION,
        widths=cells.WIDTHS,
        describe=cells.describe_cells,
    )


class _Tokens:
    """The last feature map of a timm network, without the tokens that stand for the whole image."""

    def __init__(self, module: nn.Module, prepare: Callable[[Tensor], Any]) -> None:
        self.module, self.prepare = module, prepare
        self._device = torch.device("cpu")

    def __call__(self, windows: Tensor) -> Tensor:
        if windows.device != self._device:
            self.module.to(windows.device)
            self._device = windows.device
        maps: Tensor = self.module.forward_features(self.prepare(windows))  # type: ignore[operator]
        if maps.ndim == 3:
            tokens = maps[:, int(getattr(self.module, "num_prefix_tokens", 0)) :]
            side = round(tokens.shape[1] ** 0.5)
            return tokens.reshape(len(tokens), side, side, -1)
        channels_last = maps.shape[-1] == getattr(self.module, "num_features", None)
        return maps if channels_last else maps.movedim(1, -1)


def network_dense(module: nn.Module, prepare: Callable[[Tensor], Any] | None, patch_px: int) -> Dense | None:
    """The tokens of a network that tells them as timm's do; None for one that does not.

    Parameters
    ----------
    module
        The network; ``forward_features`` returns tokens (n, n_tokens, n_channels), or a map of them.
    prepare
        From uint8 patches to its images.
    patch_px
        Side of the images it takes, in pixels.
    """
    if prepare is None or not (type(module).__module__.startswith("timm.") and hasattr(module, "forward_features")):
        return None
    tokens = _Tokens(module, prepare)
    with torch.inference_mode():
        shape = tokens(torch.zeros(1, patch_px, patch_px, 3, dtype=torch.uint8)).shape
    if len(shape) != 4 or shape[1] != shape[2] or patch_px % shape[1]:
        return None
    side, n_channels = int(shape[1]), int(shape[3])
    margin = side // _MARGIN_PART if side >= _MARGIN_PART else 0
    return Dense(tokens, TokenWindow(patch_px // side, side, margin), n_channels, len(_WIDTHS) * n_channels)
