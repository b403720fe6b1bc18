"""The H&E picture of a synthetic tissue: fibres, nuclei, glands and fat as dye, dye as light."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from histoflow.datasets.fields import resize, sample, scaled_shape, smooth_noise, streaks
from histoflow.datasets.tissue import UM_PER_PX, Tissue

_FINE_UM = 4.0  # side of a pixel of the maps of holes
_EPITHELIUM_UM = 19.0


@dataclass(frozen=True)
class Stain:
    """How a laboratory stains and scans.

    Parameters
    ----------
    haematoxylin, eosin
        Optical density per unit of dye, shape (3,): red, green, blue.
    glass
        Light through the empty slide, shape (3,): red, green, blue, 0 to 255.
    """

    haematoxylin: np.ndarray
    eosin: np.ndarray
    glass: np.ndarray


@dataclass(frozen=True)
class _Holes:
    """Distances in µm on a grid of 4 µm, each of shape (height, width).

    Parameters
    ----------
    inside
        Into the nearest hole, the white of a fat cell or the lumen of a gland; below 0 outside.
    from_lumen
        From the nearest gland's lumen; below 0 inside.
    """

    inside: np.ndarray
    from_lumen: np.ndarray


@dataclass(frozen=True)
class _Nuclei:
    """Nuclei as ellipses: centres (n, 2) x, y in µm, half axes in µm, direction in radians, amount of dye."""

    xy: np.ndarray
    length: np.ndarray
    width: np.ndarray
    angle: np.ndarray
    dye: np.ndarray


def paint(tissue: Tissue, stain: Stain, *, mpp: float, rng: np.random.Generator) -> np.ndarray:
    """Picture of a tissue.

    Parameters
    ----------
    tissue
        The section's latent fields: how much there is of everything, and where.
    stain
        Colours of dyes and glass.
    mpp
        µm per pixel of the picture.
    rng
        Source of randomness.

    Returns
    -------
    RGB, shape (height, width, 3), uint8.
    """
    shape = scaled_shape(tissue.depth, UM_PER_PX / mpp)
    holes = _holes(tissue, rng)
    solid = _solid(tissue, holes, shape, mpp, rng)
    haematoxylin, eosin = _matrix(tissue, holes, shape, mpp, rng)
    nuclei = np.zeros(shape, np.float32)
    for kind in (_cells(tissue, holes, rng), _lymphocytes(tissue, holes, rng), _epithelium(holes, rng)):
        _stamp(nuclei, kind, mpp)
    nuclei *= 1 + 0.16 * smooth_noise(rng, shape, 1.1 / mpp)
    haematoxylin += nuclei
    eosin *= 1 - 0.45 * nuclei.clip(0, 1)
    return _light(solid * haematoxylin, solid * eosin + _halo(tissue, shape), stain, mpp, rng)


def _squash(x: np.ndarray) -> np.ndarray:
    squashed: np.ndarray = 1 / (1 + np.exp(-x))
    return squashed


def _lattice(rng: np.random.Generator, shape: tuple[int, int], spacing: float) -> np.ndarray:
    """Shaken hexagonal lattice over a grid of 8 µm of this shape; (n, 2) x, y in µm."""
    height, width = (n * UM_PER_PX for n in shape)
    rows, columns = np.indices((round(height / spacing / 0.87), round(width / spacing)))
    xy = np.stack([columns + rows % 2 / 2, rows * 0.87], axis=-1).reshape(-1, 2)
    shaken: np.ndarray = (xy + rng.uniform(-0.33, 0.33, xy.shape)) * spacing
    return shaken


def _holes(tissue: Tissue, rng: np.random.Generator) -> _Holes:
    shape = scaled_shape(tissue.depth, UM_PER_PX / _FINE_UM)
    pixels = (np.moveaxis(np.indices(shape)[::-1], 0, -1) + 0.5) * _FINE_UM
    from_lumen = _distance_from_lumen(tissue, pixels, rng)
    inside = np.maximum(_into_fat(tissue, pixels, rng), -from_lumen)
    return _Holes(inside.astype(np.float32), from_lumen.astype(np.float32))


def _distance_from_lumen(tissue: Tissue, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Distance to wobbly circles, shape (height, width), for pixels (height, width, 2) in µm."""
    centres = _lattice(rng, tissue.depth.shape, 300)
    inside = sample(tissue.depth, centres / UM_PER_PX) > 0.12
    centres = centres[inside & (rng.random(len(centres)) < 0.4)]
    distance = np.full(pixels.shape[:2], 1000.0)
    for centre in centres:
        x, y = np.moveaxis(pixels - centre, -1, 0)
        phi, (a, b) = np.arctan2(y, x), rng.uniform(0, 2 * np.pi, 2)
        radius = rng.uniform(14, 36) * (1 + 0.2 * np.sin(2 * phi + a) + 0.1 * np.sin(3 * phi + b))
        distance = np.minimum(distance, np.hypot(x, y) - radius)
    return distance


