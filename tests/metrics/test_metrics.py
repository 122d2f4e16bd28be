"""Every metric is its definition on the whole split, whatever the order of the records."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn

from peftkit.metrics import F1, Accuracy, Loss, MatthewsCorrelation, Metric, Perplexity, TokenAccuracy

LABELS = ["a", "b", "c"]
pairs = st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS)), min_size=1, max_size=60)
token_rows = st.lists(st.tuples(st.floats(0, 1e6), st.integers(1, 50), st.integers(0, 50)), min_size=1, max_size=40)


def classified(found):
    return [{"label": label, "prediction": prediction} for label, prediction in found]


@pytest.mark.filterwarnings("ignore:A single label was found")
@given(pairs)
def test_classification_is_scikit_learns(found):
    labels, predictions = zip(*found, strict=True)
    records = classified(found)
    assert Accuracy().compute(records) == {"accuracy": sklearn.accuracy_score(labels, predictions)}
    assert MatthewsCorrelation().compute(records) == {"mcc": sklearn.matthews_corrcoef(labels, predictions)}
    for average in ("macro", "micro", "weighted"):
        expected = sklearn.f1_score(labels, predictions, average=average, zero_division=0)
        assert F1(average=average).compute(records) == {"f1": expected}


@given(token_rows, st.randoms())
def test_token_metrics_are_exact_in_any_order(rows, chance: random.Random):
    records = [{"loss": loss, "targets": n, "correct": min(n, right)} for loss, n, right in rows]
    shuffled = chance.sample(records, len(records))
    for metric in (Loss(), Perplexity(), TokenAccuracy()):
        assert metric.compute(shuffled) == metric.compute(records)


def test_token_metrics_weigh_rows_by_their_targets():
    records = [{"loss": 2.0, "targets": 1, "correct": 1}, {"loss": 2.0, "targets": 3, "correct": 0}]
    assert Loss().compute(records) == {"loss": 1.0}
    assert Perplexity().compute(records) == {"perplexity": math.e}
    assert TokenAccuracy().compute(records) == {"token_accuracy": 0.25}


def test_a_perplexity_beyond_all_numbers_is_infinite():
    assert Perplexity().compute([{"loss": 1e6, "targets": 1}]) == {"perplexity": math.inf}


@pytest.mark.parametrize("name", list(Metric.registry))
def test_a_split_without_records_has_no_number(name):
    metric = Metric.model_validate(name)
    assert [math.isnan(value) for value in metric.compute([]).values()] == [True]


def test_rows_without_a_label_are_not_scored():
    known = classified([("a", "a"), ("b", "a")])
    assert Accuracy().compute([*known, {"label": None, "prediction": "a"}]) == Accuracy().compute(known)
