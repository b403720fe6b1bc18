"""Metrics per gene: equal to scipy and scikit-learn, invariant where they should be, NaN without a warning."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats as scipy_stats
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score

from histoflow._errors import NotFiniteError, ShapeError
from histoflow.stats import (
    mean_with_nan_as_zero,
    mse_skill,
    partial_pearson,
    pearson,
    spearman,
    variance_ratio,
)
from histoflow.stats.metrics import moran

RNG = np.random.default_rng(0)
DEPTH = RNG.normal(size=40)
MEASURED = RNG.poisson(np.exp(0.5 * DEPTH)[:, None] * [0.3, 1, 3, 9, 30]).astype(float)
PREDICTED = 0.3 * MEASURED + RNG.normal(size=MEASURED.shape)
COUNTS = st.integers(0, 5).map(float)  # few values: many ties and many constant genes
PAIR = arrays(float, (2, 8, 3), elements=COUNTS)
PER_GENE = [
    pearson,
    spearman,
    variance_ratio,
    lambda m, p: mse_skill(m, p, baseline=np.full(m.shape[1], 1.25)),
    lambda m, p: partial_pearson(m, p, covariate=np.arange(len(m)) ** 2),
]


def gene_by_gene(function, measured=MEASURED, predicted=PREDICTED):
    return [function(m, p) for m, p in zip(measured.T, predicted.T, strict=True)]


def residual(values):
    return values - LinearRegression().fit(DEPTH[:, None], values).predict(DEPTH[:, None])


def test_pearson_is_scipys():
    oracle = gene_by_gene(lambda m, p: scipy_stats.pearsonr(m, p).statistic)
    np.testing.assert_allclose(pearson(MEASURED, PREDICTED), oracle, rtol=1e-12)


def test_spearman_with_ties_is_scipys():
    assert len(np.unique(MEASURED[:, 0])) < 5
    oracle = gene_by_gene(lambda m, p: scipy_stats.spearmanr(m, p).statistic)
    np.testing.assert_allclose(spearman(MEASURED, PREDICTED), oracle, rtol=1e-12)


def test_partial_pearson_is_the_correlation_of_regression_residuals():
    oracle = gene_by_gene(lambda m, p: scipy_stats.pearsonr(residual(m), residual(p)).statistic)
    np.testing.assert_allclose(partial_pearson(MEASURED, PREDICTED, covariate=DEPTH), oracle, rtol=1e-10)


def test_skill_against_the_own_mean_is_r_squared():
    oracle = gene_by_gene(r2_score)
    np.testing.assert_allclose(mse_skill(MEASURED, PREDICTED, baseline=MEASURED.mean(axis=0)), oracle, rtol=1e-12)


def test_skill_is_one_for_the_truth_and_zero_for_the_baseline():
    baseline = np.linspace(0, 3, 5)
    np.testing.assert_array_equal(mse_skill(MEASURED, MEASURED, baseline=baseline), np.ones(5))
    repeated = np.broadcast_to(baseline, MEASURED.shape)
    np.testing.assert_array_equal(mse_skill(MEASURED, repeated, baseline=baseline), np.zeros(5))


def test_variance_ratio_is_the_squared_scale():
    np.testing.assert_allclose(variance_ratio(MEASURED, 7 - 0.5 * MEASURED), np.full(5, 0.25))


@given(pair=PAIR, scale=st.floats(0.01, 100), shift=st.floats(-100, 100))
def test_pearson_ignores_a_positive_scale_and_a_shift(pair, scale, shift):
    measured, predicted = pair
    expected = pearson(measured, predicted)
    np.testing.assert_allclose(pearson(measured, scale * predicted + shift), expected, atol=1e-9)
    np.testing.assert_allclose(pearson(-scale * measured + shift, predicted), -expected, atol=1e-9)


@given(pair=PAIR)
def test_spearman_ignores_an_increasing_map(pair):
    measured, predicted = pair
    np.testing.assert_array_equal(spearman(measured, np.exp(predicted)), spearman(measured, predicted))


@given(pair=PAIR, scale=st.floats(-10, 10))
def test_partial_pearson_ignores_what_the_covariate_adds(pair, scale):
    measured, predicted = pair
    covariate = np.arange(8) ** 2.0
    np.testing.assert_allclose(
        partial_pearson(measured, predicted + scale * covariate[:, None], covariate=covariate),
        partial_pearson(measured, predicted, covariate=covariate),
        atol=1e-8,
    )


@pytest.mark.parametrize("metric", PER_GENE)
@given(pair=PAIR, order=st.permutations(range(3)))
def test_genes_are_independent_and_in_order(metric, pair, order):
    measured, predicted = pair
    reordered = metric(measured[:, order], predicted[:, order])
    np.testing.assert_allclose(reordered, metric(measured, predicted)[order], atol=1e-12)


@pytest.mark.parametrize("metric", [pearson, spearman])
@given(pair=PAIR, spots=st.permutations(range(8)))
def test_order_of_spots_does_not_matter(metric, pair, spots):
    measured, predicted = pair
    np.testing.assert_allclose(metric(measured[spots], predicted[spots]), metric(measured, predicted), atol=1e-12)


@pytest.mark.parametrize("metric", [pearson, spearman])
def test_a_constant_gene_on_either_side_is_nan_and_leaves_the_others_alone(metric):
    measured, predicted = MEASURED.copy(), PREDICTED.copy()
    measured[:, 1], predicted[:, 3] = 0.1, 0.3
    expected = metric(MEASURED, PREDICTED)
    expected[[1, 3]] = np.nan
    np.testing.assert_array_equal(metric(measured, predicted), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_variation_in_the_last_place_is_no_variation(dtype):
    predicted = np.full(MEASURED.shape, 3.3, dtype=dtype)
    predicted[::2] = np.nextafter(predicted[::2], dtype(4))
    assert np.isnan(pearson(MEASURED, predicted)).all()


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_pearson_neither_overflows_nor_vanishes(scale):
    np.testing.assert_allclose(pearson(scale * MEASURED, PREDICTED), pearson(MEASURED, PREDICTED), rtol=1e-10)


@pytest.mark.parametrize("metric", PER_GENE[:3] + PER_GENE[4:])
def test_one_spot_gives_nan(metric):
    assert np.isnan(metric(MEASURED[:1], PREDICTED[:1])).all()


def test_skill_is_nan_where_the_baseline_is_right_to_within_rounding():
    measured = np.full((3, 2), 0.1)
    skill = mse_skill(measured, measured + 1, baseline=[0.1, np.nextafter(0.1, 1)])
    assert np.isnan(skill).all()


def test_variance_ratio_of_a_constant_measurement_is_nan_and_of_a_constant_prediction_zero():
    constant = np.full_like(MEASURED, 0.1)
    assert np.isnan(variance_ratio(constant, PREDICTED)).all()
    np.testing.assert_allclose(variance_ratio(MEASURED, constant), 0, atol=1e-25)


def test_partial_pearson_is_nan_for_a_gene_that_is_the_covariate():
    predicted = PREDICTED.copy()
    predicted[:, 2] = 3 * DEPTH - 1
    assert np.isnan(partial_pearson(MEASURED, predicted, covariate=DEPTH)).tolist() == [
        False,
        False,
        True,
        False,
        False,
    ]


def test_a_constant_covariate_explains_nothing():
    np.testing.assert_allclose(
        partial_pearson(MEASURED, PREDICTED, covariate=np.full(40, 0.1)), pearson(MEASURED, PREDICTED), rtol=1e-12
    )


def test_moran_is_the_sum_over_pairs_of_its_definition():
    index, mask = RNG.integers(0, 40, (40, 4)), RNG.random((40, 4)) < 0.7
    values = MEASURED.copy()
    values[:, 1] = 0.1
    expected = []
    for gene in values.T:
        centred = gene - gene.mean()
        pairs = [centred[i] * centred[j] for i in range(40) for j, real in zip(index[i], mask[i], strict=True) if real]
        expected.append(np.nan if np.ptp(gene) == 0 else 40 / mask.sum() * sum(pairs) / (centred**2).sum())
    np.testing.assert_allclose(moran(values, index, mask), expected, atol=1e-12)
    assert np.isnan(moran(values, index, np.zeros_like(mask))).all()


def test_nan_genes_count_as_zero_and_are_counted():
    assert mean_with_nan_as_zero([0.6, np.nan, 0.3, np.nan]) == (pytest.approx(0.225), 2)
    assert mean_with_nan_as_zero([np.nan]) == (0.0, 1)


@pytest.mark.parametrize("metric", PER_GENE)
def test_inputs_stay_as_they_were(metric):
    measured, predicted = MEASURED.copy(), PREDICTED.copy()
    metric(measured, predicted)
    np.testing.assert_array_equal(measured, MEASURED)
    np.testing.assert_array_equal(predicted, PREDICTED)


@pytest.mark.parametrize("metric", PER_GENE)
def test_unequal_shapes_are_told(metric):
    with pytest.raises(ShapeError, match=r"measured has shape \(40, 5\) but predicted has \(40, 4\)"):
        metric(MEASURED, PREDICTED[:, :4])


@pytest.mark.parametrize("shape", [(5,), (0, 5)])
def test_what_is_no_table_of_spots_is_refused(shape):
    with pytest.raises(ShapeError, match=r"must have shape \(n_spots, n_genes\) with at least one spot"):
        pearson(np.zeros(shape), np.zeros(shape))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_counted(bad):
    predicted = PREDICTED.copy()
    predicted[3, 1] = bad
    with pytest.raises(NotFiniteError, match="predicted holds 1 NaN or infinite values of 200"):
        spearman(MEASURED, predicted)


def test_a_sparse_matrix_is_told_to_be_dense():
    from scipy.sparse import csr_matrix

    with pytest.raises(ShapeError, match="measured must be a dense array of numbers, got csr_matrix"):
        pearson(csr_matrix(MEASURED), PREDICTED)


def test_arguments_of_the_wrong_length_say_what_was_wanted():
    with pytest.raises(ShapeError, match=r"covariate must have one value per spot, shape \(40,\), got \(3,\)"):
        partial_pearson(MEASURED, PREDICTED, covariate=np.zeros(3))
    with pytest.raises(ShapeError, match=r"baseline must have one value per gene, shape \(5,\), got \(1,\)"):
        mse_skill(MEASURED, PREDICTED, baseline=[0.0])
    with pytest.raises(ShapeError, match=r"values must have shape \(n_genes,\) with at least one gene"):
        mean_with_nan_as_zero([])
