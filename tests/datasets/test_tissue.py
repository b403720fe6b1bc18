"""Tissue: the latent fields are what the truth says they are."""

import numpy as np
import pytest

from histoflow.datasets.fields import disc_mean
from histoflow.datasets.tissue import FIELDS, NICHE_UM, UM_PER_PX, grow


@pytest.fixture(scope="module")
def tissue():
    return grow(np.random.default_rng(3), (2400, 2000), 900)


def test_the_grid_covers_the_slide_and_the_tissue_its_middle(tissue):
    assert tissue.fields.shape == (len(FIELDS), 250, 300)
    assert tissue.depth.shape == tissue.angle.shape == (250, 300)
    area_um2 = tissue.mask.sum() * UM_PER_PX**2
    assert area_um2 == pytest.approx(np.pi * 900**2, rel=0.15)
    assert tissue.mask[125, 150]
    assert not tissue.mask[0, 0]


def test_fields_are_standard_and_drivers_do_not_correlate_on_the_tissue(tissue):
    on_tissue = tissue.fields[:, tissue.mask]
    np.testing.assert_allclose(on_tissue.mean(axis=1), 0, atol=1e-4)
    np.testing.assert_allclose(on_tissue.std(axis=1), 1, atol=1e-4)
    drivers = [FIELDS.index(name) for name in ("cellularity", "fibres", "eosin", "niche")]
    np.testing.assert_allclose(np.corrcoef(on_tissue[drivers]), np.eye(4), atol=1e-3)


def test_the_niche_is_the_mean_of_the_infiltrate_around(tissue):
    around = disc_mean(tissue.field("infiltrate"), tissue.mask, NICHE_UM / UM_PER_PX)[tissue.mask]
    niche = tissue.field("niche")[tissue.mask]
    assert np.corrcoef(around, niche)[0, 1] == pytest.approx(1, abs=1e-4)
    assert np.corrcoef(tissue.field("infiltrate")[tissue.mask], niche)[0, 1] < 0.6
