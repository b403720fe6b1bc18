"""The offline default encoder: wavelet scattering of the stain channels. No training, no download, deterministic.

A patch becomes quantiles of three stain channels, and, for haematoxylin and eosin, the mean strength of texture at five
scales (first order) and of the arrangement of that texture at every coarser scale (second order). How a patch is turned
does not matter: of the orientations of texture only their spread, and the angles between two of them, are told.
It knows nothing of slides, spots or genes.

A wavelet of scale j passes a band 2⁻ʲ as wide as the image's, so its map is computed on a grid 2ʲ times as coarse:
the band is cut out of the spectrum and transformed back alone. Where the band lay does not matter to the modulus.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from histoflow._errors import ShapeError

VERSION = "3"
STAINS_VERSION = "2"
"""Of `stain_quantiles` alone."""
PATCH_PX = 128
N_SCALES = 5
N_ORIENTATIONS = 4
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_N_ANGLES = N_ORIENTATIONS // 2 + 1
N_FEATURES = 3 * len(QUANTILES) + 2 * (2 + 2 * N_SCALES + math.comb(N_SCALES, 2) * _N_ANGLES)
_N_STAINS = 3 * len(QUANTILES)
_N_SCATTERED = (N_FEATURES - _N_STAINS) // 2
PARTS = (
    f"0:{len(QUANTILES)} {_N_STAINS}:{_N_STAINS + _N_SCATTERED}",
    f"{_N_STAINS + 2}:{_N_STAINS + _N_SCATTERED} {_N_STAINS + _N_SCATTERED + 2}:{N_FEATURES}",
)
"""Spans of columns: haematoxylin, which is in nuclei; and texture alone, without how much of a stain there is."""
_MARGIN = 16  # reflected, so that filters do not wrap around; 128 + 2 * 16 = 160 halves four times and is a fast size
_SIDE = PATCH_PX + 2 * _MARGIN
_FLOOR = 1e-3

# Ruifrok & Johnston 2001: optical density of haematoxylin, eosin and DAB (rows) in red, green, blue (columns).
_STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))


class _Wavelets(NamedTuple):
    """Wavelets of one scale, every orientation, for spectra of one size.

    Both have shape (orientation, height, width): `bins` says where in a flattened spectrum the bands lie, `filters`
    (complex) what they are multiplied by.
    """

    bins: Tensor
    filters: Tensor


def stain_quantiles(patches: Tensor) -> Tensor:
    """Describe patches by the quantiles of their stains alone, the first part of what `encode` returns.

    Parameters
    ----------
    patches
        RGB images, uint8, shape (n_patches, height, width, 3).

    Returns
    -------
    float32, shape (n_patches, 15), optical density: five quantiles each of haematoxylin, eosin and DAB.
    """
    return torch.stack([_quantiles(unmix(patch)) for patch in patches])


def encode(patches: Tensor) -> Tensor:
    """Describe patches by stain quantiles and scattering coefficients.

    Each patch is described by itself: its row does not depend, to the last bit, on the patches beside it.

    Parameters
    ----------
    patches
        RGB images, uint8, shape (n_patches, 128, 128, 3), axes (patch, height, width, channel).

    Returns
    -------
    float32, shape (n_patches, n_features) with n_features = 15 quantiles (optical density) + 2 stains × (2 moments + 5
    first-order log strengths, their spread over orientations, 5, and 10 × 3 second-order log strengths, by the angle
    between both orientations: 0, 45 or 90 degrees) = 99, on the device of `patches`.

    Raises
    ------
    ShapeError
        If `patches` has another shape or is not uint8.

    References
    ----------
    Bruna & Mallat, Invariant scattering convolution networks, IEEE TPAMI 2013. Filters: Morlet wavelets with centre
    frequency 3π/4 · 2⁻ʲ, width 0.8 · 2ʲ px, slant 4/L (the convention of Kymatio), cut off at 2.5 standard deviations;
    stains: Ruifrok & Johnston 2001.
    """
    if patches.ndim != 4 or patches.shape[1:] != (PATCH_PX, PATCH_PX, 3) or patches.dtype != torch.uint8:
        wanted = f"uint8 of shape (n_patches, {PATCH_PX}, {PATCH_PX}, 3)"
        raise ShapeError(f"patches are {patches.dtype} of shape {tuple(patches.shape)}; wanted {wanted}")
    rows = torch.empty(len(patches), N_FEATURES, device=patches.device)
    for row, patch in zip(rows, patches, strict=True):
        row[:] = _encode_one(patch)
    return rows


def _encode_one(patch: Tensor) -> Tensor:
    """Features of one patch, shape (n_features,).

    One at a time, because the rounding of batched sums and transforms may depend on the size of the batch; it is also
    what fits in a processor's cache.
    """
    stains = unmix(patch)
    return torch.cat([_quantiles(stains), _scatter(stains[:2]).flatten()])


def unmix(patch: Tensor) -> Tensor:
    """Unmix an RGB image, uint8 (height, width, 3), to the optical density of each stain, (3, height, width)."""
    density = -torch.log((patch.float() + 1) / 256)
    stains = torch.tensor(_STAINS, device=patch.device)
    unmixed: Tensor = density @ torch.linalg.inv(stains / stains.norm(dim=1, keepdim=True))
    return unmixed.movedim(2, 0).contiguous()


def _quantiles(stains: Tensor) -> Tensor:
    points = torch.tensor(QUANTILES, device=stains.device)
    return torch.quantile(stains.flatten(1), points, dim=1).T.flatten()


def _scatter(channels: Tensor) -> Tensor:
    """Moments, first and second order of each stain, shape (n_stains, 42)."""
    spectrum = torch.fft.fft2(pad(channels[:, None], (_MARGIN,) * 4, mode="reflect"))
    first, second = [], []
    for scale in range(N_SCALES):
        maps = modulus(spectrum, scale)
        first.append(_log_mean(maps))
        if scale < N_SCALES - 1:
            again = torch.fft.fft2(maps)
            second += [_by_angle(_log_mean(modulus(again, octaves))) for octaves in range(1, N_SCALES - scale)]
    by_orientation = torch.stack(first, dim=1)
    moments = torch.stack([channels.mean((1, 2)), channels.std((1, 2))], dim=1)
    spread = by_orientation.std(dim=2, correction=0)
    return torch.cat([moments, by_orientation.mean(dim=2), spread, *second], dim=1)


def _by_angle(strengths: Tensor) -> Tensor:
    """Mean over pairs of orientations (n_stains, 16) with the same angle between them, (n_stains, n_angles)."""
    pairs = strengths.reshape(-1, N_ORIENTATIONS, N_ORIENTATIONS)
    places = torch.arange(N_ORIENTATIONS, device=strengths.device)
    turned = torch.stack([pairs[:, places, (places + step) % N_ORIENTATIONS] for step in range(N_ORIENTATIONS)], dim=1)
    # Turning one way or the other makes the same angle.
    both = (turned + turned[:, (-places) % N_ORIENTATIONS]) / 2
    return both[:, :_N_ANGLES].mean(dim=2)


def modulus(spectrum: Tensor, octaves: int) -> Tensor:
    """Strength of the texture `octaves` coarser than the grid of a map, on a grid that is as much coarser.

    From the spectra of maps (n_stains, n_maps, side, side) to (n_stains, n_maps * n_orientations, side / 2**octaves,
    side / 2**octaves).
    """
    wavelets = _wavelets(spectrum.shape[-1], octaves, str(spectrum.device))
    maps = torch.fft.ifft2(spectrum.flatten(2)[..., wavelets.bins] * wavelets.filters).flatten(1, 2)
    # Three times as fast as abs(), which guards against an overflow that cannot happen here.
    strength: Tensor = (maps.real * maps.real).addcmul_(maps.imag, maps.imag).sqrt_()
    return strength


def _log_mean(maps: Tensor) -> Tensor:
    """Logarithm of the mean over the patch without its margin, shape (n_stains, n_maps)."""
    margin = _MARGIN * maps.shape[-1] // _SIDE
    return torch.log(maps[..., margin:-margin, margin:-margin].mean((-2, -1)) + _FLOOR)


@lru_cache(maxsize=64)
def _wavelets(side: int, octaves: int, device: str) -> _Wavelets:
    """Morlet wavelets with centre frequency 3π/4 · 2**-octaves per sample, for maps of `side` x `side` samples."""
    bands = [_band(side, octaves, math.pi * k / N_ORIENTATIONS) for k in range(N_ORIENTATIONS)]
    bins, filters = (torch.stack(part).to(device) for part in zip(*bands, strict=True))
    return _Wavelets(bins, filters)


def _band(side: int, octaves: int, angle: float) -> tuple[Tensor, Tensor]:
    """Bins of a spectrum (side, side) around one wavelet's centre, and its values there, both (kept, kept)."""
    factor = 2**octaves
    kept, centre = side // factor, 3 / 8 * side / factor
    offset = torch.arange(kept) - kept // 2
    row, column = (offset + round(centre * part) for part in (math.sin(angle), math.cos(angle)))
    bins = (row % side)[:, None] * side + column % side
    values = _morlet(2 * math.pi / side * row.double(), 2 * math.pi / side * column.double(), octaves, angle)
    # The first row and column have no counterpart on the other side of the centre: without them a turned image gives
    # turned maps. So does the half sample by which the coarse grid is moved to have its centre where the fine one has.
    values[0], values[:, 0] = 0, 0
    turn = torch.exp(1j * math.pi * (factor - 1) / side * offset.double())
    return bins, (values * turn[:, None] * turn / factor**2).to(torch.complex64)


def _morlet(row: Tensor, column: Tensor, octaves: int, angle: float) -> Tensor:
    """Spectrum of a Morlet wavelet at the angular frequencies `row` x `column`, float64; zero at frequency zero."""
    sigma, centre = 0.8 * 2**octaves, 3 * math.pi / 4 * 2**-octaves
    slant = 4 / N_ORIENTATIONS
    along = column * math.cos(angle) + row[:, None] * math.sin(angle)
    across = (row[:, None] * math.cos(angle) - column * math.sin(angle)) / slant
    oscillating, smooth = (torch.exp(-0.5 * sigma**2 * ((along - c) ** 2 + across**2)) for c in (centre, 0.0))
    return oscillating - math.exp(-0.5 * (sigma * centre) ** 2) * smooth
