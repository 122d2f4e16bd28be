"""Precision, recall and F1 are scikit-learn's, in every average, of one label and of several."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from sklearn import metrics as sklearn

from peftkit.metrics import F1, Precision, Recall
from tests.metrics.labelled import LABELS, indicators, label_sets, labelled, pairs

AVERAGES = ("macro", "micro", "weighted")
ORACLES = {F1: sklearn.f1_score, Precision: sklearn.precision_score, Recall: sklearn.recall_score}


@given(pairs)
def test_of_one_label(found):
    true, said = zip(*found, strict=True)
    seen = sorted({*true, *said})
    for metric, oracle in ORACLES.items():
        name = metric.name
        alone = dict(zip(seen, oracle(true, said, average=None, zero_division=0, labels=seen), strict=True))
        expected = {f"{name}/{label}": value for label, value in alone.items()}
        expected |= {f"{name}/{how}": oracle(true, said, average=how, zero_division=0) for how in AVERAGES}
        for how in AVERAGES:
            numbers = metric(average=how, detail=True).compute(labelled(found))
            assert numbers == pytest.approx({name: expected[f"{name}/{how}"], **expected})
            assert metric(average=how).compute(labelled(found)) == {name: numbers[name]}


@given(label_sets)
def test_of_several_labels(found):
    true, said = indicators(found)
    seen = [at for at in range(len(LABELS)) if true[:, at].any() or said[:, at].any()]
    for metric, oracle in ORACLES.items():
        for how in AVERAGES if seen else ():
            expected = oracle(true, said, average=how, zero_division=0, labels=seen)
            assert metric(average=how).compute(labelled(found)) == pytest.approx({metric.name: expected})


def test_a_label_that_is_never_predicted_has_a_precision_of_0():
    records = labelled([("a", "a"), ("b", "a")])
    assert Precision(detail=True).compute(records)["precision/b"] == 0
    assert Precision().compute(records) == {"precision": 0.25}


@pytest.mark.parametrize("metric", [F1(), Precision(), Recall(), F1(average="weighted"), F1(average="micro")])
def test_without_any_label_there_is_no_number(metric):
    for records in (labelled([]), labelled([(None, "a")]), labelled([([], [])])):
        assert math.isnan(metric.compute(records)[metric.name])
