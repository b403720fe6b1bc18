"""Structure of maps: SSIM is scikit-image's on a whole lattice and a slow loop's on tissue; overlaps by hand."""

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from histoflow._errors import NotFiniteError, OptionError, ShapeError
from histoflow.stats import ssim, svg_overlap

RNG = np.random.default_rng(0)
SIDE, PITCH = (14, 11), 200.0
GRID = np.stack(np.meshgrid(np.arange(SIDE[1]), np.arange(SIDE[0])), axis=-1).reshape(-1, 2)
XY = GRID * PITCH + [3000.0, 500.0]
SMOOTH = np.sin(GRID[:, :1] / 3 + [[0.0, 1.0, 2.0]]) + np.cos(GRID[:, 1:] / 4)
MEASURED = SMOOTH + 0.3 * RNG.normal(size=SMOOTH.shape) + 2
PREDICTED = 0.6 * SMOOTH + 0.2 * RNG.normal(size=SMOOTH.shape) + 2


def slow_ssim(x, y, there):
    """Wang et al., equation 13, window by window."""
    extent = np.ptp(x[there])
    c1, c2 = (0.01 * extent) ** 2, (0.03 * extent) ** 2
    found = []
    for i in range(3, x.shape[0] - 3):
        for j in range(3, x.shape[1] - 3):
            window = (slice(i - 3, i + 4), slice(j - 3, j + 4))
            real = there[window]
            if not there[i, j] or real.mean() < 0.5:
                continue
            a, b = x[window][real], y[window][real]
            ((var_a, cov), (_, var_b)) = np.cov(a, b)
            light = (2 * a.mean() * b.mean() + c1) / (a.mean() ** 2 + b.mean() ** 2 + c1)
            found.append(light * (2 * cov + c2) / (var_a + var_b + c2))
    return np.mean(found)


def test_on_a_whole_lattice_it_is_scikit_images():
    found = ssim(MEASURED, PREDICTED, XY, pitch_um=PITCH)
    for gene in range(3):
        maps = MEASURED[:, gene].reshape(SIDE), PREDICTED[:, gene].reshape(SIDE)
        oracle = structural_similarity(*maps, win_size=7, data_range=np.ptp(maps[0]))
        assert found[gene] == pytest.approx(oracle, abs=1e-10)


def test_on_tissue_only_spots_count():
    there = (np.hypot(*(GRID - [5, 6]).T) < 6.3) & (RNG.random(len(GRID)) > 0.1)
    found = ssim(MEASURED[there], PREDICTED[there], XY[there], pitch_um=PITCH)
    corner, last = GRID[there].min(axis=0), GRID[there].max(axis=0) + 1
    cut = (slice(corner[1], last[1]), slice(corner[0], last[0]))
    shaped = [values[:, 1].reshape(SIDE)[cut] for values in (MEASURED, PREDICTED)]
    assert found[1] == pytest.approx(slow_ssim(*shaped, there.reshape(SIDE)[cut]), abs=1e-10)


def test_equal_maps_are_one_and_others_less():
    np.testing.assert_allclose(ssim(MEASURED, MEASURED, XY, pitch_um=PITCH), 1.0)
    shuffled = MEASURED[RNG.permutation(len(MEASURED))]
    closer, none = ssim(MEASURED, PREDICTED, XY, pitch_um=PITCH), ssim(MEASURED, shuffled, XY, pitch_um=PITCH)
    assert (none < closer).all()
    assert (closer < 1).all()


def test_the_order_and_the_place_of_the_spots_change_nothing():
    order = RNG.permutation(len(XY))
    moved = ssim(MEASURED[order], PREDICTED[order], XY[order] + 12_345.0, pitch_um=PITCH)
    np.testing.assert_allclose(moved, ssim(MEASURED, PREDICTED, XY, pitch_um=PITCH))


def test_hexagonal_arrays_have_a_raster_too():
    hexagonal = np.stack([GRID[:, 0] * 100.0 + 50 * (GRID[:, 1] % 2), GRID[:, 1] * 86.6], axis=1)
    np.testing.assert_allclose(ssim(MEASURED, MEASURED, hexagonal, pitch_um=100.0), 1.0)


def test_undefined_is_nan_without_a_warning():
    few = XY[:, 1] < 500.0 + 6 * PITCH
    assert np.isnan(ssim(MEASURED[few], PREDICTED[few], XY[few], pitch_um=PITCH)).all()
    measured = MEASURED.copy()
    measured[:, 0] = 3.0
    assert list(np.isnan(ssim(measured, PREDICTED, XY, pitch_um=PITCH))) == [True, False, False]
    assert np.isfinite(ssim(MEASURED, np.zeros_like(MEASURED), XY, pitch_um=PITCH)).all()


def test_the_overlap_is_that_of_the_two_lists():
    assert svg_overlap([0.9, 0.8, 0.7, 0.1], [0.1, 0.5, 0.9, 0.2], k=2) == pytest.approx(1 / 3)
    assert svg_overlap([0.9, 0.1], [0.5, 0.2], k=2) == 1
    assert svg_overlap(np.linspace(0, 1, 10), np.linspace(1, 0, 10)) == 0
    ranks = np.arange(100.0)
    assert svg_overlap(ranks, np.where(ranks < 95, ranks, 0)) == 5 / 15


def test_genes_that_do_not_vary_are_in_no_list():
    assert svg_overlap([0.9, 0.8, 0.1], [np.nan] * 3, k=2) == 0
    assert svg_overlap([0.9, np.nan, np.nan], [0.3, 0.2, 0.1], k=2) == 1 / 2
    assert np.isnan(svg_overlap([np.nan] * 3, [0.3, 0.2, 0.1], k=2))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: ssim(MEASURED, PREDICTED[:, :2], XY, pitch_um=1), ShapeError, r"got \(154, 3\), \(154, 2\)"),
        (lambda: ssim(MEASURED, PREDICTED, XY * np.nan, pitch_um=1), NotFiniteError, "holds NaN"),
        (lambda: ssim(MEASURED, PREDICTED, XY, pitch_um=np.nan), OptionError, "pitch_um must be a distance"),
        (lambda: svg_overlap([1.0], [1.0, 2.0]), ShapeError, "one value per gene"),
        (lambda: svg_overlap([1.0, 2.0], [1.0, 2.0], k=3), OptionError, "between 1 and the 2 genes, got 3"),
    ],
)
def test_what_does_not_fit_is_told(call, error, text):
    with pytest.raises(error, match=text):
        call()
