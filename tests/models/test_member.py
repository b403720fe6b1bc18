"""Principal components of few and of many spots."""

import numpy as np
import pytest

from histoflow.models import member
from histoflow.models.member import Projection


@pytest.mark.parametrize("whitening", [0.0, 0.5])
def test_many_spots_have_the_components_of_few(monkeypatch, whitening):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(300, 12)) * np.arange(1, 13) @ rng.normal(size=(12, 12)) + 50).astype(np.float32)
    x[:, 3] = 7.0
    at_once = Projection.fit(x, 5, whitening=whitening)
    found = at_once(x).numpy()
    monkeypatch.setattr(member, "_MOST_AT_ONCE", 100)
    monkeypatch.setattr(member, "_BLOCK", 64)
    by_blocks = Projection.fit(x, 5, whitening=whitening)
    for name in ("mean", "scale", "components"):
        np.testing.assert_allclose(getattr(by_blocks, name), getattr(at_once, name), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(by_blocks(x).numpy(), found, rtol=1e-3, atol=1e-4)
