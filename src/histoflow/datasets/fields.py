"""Random fields on a grid: smooth noise, streaks along a direction, averages over discs, change of grid."""

from __future__ import annotations

import numpy as np
from scipy import fft, ndimage


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], scale: float) -> np.ndarray:
    """White noise under a Gaussian of standard deviation `scale`, in pixels; mean 0, variance 1, periodic, float32."""
    spectrum = fft.rfft2(rng.standard_normal(shape, dtype=np.float32))
    rows, columns = fft.fftfreq(shape[0])[:, None], fft.rfftfreq(shape[1])
    spectrum *= np.exp(-2 * (np.pi * scale) ** 2 * (rows**2 + columns**2)).astype(np.float32)
    spectrum[0, 0] = 0
    field: np.ndarray = fft.irfft2(spectrum, s=shape)
    field /= field.std()
    return field


def scaled_shape(field: np.ndarray, factor: float) -> tuple[int, int]:
    """Height and width of a field on a grid that is finer by `factor`."""
    height, width = field.shape
    return round(height * factor), round(width * factor)


def streaks(noise: np.ndarray, angle: np.ndarray, *, step: float, doublings: int) -> np.ndarray:
    """Smear `noise` along a field of directions: a line integral convolution (Cabral and Leedom, 1993).

    Parameters
    ----------
    noise
        Shape (height, width).
    angle
        Direction in radians, from x towards y, shape (height, width).
    step
        Length of one step in pixels; the noise should be smooth over that length.
    doublings
        Each doubles the number of steps, so that streaks reach ``step * 2 ** doublings`` pixels to both sides.

    Returns
    -------
    Streaks of mean 0 and variance 1, shape (height, width).
    """
    total = _one_way(noise, angle, step, doublings) + _one_way(noise, angle, -step, doublings)
    standard: np.ndarray = (total - total.mean()) / total.std()
    return standard


def _one_way(noise: np.ndarray, angle: np.ndarray, step: float, doublings: int) -> np.ndarray:
    """Sum of the noise met on a walk from each pixel; a walk of 2k steps is two walks of k."""
    height, width = noise.shape
    rows, columns = np.indices(noise.shape, dtype=np.float32)
    rows = np.rint(rows + step * np.sin(angle)).astype(np.int32).clip(0, height - 1)
    columns = np.rint(columns + step * np.cos(angle)).astype(np.int32).clip(0, width - 1)
    target, total = (rows * width + columns).ravel(), noise.ravel()
    for _ in range(doublings):
        total = total + total[target]
        target = target[target]
    return total.reshape(noise.shape)


def disc_offsets(radius: float) -> np.ndarray:
    """Points of the unit lattice within `radius` of the origin, shape (n_points, 2), columns x, y."""
    reach = np.arange(-int(radius), int(radius) + 1)
    xy: np.ndarray = np.stack(np.meshgrid(reach, reach), axis=-1).reshape(-1, 2)
    inside: np.ndarray = xy[np.hypot(*xy.T) <= radius]
    return inside


def disc_mean(field: np.ndarray, weight: np.ndarray, radius: float) -> np.ndarray:
    """Weighted mean of a field within `radius` pixels of every pixel; both arrays (height, width)."""
    reach = int(radius)
    disc = np.zeros((2 * reach + 1, 2 * reach + 1))
    x, y = disc_offsets(radius).T
    disc[y + reach, x + reach] = 1
    shape = [fft.next_fast_len(n + 2 * reach, real=True) for n in field.shape]
    transfer = fft.rfft2(disc, s=shape)

    def total(values: np.ndarray) -> np.ndarray:
        full: np.ndarray = fft.irfft2(fft.rfft2(values, s=shape) * transfer, s=shape)
        return full[reach : reach + field.shape[0], reach : reach + field.shape[1]]

    mean: np.ndarray = total(field * weight) / np.maximum(total(weight), 0.5)
    return mean


def sample(field: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Value at points by linear interpolation.

    Parameters
    ----------
    field
        Shape (height, width).
    xy
        Points, shape (..., 2): x, y in pixels, the centre of the first pixel at (0.5, 0.5).
    """
    rows, columns = xy[..., 1] - 0.5, xy[..., 0] - 0.5
    values: np.ndarray = ndimage.map_coordinates(field, [rows, columns], order=1, mode="nearest")
    return values


def resize(field: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The field on another grid over the same rectangle, by linear interpolation along one axis, then the other."""
    for axis, size in enumerate(shape):
        at = ((np.arange(size) + 0.5) * field.shape[axis] / size - 0.5).clip(0, field.shape[axis] - 1)
        low = at.astype(int).clip(0, max(field.shape[axis] - 2, 0))
        part = (at - low).astype(np.float32).reshape((-1, 1) if axis == 0 else (1, -1))
        high = (low + 1).clip(0, field.shape[axis] - 1)
        field = np.take(field, low, axis) * (1 - part) + np.take(field, high, axis) * part
    return field
