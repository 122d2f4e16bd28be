"""Log loss, Brier score and calibration error are scikit-learn's."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn import metrics as sklearn
from sklearn.calibration import calibration_curve

from peftkit.metrics import Brier, CalibrationError, LogLoss
from tests.metrics.labelled import LABELS, distributed

TASK = SimpleNamespace(labels=LABELS)


def expected_error(truth, said, bins):
    """From scikit-learn's reliability curve, each bin by its share of the rows."""
    right, mean = calibration_curve(truth, said, n_bins=bins)
    inner = np.linspace(0, 1, bins + 1)[1:-1]
    sizes = np.bincount(np.searchsorted(inner, said), minlength=bins)
    return float(abs(right - mean) @ sizes[sizes > 0] / len(said))


@pytest.mark.parametrize("labels", [["no", "yes"], LABELS])
@pytest.mark.parametrize("seed", range(3))
def test_of_one_label(labels, seed):
    records, truth, said = distributed(seed, 60, labels)
    task, numbers = SimpleNamespace(labels=labels), truth.argmax(1)
    assert LogLoss().fit(task).compute(records)["log_loss"] == pytest.approx(sklearn.log_loss(numbers, said))
    brier = sklearn.brier_score_loss(numbers, said[:, 1] if len(labels) == 2 else said, labels=range(len(labels)))
    assert Brier().fit(task).compute(records)["brier"] == pytest.approx(brier)
    error = expected_error(numbers == said.argmax(1), said.max(1), 10)
    assert CalibrationError(bins=10).fit(task).compute(records)["ece"] == pytest.approx(error)


@pytest.mark.parametrize("seed", range(3))
def test_of_several_labels_each_is_a_question(seed):
    records, truth, said = distributed(seed, 60, LABELS, several=True)
    flat, asked = truth.ravel(), said.ravel()
    assert LogLoss().fit(TASK).compute(records)["log_loss"] == pytest.approx(sklearn.log_loss(flat, asked))
    assert Brier().fit(TASK).compute(records)["brier"] == pytest.approx(sklearn.brier_score_loss(flat, asked))
    assert CalibrationError().fit(TASK).compute(records)["ece"] == pytest.approx(expected_error(flat, asked, 15))


def test_a_sure_mistake_costs_what_it_costs_in_scikit_learn():
    rows = [{"label": "a", "probabilities": [0.0, 1.0, 0.0]}, {"label": "b", "probabilities": [0.0, 1.0, 0.0]}]
    expected = sklearn.log_loss(["a", "b"], [row["probabilities"] for row in rows], labels=LABELS)
    assert LogLoss().fit(TASK).compute(rows)["log_loss"] == pytest.approx(expected)


@pytest.mark.parametrize("metric", [LogLoss(), Brier(), CalibrationError()])
def test_no_known_label_or_no_probability_is_no_number(metric):
    for label, probability in ((None, 0.5), ("a", math.nan)):
        rows = [{"label": label, "probabilities": [probability] * 3}]
        assert math.isnan(metric.fit(TASK).compute(rows)[metric.name])
