"""Packed numbers come back within half a step, column by column."""

from base64 import b64decode

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from histoflow._errors import NotFiniteError, ShapeError
from histoflow.bench.report.packing import pack


def unpack(packed) -> np.ndarray:
    """What the page does."""
    codes = np.frombuffer(b64decode(packed["data"]), dtype={8: "u1", 16: "<u2"}[packed["bits"]])
    return np.array(packed["low"]) + np.array(packed["step"]) * codes.reshape(-1, packed["n"]).T


@given(
    arrays(float, array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.floats(-1e3, 1e3)),
    st.sampled_from([8, 16]),
)
def test_numbers_come_back_within_half_a_step(values, bits):
    half = (values.max(axis=0) - values.min(axis=0)) / (2**bits - 1) / 2
    assert (np.abs(unpack(pack(values, bits)) - values) <= half + 1e-5).all()


def test_ends_of_a_column_are_exact_and_a_constant_stays():
    values = np.array([[0.0, 7.25], [1.5, 7.25], [6.0, 7.25]])
    back = unpack(pack(values, 8))
    np.testing.assert_allclose(back[[0, 2]], values[[0, 2]], rtol=1e-8)
    np.testing.assert_array_equal(back[:, 1], 7.25)


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(ShapeError, match=r"got \(3,\)"):
        pack([1.0, 2.0, 3.0])
    with pytest.raises(NotFiniteError, match="NaN or infinity"):
        pack([[1.0, np.nan]])