def _into_fat(tissue: Tissue, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Depth inside fat cells, the cells of a Voronoi diagram with rounded corners, where nuclei are few."""
    fatness = 0.9 * smooth_noise(rng, tissue.depth.shape, 80 / UM_PER_PX) - 0.6 * tissue.field("cellularity") - 1.6
    seeds = _lattice(rng, tissue.depth.shape, 38)
    fatty, below = (sample(field, seeds / UM_PER_PX) for field in (fatness, tissue.depth))
    is_fat = (fatty > 0.5 * rng.random(len(seeds))) & (below > 0.05)
    depth = np.full(pixels.shape[:2], -50.0)
    near = resize(ndimage.maximum_filter(fatness, 5), scaled_shape(depth, 1)) > 0
    (first, second), (nearest, _) = (found.T for found in cKDTree(seeds).query(pixels[near], k=2))
    depth[near] = np.where(is_fat[nearest], np.minimum((second - first) / 2 - 2.2, 21 - first), -50)
    return depth


def _solid(tissue: Tissue, holes: _Holes, shape: tuple[int, int], mpp: float, rng: np.random.Generator) -> np.ndarray:
    """Share of light that meets tissue, 0 to 1: none on the glass and in holes, little in clefts between fibres."""
    edge = resize(tissue.depth, shape) / 0.006 + 0.6 * smooth_noise(rng, shape, 2.5 / mpp)
    half = (shape[0] // 2, shape[1] // 2)
    bundles = streaks(smooth_noise(rng, half, 1.5 / mpp), resize(tissue.angle, half), step=5 / mpp, doublings=3)
    loose = resize(0.45 * tissue.field("fibres") - 0.5 * tissue.field("cellularity") - 3.1, half)
    cleft = resize(((bundles + loose) / 0.8).clip(0, 0.85), shape)
    into = resize(holes.inside, shape)
    solid: np.ndarray = edge.clip(0, 1) * (0.5 - into / 2).clip(0, 1) * (1 - cleft)
    return solid


def _matrix(
    tissue: Tissue, holes: _Holes, shape: tuple[int, int], mpp: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Haematoxylin and eosin of everything but nuclei: fibres, ground substance, cytoplasm."""
    half = (shape[0] // 2, shape[1] // 2)
    angle = resize(tissue.angle, half)
    strands = streaks(smooth_noise(rng, half, 1.0 / mpp), angle, step=2.5 / mpp, doublings=3)
    bundles = streaks(smooth_noise(rng, half, 3.5 / mpp), angle, step=8 / mpp, doublings=3)
    ordered = _squash(1.6 * tissue.field("fibres"))
    grain = smooth_noise(rng, shape, 1.6 / mpp) + 0.8 * resize(smooth_noise(rng, half, 3 / mpp), shape)
    relief = resize(resize(ordered, half) * (0.3 * strands + 0.22 * bundles), shape)
    relief += resize(0.17 * (1 - ordered), shape) * grain
    eosin = resize(0.34 * np.exp(0.34 * tissue.field("eosin")), shape) * (1 + relief).clip(0.12, 2.2)
    cytoplasm = resize(0.15 * _squash(1.2 * tissue.field("cellularity")), shape) * (1 + 0.3 * grain).clip(0)
    wall = resize((5 - np.abs(10 * holes.from_lumen / _EPITHELIUM_UM - 5)).clip(0, 1), shape)
    rim = resize(np.exp(-(((holes.inside + 2) / 2) ** 2)), shape)
    return 0.05 + cytoplasm + 0.12 * wall, eosin * (1 - 0.3 * wall) + 0.14 * rim


def _cells(tissue: Tissue, holes: _Holes, rng: np.random.Generator) -> _Nuclei:
    """Nuclei of stroma and tumour: dense in cords where cellularity is high, drawn out along strong fibres."""
    xy = _lattice(rng, tissue.depth.shape, 9.5)
    at = xy / UM_PER_PX
    cellularity, fibres = (sample(tissue.field(name), at) for name in ("cellularity", "fibres"))
    cords = sample(smooth_noise(rng, tissue.depth.shape, 26 / UM_PER_PX), at)
    chance = 0.07 + 0.8 * _squash(1.9 * cellularity + 1.5 * cords - 1.4)
    keep = (rng.random(len(xy)) < chance) & _room(xy, tissue, holes)
    stretch = 1.25 + 1.5 * _squash(1.8 * fibres[keep]) * rng.uniform(0.5, 1.2, keep.sum())
    size = rng.normal(3.3, 0.4, keep.sum()).clip(2.3) + 0.5 * _squash(2 * cellularity[keep])
    angle = sample(tissue.angle, at[keep]) + 0.35 * rng.standard_normal(keep.sum())
    return _Nuclei(xy[keep], size * stretch**0.5, size / stretch**0.5, angle, rng.uniform(0.5, 1.0, keep.sum()))


def _lymphocytes(tissue: Tissue, holes: _Holes, rng: np.random.Generator) -> _Nuclei:
    """Small, round, dark nuclei in clusters: the infiltrate."""
    xy = _lattice(rng, tissue.depth.shape, 7)
    infiltrate = sample(tissue.field("infiltrate"), xy / UM_PER_PX)
    keep = (rng.random(len(xy)) < 0.85 * _squash(3.2 * (infiltrate - 0.9))) & _room(xy, tissue, holes)
    size, n = rng.normal(2.5, 0.2, keep.sum()).clip(1.8), keep.sum()
    return _Nuclei(xy[keep], 1.05 * size, size, rng.uniform(0, np.pi, n), rng.uniform(0.95, 1.3, n))


def _room(xy: np.ndarray, tissue: Tissue, holes: _Holes) -> np.ndarray:
    at = xy / _FINE_UM
    outside = (sample(holes.inside, at) < -2) & (sample(holes.from_lumen, at) > _EPITHELIUM_UM + 2)
    room: np.ndarray = outside & (sample(tissue.depth, xy / UM_PER_PX) > 0.004)
    return room


def _epithelium(holes: _Holes, rng: np.random.Generator) -> _Nuclei:
    """Nuclei around the lumen of a gland, pointing at it."""
    xy = _lattice(rng, scaled_shape(holes.from_lumen, _FINE_UM / UM_PER_PX), 7)
    away = sample(holes.from_lumen, xy / _FINE_UM)
    xy = xy[(away > 6) & (away < _EPITHELIUM_UM - 4)]
    towards_y, towards_x = (sample(slope, xy / _FINE_UM) for slope in np.gradient(holes.from_lumen))
    n = len(xy)
    angle = np.arctan2(towards_y, towards_x)
    return _Nuclei(xy, rng.uniform(4.2, 5.2, n), rng.uniform(2.5, 3.1, n), angle, rng.uniform(0.7, 1.0, n))


def _stamp(layer: np.ndarray, nuclei: _Nuclei, mpp: float) -> None:
    """Draw ellipses with a soft edge into `layer`, the darkest on top."""
    reach = int(np.ceil(nuclei.length.max(initial=0) / mpp)) + 1
    dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1)
    column, row = np.floor(nuclei.xy / mpp).astype(np.int32).T
    from_centre = (np.stack([column, row]) + 0.5) * mpp - nuclei.xy.T
    x, y = (from_centre[:, :, None] + mpp * np.stack([dx, dy])[:, None]).astype(np.float32)
    length, width, angle, dye = (
        part.astype(np.float32)[:, None] for part in (nuclei.length, nuclei.width, nuclei.angle, nuclei.dye)
    )
    r = np.hypot((x * np.cos(angle) + y * np.sin(angle)) / length, (y * np.cos(angle) - x * np.sin(angle)) / width)
    drawn = (dye * ((1 - r) * width / 1.4 + 0.5).clip(0, 1)).astype(np.float32)
    which, where = np.nonzero(drawn)
    row = (row[which] + dy[where]).clip(0, layer.shape[0] - 1)
    column = (column[which] + dx[where]).clip(0, layer.shape[1] - 1)
    np.maximum.at(layer, (row, column), drawn[which, where])


def _halo(tissue: Tissue, shape: tuple[int, int]) -> np.ndarray:
    """Eosin that leaked onto the glass around the tissue."""
    return 0.012 * (1 + 2.5 * resize(tissue.depth, shape)).clip(0, 1)


def _light(
    haematoxylin: np.ndarray, eosin: np.ndarray, stain: Stain, mpp: float, rng: np.random.Generator
) -> np.ndarray:
    """Light through two dyes (Lambert-Beer), a slightly soft lens, uneven lamp and a camera with noise."""
    dyes = [ndimage.gaussian_filter(dye, 0.55 / mpp) for dye in (haematoxylin, eosin)]
    lamp = 1 + 0.006 * resize(smooth_noise(rng, (64, 64), 10), haematoxylin.shape)
    colours = (stain.glass.tolist(), stain.haematoxylin.tolist(), stain.eosin.tolist())
    picture = np.empty((*haematoxylin.shape, 3), np.uint8)
    for channel, (glass, *density) in enumerate(zip(*colours, strict=True)):
        light = glass * lamp * np.exp(-math.log(10) * (density[0] * dyes[0] + density[1] * dyes[1]))
        light += 1.2 * rng.standard_normal(light.shape, dtype=np.float32)
        picture[..., channel] = np.rint(light).clip(0, 255)
    return picture
