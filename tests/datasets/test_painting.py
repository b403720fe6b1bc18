"""Pictures: each latent field is visible in what it should change, glass stays glass, the scale is kept."""

from dataclasses import replace

import numpy as np
import pytest

from histoflow.datasets.painting import Stain, _Nuclei, _stamp, paint
from histoflow.datasets.tissue import FIELDS, Tissue

SHAPE = (60, 80)  # 480 × 640 µm
STAIN = Stain(np.array([0.66, 0.69, 0.30]), np.array([0.10, 0.70, 0.27]), np.array([243.0, 241.0, 244.0]))


def tissue(*, deep=1.0, **fields):
    values = np.zeros((len(FIELDS), *SHAPE), np.float32)
    for name, value in fields.items():
        values[FIELDS.index(name)] = value
    return Tissue(values, np.full(SHAPE, deep, np.float32), np.zeros(SHAPE, np.float32))


def picture(plan, mpp=1.0, seed=0):
    return paint(plan, STAIN, mpp=mpp, rng=np.random.default_rng(seed))


def dyes(image):
    """Amounts of haematoxylin and eosin at each pixel, least squares on the optical density."""
    density = -np.log10((image.reshape(-1, 3) + 1) / (STAIN.glass + 1))
    amounts = np.linalg.lstsq(np.stack([STAIN.haematoxylin, STAIN.eosin], axis=1), density.T, rcond=None)[0]
    return amounts.reshape(2, *image.shape[:2])


def nuclear(image):
    return (dyes(image)[0] > 0.5).mean()


def test_the_same_randomness_gives_the_same_picture_and_other_randomness_another():
    assert np.array_equal(picture(tissue()), picture(tissue()))
    assert not np.array_equal(picture(tissue()), picture(tissue(), seed=1))


@pytest.mark.parametrize(("mpp", "shape"), [(1.0, (480, 640, 3)), (0.5, (960, 1280, 3)), (1.1, (436, 582, 3))])
def test_size_and_amount_of_nuclei_follow_the_scale(mpp, shape):
    image = picture(tissue(), mpp)
    assert image.shape == shape
    assert nuclear(image) == pytest.approx(nuclear(picture(tissue())), rel=0.2)


def test_empty_glass_has_the_colour_of_the_glass():
    np.testing.assert_allclose(picture(tissue(deep=-1.0)).mean(axis=(0, 1)), STAIN.glass, atol=3)


def test_more_cellularity_and_more_infiltrate_are_more_nuclei():
    usual = nuclear(picture(tissue()))
    assert nuclear(picture(tissue(cellularity=1.5))) > 1.5 * usual
    assert nuclear(picture(tissue(infiltrate=1.5))) > 1.5 * usual


def test_the_eosin_field_is_the_logarithm_of_the_amount_of_eosin():
    low, high = (np.median(dyes(picture(tissue(eosin=value)))[1]) for value in (-1.0, 1.0))
    assert np.log(high / low) == pytest.approx(2 * 0.34, abs=0.1)


@pytest.mark.parametrize("angle", [0.6, 2.0])
def test_a_nucleus_lies_where_and_as_it_should(angle):
    layer, one = np.zeros((60, 80), np.float32), np.ones(1)
    nucleus = _Nuclei(np.array([[20.3, 15.8]]), 8 * one, 4 * one, angle * one, 0.9 * one)
    _stamp(layer, nucleus, 0.5)
    xy = (np.indices(layer.shape)[::-1].reshape(2, -1).T + 0.5) * 0.5
    middle = np.average(xy, axis=0, weights=layer.ravel())
    values, vectors = np.linalg.eigh(np.cov(xy.T, aweights=layer.ravel()))
    np.testing.assert_allclose(middle, nucleus.xy[0], atol=0.05)
    assert abs(vectors[:, 1] @ (np.cos(angle), np.sin(angle))) == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(2 * np.sqrt(values), (4, 8), rtol=0.1)  # a solid ellipse of these half axes
    assert layer.max() == pytest.approx(0.9)


def test_fibres_give_the_texture_a_direction():
    def along_over_across(fibres):
        eosin = dyes(picture(tissue(fibres=fibres, cellularity=-1.0)))[1]
        return (eosin[:, 5:] - eosin[:, :-5]).var() / (eosin[5:] - eosin[:-5]).var()

    assert along_over_across(2.0) < 0.8
    assert along_over_across(-3.0) == pytest.approx(1, abs=0.1)


def test_the_niche_itself_is_not_to_be_seen():
    assert np.array_equal(picture(tissue()), picture(tissue(niche=2.0)))


def test_more_of_a_dye_is_darker():
    dark = paint(tissue(), replace(STAIN, eosin=2 * STAIN.eosin), mpp=1.0, rng=np.random.default_rng(0))
    assert (dark.mean(axis=(0, 1)) < picture(tissue()).mean(axis=(0, 1))).all()
