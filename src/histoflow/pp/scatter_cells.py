"""The encoder `scatter` cell by cell: stains and texture of every square of 8 µm, and of what lies around it.

The wavelets of `scatter` run once over a window; what they find is averaged over squares of 8 × 8 pixels of 1 µm.
It knows nothing of slides, spots or genes.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from histoflow.pp.scatter import N_ORIENTATIONS, N_SCALES, modulus, unmix

VERSION = "1"
CELL_PX = 8
WINDOW_CELLS = 80
MARGIN_CELLS = 8
"""Left out on every side: the widest wavelet reaches 40 pixels, and a window wraps around."""
WIDTHS = (3, 7, 15, 63, 125)
"""Sides in cells of the squares that are averaged: 24, 56, 120, 504 and 1000 µm."""

_N_FINE_WIDTHS = 2
"""The narrowest squares are described by stains and first order alone: textures of textures are wider than they."""
_N_STAINS, _N_TURNS = 2, 3
_N_FIRST = N_SCALES * _N_STAINS
_N_PAIRS = N_SCALES * (N_SCALES - 1) // 2
N_CHANNELS = 3 + _N_FIRST * N_ORIENTATIONS + _N_PAIRS * _N_STAINS * _N_TURNS
_N_SIMPLE = 3 + 2 * _N_FIRST
N_FEATURES = len(WIDTHS) * _N_SIMPLE + (len(WIDTHS) - _N_FINE_WIDTHS) * _N_PAIRS * _N_STAINS * _N_TURNS
_FLOOR = 1e-3


def encode_cells(windows: Tensor) -> Tensor:
    """Describe every cell of some windows by amounts that may be averaged over cells.

    Parameters
    ----------
    windows
        RGB images of 1 µm a pixel, uint8, shape (n_windows, 640, 640, 3), axes (window, height, width, channel).

    Returns
    -------
    float32, shape (n_windows, 80, 80, 103): three stains (optical density); strength of first-order texture, (scale,
    stain, orientation); and of second-order texture, (pair of scales, stain, angle between the two orientations: 0,
    45 or 90 degrees). The outer 8 cells on every side hold what wraps around.
    """
    return torch.stack([_encode_window(window) for window in windows])


def _encode_window(window: Tensor) -> Tensor:
    stains = unmix(window)
    n_cells = window.shape[0] // CELL_PX
    first, second = [avg_pool2d(stains[None], CELL_PX)[0]], []
    spectrum = torch.fft.fft2(stains[:_N_STAINS, None])
    for scale in range(N_SCALES):
        maps = modulus(spectrum, scale)
        first.append(_on_cells(maps, n_cells))
        if scale < N_SCALES - 1:
            again = torch.fft.fft2(maps)
            pairs = (modulus(again, octaves) for octaves in range(1, N_SCALES - scale))
            second += [_on_cells(_turned(pair), n_cells) for pair in pairs]
    return torch.cat([*first, *second]).permute(1, 2, 0)


def _turned(maps: Tensor) -> Tensor:
    """From pairs of orientations (stain, 16, side, side) to angles between them (stain, 3, side, side).

    The mean over turns of both together, and over mirror images: tissue has no preferred direction.
    """
    pairs = maps.reshape(len(maps), N_ORIENTATIONS, N_ORIENTATIONS, *maps.shape[2:])
    turns = [
        torch.stack([pairs[:, k, (k + angle) % N_ORIENTATIONS] for k in range(N_ORIENTATIONS)]).mean(dim=0)
        for angle in range(N_ORIENTATIONS)
    ]
    return torch.stack([turns[0], (turns[1] + turns[3]) / 2, turns[2]], dim=1)


def _on_cells(maps: Tensor, n_cells: int) -> Tensor:
    """Maps (stain, n, side, side) as cells (stain * n, n_cells, n_cells): their mean, or interpolated."""
    flat = maps.flatten(0, 1)[None]
    side = maps.shape[-1]
    if side >= n_cells:
        return avg_pool2d(flat, side // n_cells)[0]
    return interpolate(flat, size=(n_cells, n_cells), mode="bilinear", align_corners=False)[0]


def describe_cells(means: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turn averaged amounts into features that do not change when the tissue is turned or mirrored.

    Parameters
    ----------
    means
        Means of what `encode_cells` returns over squares of `WIDTHS` cells, shape (..., 5, 103), narrowest first.

    Returns
    -------
    float32, shape (..., 295). For every width: three stains; per scale and stain the log of the strength and how much
    one direction prevails (0 none, 1 all); for the three widest also the logs of the second order.
    """
    lead = means.shape[:-2]
    first = means[..., 3 : 3 + _N_FIRST * N_ORIENTATIONS].reshape(*lead, len(WIDTHS), _N_FIRST, N_ORIENTATIONS)
    strength = np.log(first.mean(axis=-1) + _FLOOR)
    # The second harmonic of strength over orientation.
    prevails = np.hypot(first[..., 0] - first[..., 2], first[..., 1] - first[..., 3]) / (first.sum(axis=-1) + _FLOOR)
    second = np.log(means[..., _N_FIRST * N_ORIENTATIONS + 3 :][..., _N_FINE_WIDTHS:, :] + _FLOOR)
    parts = [means[..., :3], strength, prevails, second]
    described: NDArray[np.float32] = np.concatenate([part.reshape(*lead, -1) for part in parts], axis=-1)
    return described.astype(np.float32, copy=False)
