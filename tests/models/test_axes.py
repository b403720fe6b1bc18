"""Leading principal axes against a full singular value decomposition."""

import numpy as np
import pytest

from histoflow.models.axes import axes_of_products, leading_axes


@pytest.mark.parametrize("shape", [(50, 12), (12, 50)])
def test_they_are_those_of_the_whole_decomposition(shape):
    x = np.random.default_rng(0).normal(size=shape) * np.geomspace(5, 0.5, shape[1])
    values, rows = leading_axes(x, 5)
    _, wanted_values, wanted = np.linalg.svd(x, full_matrices=False)
    np.testing.assert_allclose(values, wanted_values[:5], rtol=1e-10)
    np.testing.assert_allclose(np.abs(rows @ wanted[:5].T), np.eye(5), atol=1e-9)
    assert (rows[np.arange(5), np.abs(rows).argmax(axis=1)] > 0).all()
    for one, other in zip(axes_of_products(x.T @ x, 5), (values, rows), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9)


@pytest.mark.parametrize("shape", [(50, 12), (12, 50)])
def test_there_are_no_more_than_the_rows_span(shape):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(shape[0], 3)) @ rng.normal(size=(3, shape[1]))
    values, rows = leading_axes(x, 100)
    assert len(values) == len(rows) == 3
    np.testing.assert_allclose(x @ rows.T @ rows, x, atol=1e-9)


@pytest.mark.parametrize("shape", [(50, 12), (12, 50)])
def test_of_nothing_one_axis_is_left(shape):
    values, rows = leading_axes(np.zeros(shape), 4)
    assert values.tolist() == [0.0]
    assert rows.shape == (1, shape[1])
    assert np.isfinite(rows).all()
