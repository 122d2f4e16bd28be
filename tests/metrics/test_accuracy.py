"""Accuracy, balanced accuracy and Hamming loss are scikit-learn's."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from hypothesis import given
from sklearn import metrics as sklearn

from peftkit.errors import ConfigError
from peftkit.metrics import Accuracy, BalancedAccuracy, Hamming, MatthewsCorrelation, SubsetAccuracy
from tests.metrics.labelled import LABELS, indicators, label_sets, labelled, pairs


@pytest.mark.filterwarnings("ignore:y_pred contains classes", "ignore:A single label")
@given(pairs)
def test_of_one_label(found):
    records, (true, said) = labelled(found), zip(*found, strict=True)
    assert Accuracy().compute(records) == {"accuracy": sklearn.accuracy_score(true, said)}
    assert SubsetAccuracy().compute(records) == {"subset_accuracy": sklearn.accuracy_score(true, said)}
    assert Hamming().compute(records)["hamming"] == pytest.approx(sklearn.hamming_loss(true, said))
    balanced = sklearn.balanced_accuracy_score(true, said)
    assert BalancedAccuracy().compute(records)["balanced_accuracy"] == pytest.approx(balanced)


@given(label_sets)
def test_of_several_labels(found):
    records, (true, said) = labelled(found), indicators(found)
    hamming = Hamming().fit(SimpleNamespace(labels=LABELS))
    assert Accuracy().compute(records) == {"accuracy": sklearn.accuracy_score(true, said)}
    assert hamming.compute(records)["hamming"] == pytest.approx(sklearn.hamming_loss(true, said))


def test_without_a_task_the_labels_are_those_that_are_seen():
    assert Hamming().compute(labelled([(["a"], ["a", "b"]), ([], [])])) == {"hamming": 0.25}
    assert Hamming().compute(labelled([([], [])])) == {"hamming": 0}


@pytest.mark.parametrize("metric", [BalancedAccuracy(), MatthewsCorrelation()])
def test_what_is_of_one_label_refuses_several(metric):
    with pytest.raises(ConfigError, match=f"--eval.metrics {metric.name} is of one label a row"):
        metric.compute(labelled([(["a"], ["a"])]))


@pytest.mark.parametrize("metric", [Accuracy(), SubsetAccuracy(), BalancedAccuracy(), Hamming()])
def test_rows_without_a_known_label_are_left_out(metric):
    known = labelled([("a", "a"), ("b", "a")])
    assert metric.compute([*known, *labelled([(None, "a")])]) == metric.compute(known)
    assert math.isnan(metric.compute(labelled([(None, "a")]))[metric.name])
