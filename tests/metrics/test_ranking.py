"""ROC-AUC and PR-AUC are scikit-learn's, and say nothing where there is nothing to rank."""

from __future__ import annotations

import math
import warnings
from types import SimpleNamespace

import pytest
from sklearn import metrics as sklearn

from peftkit.metrics import PrAuc, RocAuc
from tests.metrics.labelled import LABELS, distributed

ORACLES = [(RocAuc, sklearn.roc_auc_score), (PrAuc, sklearn.average_precision_score)]


@pytest.mark.parametrize(("metric", "oracle"), ORACLES)
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_mean_over_the_labels(metric, oracle, several, seed):
    records, truth, said = distributed(seed, 50, LABELS, several)
    numbers = metric(detail=True).fit(SimpleNamespace(labels=LABELS)).compute(records)
    expected = {f"{metric.name}/{name}": oracle(truth[:, at], said[:, at]) for at, name in enumerate(LABELS)}
    assert numbers == pytest.approx({metric.name: oracle(truth, said, average="macro"), **expected})


@pytest.mark.parametrize(("metric", "oracle"), ORACLES)
def test_of_two_labels_the_second_is_yes(metric, oracle):
    records, truth, said = distributed(0, 40, ["no", "yes"])
    numbers = metric().fit(SimpleNamespace(labels=["no", "yes"])).compute(records)
    assert numbers == pytest.approx({metric.name: oracle(truth[:, 1], said[:, 1])})


@pytest.mark.parametrize("metric", [RocAuc, PrAuc])
def test_a_label_of_all_rows_or_none_is_left_out(metric):
    fitted = metric().fit(SimpleNamespace(labels=LABELS))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alone = [{"label": "a", "probabilities": [0.5, 0.3, 0.2]}] * 3
        assert math.isnan(fitted.compute(alone)[metric.name])
        rows = [*alone, {"label": "b", "probabilities": [0.1, 0.8, 0.1]}]
        assert fitted.compute(rows) == {metric.name: 1}
        assert math.isnan(fitted.compute([{"label": None, "probabilities": [1, 0, 0]}])[metric.name])


def test_probabilities_that_are_no_numbers_have_no_order():
    rows = [{"label": label, "probabilities": [math.nan, math.nan]} for label in "ab"]
    assert math.isnan(RocAuc().fit(SimpleNamespace(labels=["a", "b"])).compute(rows)["roc_auc"])


def test_choices_without_names_are_numbered():
    rows = [{"label": "0", "probabilities": [0.9, 0.1]}, {"label": "2", "probabilities": [0.2, 0.3, 0.5]}]
    assert RocAuc().fit(SimpleNamespace()).compute(rows) == {"roc_auc": 1}


def test_without_the_task_it_says_who_tells_the_labels():
    with pytest.raises(ValueError, match=r"\['a'\] are none of \['0', '1'\]: Metric.fit"):
        RocAuc().compute([{"label": "a", "probabilities": [0.9, 0.1]}])
