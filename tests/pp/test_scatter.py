"""Scattering: against direct convolution, blind to turns and mirrors, known stains, rows independent to the bit."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from histoflow._errors import ShapeError
from histoflow.pp import scatter
from histoflow.pp.scatter import N_FEATURES, encode

STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])  # Ruifrok & Johnston 2001
STAINS /= np.linalg.norm(STAINS, axis=1, keepdims=True)
PAIRS = [(fine, coarse) for fine in range(5) for coarse in range(fine + 1, 5)]
FLOOR = math.log(1e-3)


def texture(seed, side=128):
    """Colour noise at five scales, uint8, (side, side, 3)."""
    rng = np.random.default_rng(seed)
    noise = sum(s * gaussian_filter(rng.normal(size=(side, side, 3)), (s, s, 0)) for s in (0.7, 1.5, 3, 6, 12))
    return np.clip(150 + 40 * noise, 0, 255).astype(np.uint8)


def stained(concentration, stain=0):
    """A patch of one stain, uint8, (1, 128, 128, 3), from optical densities that broadcast to (128, 128)."""
    density = np.broadcast_to(concentration, (128, 128))[..., None] * STAINS[stain]
    return torch.from_numpy(np.rint(256 * np.exp(-density) - 1).astype(np.uint8)[None])


def unmixed(patch):
    return -np.log((patch.astype(float) + 1) / 256) @ np.linalg.inv(STAINS)


def parts(features):
    """Quantiles (n, stain, 5), moments (n, stain, 2), first (n, stain, 5), spread, second order (n, stain, 10, 3)."""
    per_stain = features[:, 15:].unflatten(1, (2, 42))
    first, spread, second = per_stain[..., 2:7], per_stain[..., 7:12], per_stain[..., 12:].unflatten(-1, (10, 3))
    return features[:, :15].unflatten(1, (3, 5)), per_stain[..., :2], first, spread, second


PATCHES = torch.from_numpy(np.stack([texture(seed) for seed in range(33)]))
FEATURES = encode(PATCHES)


def wavelet(scale, orientation, side=160):
    """Morlet wavelet of Kymatio's convention, drawn in space in float64 and wrapped around."""
    sigma, frequency, angle = 0.8 * 2**scale, 3 * np.pi / 4 / 2**scale, np.pi * orientation / 4
    x = np.arange(-side, side)
    envelope = np.exp(-(x**2 + x[:, None] ** 2) / (2 * sigma**2))
    wave = envelope * np.exp(1j * frequency * (x * np.cos(angle) + x[:, None] * np.sin(angle)))
    zero_mean = (wave - wave.sum() / envelope.sum() * envelope) / (2 * np.pi * sigma**2)
    return zero_mean.reshape(2, side, 2, side).sum((0, 2))


SPECTRA = np.fft.fft2([[wavelet(scale, orientation) for orientation in range(4)] for scale in range(5)])


def moduli(image, scale):
    """Modulus of the wavelet transform at full resolution, every orientation."""
    return np.abs(np.fft.ifft2(np.fft.fft2(image) * SPECTRA[scale]))


def log_mean(maps):
    return np.log(maps[..., 16:-16, 16:-16].mean((-2, -1)) + 1e-3)


@pytest.mark.parametrize("index", range(2))
def test_both_orders_are_those_of_direct_convolution_at_full_resolution(index):
    first, spread, second = (part[index].numpy() for part in parts(FEATURES)[2:])
    for stain in (0, 1):
        image = np.pad(unmixed(texture(index))[..., stain], 16, mode="reflect")
        maps = [moduli(image, scale) for scale in range(5)]
        by_orientation = np.array([log_mean(of_scale) for of_scale in maps])
        np.testing.assert_allclose(first[stain], by_orientation.mean(axis=1), atol=0.02)
        np.testing.assert_allclose(spread[stain], by_orientation.std(axis=1), atol=0.02)
        for at, (fine, coarse) in enumerate(PAIRS):
            direct = np.array([log_mean(moduli(one, coarse)) for one in maps[fine]])
            apart = np.abs(np.subtract.outer(range(4), range(4)))
            by_angle = [direct[np.minimum(apart, 4 - apart) == step].mean() for step in range(3)]
            np.testing.assert_allclose(second[stain, at], by_angle, atol=0.03)


