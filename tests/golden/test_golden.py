"""Results stay what they were: every case against the values kept beside it."""

import json

import numpy as np
import pytest
from tests.golden.cases import CASES, VALUES

KEPT = json.loads(VALUES.read_text())


def test_every_case_has_values():
    assert set(KEPT) == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_results_are_the_ones_that_were_kept(name):
    compute, relative = CASES[name]
    kept = np.array(KEPT[name])
    found = compute()
    assert found.shape == kept.shape
    np.testing.assert_allclose(found, kept, rtol=relative, atol=relative * np.abs(kept).max())
