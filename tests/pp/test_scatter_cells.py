"""Scattering cell by cell: exact under turns and mirrors, flat and striped images, each window by itself."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from histoflow.pp.scatter_cells import N_CHANNELS, N_FEATURES, WIDTHS, describe_cells, encode_cells

SIDE = 160


def texture(seed):
    """Colour noise at three scales that wraps around, uint8, (160, 160, 3)."""
    rng = np.random.default_rng(seed)
    noise = sum(s * gaussian_filter(rng.normal(size=(SIDE, SIDE, 3)), (s, s, 0), mode="wrap") for s in (0.7, 2.0, 6.0))
    return np.clip(150 + 40 * noise, 0, 255).astype(np.uint8)


def encoded(*images):
    return encode_cells(torch.from_numpy(np.stack(images))).numpy()


def described(cells):
    """Features of cells as if all widths saw the cell alone."""
    return describe_cells(np.repeat(cells[..., None, :], len(WIDTHS), axis=-2))


def stripes(angle, wavelength):
    y, x = np.indices((SIDE, SIDE))
    wave = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / wavelength)
    return np.repeat(np.rint(150 + 60 * wave)[..., None], 3, axis=2).astype(np.uint8)


def test_there_are_as_many_numbers_as_promised():
    cells = encoded(texture(0))
    assert cells.shape == (1, 20, 20, N_CHANNELS)
    assert described(cells[0]).shape == (20, 20, N_FEATURES)
    assert described(cells[0]).dtype == np.float32


@pytest.mark.parametrize("turn", [lambda a: np.rot90(a), lambda a: a[::-1], lambda a: a[:, ::-1], np.ndarray.copy])
def test_turned_and_mirrored_tissue_has_turned_and_mirrored_features(turn):
    image = texture(1)
    straight, turned = (described(cells) for cells in encoded(image, np.ascontiguousarray(turn(image))))
    np.testing.assert_allclose(turned, turn(straight), atol=2e-3)


def test_a_window_is_described_by_itself_to_the_bit():
    alone, beside = encoded(texture(2)), encoded(texture(3), texture(2))
    np.testing.assert_array_equal(beside[1], alone[0])


def test_a_flat_image_has_its_colour_and_no_texture():
    features = described(encoded(np.full((SIDE, SIDE, 3), 127, np.uint8))[0])
    assert np.ptp(features.reshape(-1, N_FEATURES), axis=0).max() < 1e-4
    density = -np.log(128 / 256)
    stains = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])  # Ruifrok & Johnston 2001
    stains /= np.linalg.norm(stains, axis=1, keepdims=True)
    np.testing.assert_allclose(features[0, 0, :3], np.full(3, density) @ np.linalg.inv(stains), atol=1e-5)
    n_stains = 3 * len(WIDTHS)
    np.testing.assert_allclose(features[0, 0, n_stains : n_stains + 10], np.log(1e-3), atol=0.02)


@pytest.mark.parametrize(("scale", "wavelength"), [(1, 16 / 3), (2, 32 / 3), (3, 64 / 3)])
def test_stripes_are_strongest_at_their_scale_and_prevail_in_one_direction(scale, wavelength):
    features = described(encoded(stripes(0.0, wavelength))[0]).reshape(-1, N_FEATURES).mean(axis=0)
    strength = features[15:65].reshape(len(WIDTHS), 5, 2)[0, :, 0]
    prevails = features[65:115].reshape(len(WIDTHS), 5, 2)[0, :, 0]
    assert strength.argmax() == scale
    assert prevails[scale] > 0.55
    noise = described(encoded(texture(4))[0]).reshape(-1, N_FEATURES).mean(axis=0)
    assert noise[65:115].reshape(len(WIDTHS), 5, 2)[0, scale, 0] < 0.4


def test_averages_of_cells_are_the_average_of_the_window():
    cells = encoded(texture(5))[0]
    density = -np.log((texture(5).astype(float) + 1) / 256)
    np.testing.assert_allclose(cells[..., :3].mean((0, 1)) @ (_stains()), density.mean((0, 1)), rtol=1e-4)


def _stains():
    stains = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
    return stains / np.linalg.norm(stains, axis=1, keepdims=True)
