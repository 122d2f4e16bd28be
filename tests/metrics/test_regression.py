"""Errors and correlations are scikit-learn's and scipy's."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn

from peftkit.metrics import R2, MeanAbsoluteError, MeanSquaredError, Metric, Pearson, Spearman

ORACLES = {
    "mae": sklearn.mean_absolute_error,
    "mse": sklearn.mean_squared_error,
    "r2": sklearn.r2_score,
    "pearson": lambda true, said: stats.pearsonr(true, said).statistic,
    "spearman": lambda true, said: stats.spearmanr(true, said).statistic,
}


def rows(true, said):
    return [{"label": label, "prediction": value} for label, value in zip(true, said, strict=True)]


@pytest.mark.parametrize("name", ORACLES)
def test_of_one_number(name):
    generator = np.random.default_rng(0)
    true = generator.normal(size=40).round(1)  # with ties
    said = (true + generator.normal(size=40)).round(1)
    assert Metric.model_validate(name).compute(rows(true.tolist(), said.tolist())) == pytest.approx(
        {name: ORACLES[name](true, said)}
    )


@pytest.mark.parametrize("name", ORACLES)
def test_of_several_numbers_the_mean(name):
    generator = np.random.default_rng(1)
    true, said = generator.normal(size=(2, 40, 3))
    expected = np.mean([ORACLES[name](true[:, at], said[:, at]) for at in range(3)])
    assert Metric.model_validate(name).compute(rows(true.tolist(), said.tolist())) == pytest.approx({name: expected})


@pytest.mark.parametrize("name", ORACLES)
def test_no_known_number_and_a_diverged_model(name):
    metric = Metric.model_validate(name)
    assert math.isnan(metric.compute(rows([None], [1.0]))[name])
    assert math.isnan(metric.compute(rows([1.0, 2.0, 3.0], [1.0, math.nan, 2.0]))[name])
    assert metric.compute(rows([1.0, 2.0, 4.0, None], [1.0, 3.0, 2.0, 9.0])) == metric.compute(
        rows([1.0, 2.0, 4.0], [1.0, 3.0, 2.0])
    )


@pytest.mark.parametrize("metric", [Pearson(), Spearman()])
def test_what_does_not_vary_does_not_correlate(metric):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isnan(metric.compute(rows([0.1, 0.2, 0.3], [0.1, 0.1, 0.1]))[metric.name])
        assert math.isnan(metric.compute(rows([0.1], [0.1]))[metric.name])


def test_r2_of_equal_values_is_1_or_0_and_of_one_row_unknown():
    assert R2().compute(rows([2.0, 2.0], [2.0, 2.0])) == {"r2": 1}
    assert R2().compute(rows([2.0, 2.0], [2.0, 3.0])) == {"r2": 0}
    assert math.isnan(R2().compute(rows([2.0], [2.0]))["r2"])


def test_smaller_errors_are_better():
    assert not MeanAbsoluteError.higher_is_better
    assert not MeanSquaredError.higher_is_better
