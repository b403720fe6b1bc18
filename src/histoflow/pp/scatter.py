"""The offline default encoder: wavelet scattering of the stain channels. No training, no download, deterministic.

A patch becomes quantiles of three stain channels, and, for haematoxylin and eosin, the mean strength of oriented
texture at five scales (first order) and of the arrangement of that texture at every coarser scale (second order).
It knows nothing of slides, spots or genes.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from histoflow._errors import ShapeError

VERSION = "1"
PATCH_PX = 128
N_SCALES = 5
N_ORIENTATIONS = 4
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_PAD = 16  # reflected margin that keeps the filters from wrapping around; 128 + 2 * 16 = 160 is a fast FFT size
_FLOOR = 1e-3

# Ruifrok & Johnston 2001: optical density of haematoxylin, eosin and DAB (rows) in red, green, blue (columns).
_STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))


def encode(patches: Tensor) -> Tensor:
    """Describe patches by stain quantiles and scattering coefficients.

    Parameters
    ----------
    patches
        RGB images, uint8, shape (n_patches, 128, 128, 3), axes (patch, height, width, channel).

    Returns
    -------
    float32, shape (n_patches, n_features) with n_features = 15 quantiles (optical density) + 2 stains ×
    (2 moments + 20 first-order + 160 second-order log strengths) = 379, on the device of `patches`.

    Raises
    ------
    ShapeError
        If `patches` has another shape or is not uint8.

    References
    ----------
    Bruna & Mallat, Invariant scattering convolution networks, IEEE TPAMI 2013. Filters: Morlet wavelets with centre
    frequency 3π/4 · 2⁻ʲ, width 0.8 · 2ʲ px, slant 4/L (the convention of Kymatio); stains: Ruifrok & Johnston 2001.
    """
    if patches.ndim != 4 or patches.shape[1:] != (PATCH_PX, PATCH_PX, 3) or patches.dtype != torch.uint8:
        wanted = f"uint8 of shape (n_patches, {PATCH_PX}, {PATCH_PX}, 3)"
        raise ShapeError(f"patches are {patches.dtype} of shape {tuple(patches.shape)}; wanted {wanted}")
    stains = _unmix(patches)
    parts = [_quantiles(stains)]
    for channel in (0, 1):
        parts.append(_scatter(stains[:, channel]))
    return torch.cat(parts, dim=1)


def _unmix(patches: Tensor) -> Tensor:
    """Optical density of each stain, shape (n_patches, 3, height, width)."""
    density = -torch.log((patches.float() + 1) / 256)
    stains = torch.tensor(_STAINS, device=patches.device)
    unmix = torch.linalg.inv(stains / stains.norm(dim=1, keepdim=True))
    unmixed: Tensor = density @ unmix
    return unmixed.movedim(3, 1).contiguous()


def _quantiles(stains: Tensor) -> Tensor:
    points = torch.tensor(QUANTILES, device=stains.device)
    values = torch.quantile(stains.flatten(2), points, dim=2)  # (quantile, patch, stain)
    return values.movedim(0, 2).flatten(1)


def _scatter(channel: Tensor) -> Tensor:
    """Moments, first and second order of one stain, shape (n_patches, 182)."""
    filters = _filter_bank(str(channel.device))
    spectrum = torch.fft.fft2(pad(channel[:, None], (_PAD,) * 4, mode="reflect")[:, 0])
    first, second = [], []
    for j1 in range(N_SCALES):
        modulus = _wavelet_modulus(spectrum[:, None], filters[0][j1], 0, j1)
        first.append(_mean(modulus, j1))
        if j1 < N_SCALES - 1:
            second.append(_second_order(modulus, j1, filters))
    strengths = torch.cat([*first, *second], dim=1)
    return torch.cat([channel.mean((1, 2))[:, None], channel.std((1, 2))[:, None], _log(strengths)], dim=1)


def _second_order(modulus: Tensor, j1: int, filters: list[list[Tensor]]) -> Tensor:
    """Scatter the order-one maps (n_patches, orientation, h, w) of scale `j1` at every coarser scale."""
    spectrum = torch.fft.fft2(modulus)
    resolution = _resolution(j1)
    found = []
    for j2 in range(j1 + 1, N_SCALES):
        again = _wavelet_modulus(spectrum[:, :, None], filters[resolution][j2], resolution, j2)
        found.append(_mean(again.flatten(1, 2), j2))
    return torch.cat(found, dim=1)


def _wavelet_modulus(spectrum: Tensor, bank: Tensor, resolution: int, scale: int) -> Tensor:
    """Modulus of the wavelet transform at every orientation, sampled at the resolution that the scale needs."""
    product = _crop(spectrum * bank, 2 ** (_resolution(scale) - resolution))
    modulus: Tensor = torch.fft.ifft2(product).abs()
    return modulus


def _resolution(scale: int) -> int:
    """Octaves below full resolution at which a map of this scale is kept."""
    return max(scale - 1, 0) if scale < 2 else scale - 1


def _crop(spectrum: Tensor, factor: int) -> Tensor:
    """Keep the low frequencies, so that the inverse transform is the map sampled every `factor` pixels."""
    if factor == 1:
        return spectrum
    size = spectrum.shape[-1] // factor
    low = torch.cat([spectrum[..., : size // 2, :], spectrum[..., -(size // 2) :, :]], dim=-2)
    low = torch.cat([low[..., : size // 2], low[..., -(size // 2) :]], dim=-1)
    return low / factor**2


def _mean(maps: Tensor, scale: int) -> Tensor:
    """Mean over the patch without its margin, shape (n_patches, n_maps)."""
    margin = _PAD // 2 ** _resolution(scale)
    return maps[..., margin:-margin, margin:-margin].mean((-2, -1))


def _log(strengths: Tensor) -> Tensor:
    return torch.log(strengths + _FLOOR)


@lru_cache(maxsize=4)
def _filter_bank(device: str) -> list[list[Tensor]]:
    """Spectra of all wavelets, by resolution and scale; each of shape (orientation, size, size)."""
    size = PATCH_PX + 2 * _PAD
    banks = []
    for resolution in range(_resolution(N_SCALES - 1) + 1):
        side = size // 2**resolution
        banks.append([_morlet(side, scale - resolution).to(device) for scale in range(N_SCALES)])
    return banks


def _morlet(size: int, scale: float) -> Tensor:
    """Spectra of Morlet wavelets of one scale at every orientation, shape (orientation, size, size), real."""
    sigma, centre = 0.8 * 2**scale, 3 * math.pi / 4 * 2**-scale
    slant = 4 / N_ORIENTATIONS
    angles = [math.pi * k / N_ORIENTATIONS for k in range(N_ORIENTATIONS)]
    bank = []
    for angle in angles:
        oscillating = _gaussian(size, sigma, slant, angle, centre)
        smooth = _gaussian(size, sigma, slant, angle, 0.0)
        bank.append(oscillating - oscillating[0, 0] / smooth[0, 0] * smooth)  # zero mean
    return torch.stack(bank).float()


def _gaussian(size: int, sigma: float, slant: float, angle: float, centre: float) -> Tensor:
    """Spectrum of an oriented Gaussian moved to frequency `centre`, wrapped around, in float64."""
    base = 2 * math.pi * torch.fft.fftfreq(size, dtype=torch.float64)
    total = torch.zeros(size, size, dtype=torch.float64)
    for row in (-1, 0, 1):
        for column in (-1, 0, 1):
            y, x = torch.meshgrid(base + 2 * math.pi * row, base + 2 * math.pi * column, indexing="ij")
            along = x * math.cos(angle) + y * math.sin(angle) - centre
            across = -x * math.sin(angle) + y * math.cos(angle)
            total += torch.exp(-0.5 * sigma**2 * (along**2 + (across / slant) ** 2))
    return total