@pytest.mark.parametrize(("side", "octaves"), [(160 // 2**j, k) for j in range(5) for k in range(j == 0 or 1, 5 - j)])
def test_filters_have_zero_mean(side, octaves):
    bins, filters = scatter._wavelets(side, octaves, "cpu")
    assert bins.shape == filters.shape == (4, side // 2**octaves, side // 2**octaves)
    at_zero = filters[bins == 0]
    assert len(at_zero) == 4
    assert at_zero.abs().max() < 1e-8 * filters.abs().max()


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (120, 60, 150)], ids=["black", "white", "purple"])
def test_a_flat_patch_has_its_density_and_no_texture(colour):
    patch = torch.tensor(colour, dtype=torch.uint8).expand(1, 128, 128, 3)
    quantiles, moments, first, spread, second = parts(encode(patch))
    density = torch.from_numpy(unmixed(np.array(colour, dtype=np.uint8))).float()
    torch.testing.assert_close(quantiles[0], density[:, None].expand(3, 5), rtol=0, atol=1e-5)
    torch.testing.assert_close(moments[0, :, 0], density[:2], rtol=0, atol=1e-5)
    assert moments[0, :, 1].max() < 1e-5
    assert spread.max() < 0.01
    for strengths in (first, second):
        torch.testing.assert_close(strengths, torch.full_like(strengths, FLOOR), rtol=0, atol=0.01)


@pytest.mark.parametrize("stain", [0, 1])
def test_quantiles_are_the_concentrations_of_a_pure_stain(stain):
    concentration = np.where(np.arange(128) < 64, 0.5, 1.5)
    quantiles, moments, *_ = parts(encode(stained(concentration, stain)))
    expected = torch.zeros(3, 5)
    expected[stain] = torch.tensor([0.5, 0.5, 1.0, 1.5, 1.5])  # the median lies between the halves
    torch.testing.assert_close(quantiles[0], expected, rtol=0, atol=0.02)  # 8-bit colours
    torch.testing.assert_close(moments[0, stain], torch.tensor([1.0, 0.5]), rtol=0, atol=0.02)


@pytest.mark.parametrize("scale", range(5))
@pytest.mark.parametrize("orientation", range(4))
def test_a_grating_is_strongest_at_its_own_scale_and_has_a_direction(scale, orientation):
    angle, frequency = np.pi * orientation / 4, 3 * np.pi / 4 / 2**scale
    x = np.arange(128)
    wave = np.cos(frequency * (x * np.cos(angle) + x[:, None] * np.sin(angle)))
    _, _, first, spread, _ = parts(encode(stained(0.6 + 0.3 * wave)))
    assert int(first[0, 0].argmax()) == scale
    assert spread[0, 0, scale] > 4 * parts(FEATURES)[3][:, 0, scale].mean()


TURNS = {
    "quarter turn": lambda p: p.rot90(1, (1, 2)),
    "half turn": lambda p: p.rot90(2, (1, 2)),
    "left to right": lambda p: p.flip(2),
    "upside down": lambda p: p.flip(1),
}


@pytest.mark.parametrize("name", TURNS)
def test_how_a_patch_is_turned_does_not_matter(name):
    turned = TURNS[name](PATCHES[:4])
    assert not torch.equal(turned, PATCHES[:4])
    torch.testing.assert_close(encode(turned), FEATURES[:4], rtol=0, atol=4e-6)


@pytest.mark.parametrize(("shift", "tolerance"), [(1, 0.01), (2, 0.015), (4, 0.025)])
def test_a_shift_of_a_few_pixels_changes_little(shift, tolerance):
    large = [texture(seed, side=140) for seed in range(6)]
    here, there = (encode(torch.from_numpy(np.stack([t[s : s + 128, :128] for t in large]))) for s in (0, shift))
    assert 1e-4 < (here - there)[:, 15:].abs().mean() < tolerance
    assert here[:, 15:].std(0).mean() > 0.03


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("size", [1, 3, 8, 33])
def test_a_row_is_bit_equal_in_every_batch(threads, size):
    batched = torch.cat([encode(batch) for batch in PATCHES[:11].split(size)])
    assert torch.equal(batched, FEATURES[:11])


def test_a_row_is_bit_equal_in_every_order_and_company(threads):
    order = torch.randperm(33, generator=torch.Generator().manual_seed(0))[:9]
    assert torch.equal(encode(PATCHES[order]), FEATURES[order])
    among_blank = torch.full_like(PATCHES[:5], 255)
    among_blank[3] = PATCHES[7]
    assert torch.equal(encode(among_blank)[3], FEATURES[7])


def test_memory_layout_does_not_matter():
    channels_first = PATCHES[:2].permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    padded = torch.zeros(2, 256, 150, 3, dtype=torch.uint8)
    padded[:, ::2, :128] = PATCHES[:2]
    for strided in (channels_first, padded[:, ::2, :128]):
        assert not strided.is_contiguous()
        assert torch.equal(encode(strided), FEATURES[:2])


def test_result_is_one_finite_float32_row_per_patch_and_the_patches_stay_as_they_were():
    before = PATCHES[:2].clone()
    features = encode(PATCHES[:2])
    assert features.shape == (2, N_FEATURES) == (2, 99)
    assert features.dtype == torch.float32
    assert features.isfinite().all()
    assert torch.equal(PATCHES[:2], before)
    assert encode(PATCHES[:0]).shape == (0, N_FEATURES)


def test_features_are_those_of_their_version():
    # Kept models name the version: whoever changes these numbers changes VERSION with them.
    at = [2, 15, 16, 17, 22, 27, 56, 98]
    known = {"3": [0.59890, 0.62184, 0.31884, -3.19312, 0.02344, -5.06963, -4.83861, -4.90696]}
    torch.testing.assert_close(FEATURES[0, at], torch.tensor(known[scatter.VERSION]), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("patches", "text"),
    [
        (torch.zeros(128, 128, 3, dtype=torch.uint8), r"torch\.uint8 of shape \(128, 128, 3\)"),
        (torch.zeros(2, 3, 128, 128, dtype=torch.uint8), r"torch\.uint8 of shape \(2, 3, 128, 128\)"),
        (torch.zeros(1, 64, 128, 3, dtype=torch.uint8), r"torch\.uint8 of shape \(1, 64, 128, 3\)"),
        (torch.zeros(1, 128, 128, 3), r"torch\.float32 of shape \(1, 128, 128, 3\)"),
    ],
    ids=["no batch axis", "channels first", "wrong size", "not uint8"],
)
def test_other_arrays_are_refused_with_what_came_and_what_was_wanted(patches, text):
    with pytest.raises(ShapeError, match=rf"patches are {text}; wanted uint8 of shape \(n_patches, 128, 128, 3\)"):
        encode(patches)


def columns(part):
    return np.concatenate([np.arange(*map(int, span.split(":"))) for span in part.split()])


def test_the_first_part_is_haematoxylin_alone():
    haematoxylin, _ = map(columns, scatter.PARTS)
    one = encode(stained(0.5 + 0.3 * np.sin(np.arange(128) / 3)))
    other = encode(stained(0.5 + 0.3 * np.sin(np.arange(128) / 3)[:, None], stain=1))
    both = [row[0, haematoxylin].numpy() for row in (one, other)]
    assert len(haematoxylin) == 47
    assert both[0][:5].max() > 0.7 > 0.1 > np.abs(both[1][:5]).max()  # the second patch holds eosin alone
    assert (both[0][5 + 2 :] > both[1][5 + 2 :]).mean() > 0.8


def test_the_second_part_is_texture_without_the_amount_of_stain():
    _, texture_alone = map(columns, scatter.PARTS)
    pale, dark = (encode(stained(amount))[0, texture_alone].numpy() for amount in (0.2, 0.9))
    assert len(texture_alone) == 80
    np.testing.assert_allclose(pale, dark, atol=0.05)
    rest = np.delete(np.arange(N_FEATURES), texture_alone)
    assert (encode(stained(0.2))[0, rest] - encode(stained(0.9))[0, rest]).abs().max() > 0.5
