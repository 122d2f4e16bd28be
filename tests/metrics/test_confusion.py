"""The confusion matrix and Matthews' correlation are scikit-learn's."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from sklearn import metrics as sklearn

from peftkit.metrics import Confusion, MatthewsCorrelation
from tests.metrics.labelled import LABELS, indicators, label_sets, labelled, pairs


@pytest.mark.filterwarnings("ignore:A single label was found")
@given(pairs)
def test_of_one_label(found):
    true, said = zip(*found, strict=True)
    numbers = Confusion().compute(labelled(found))
    matrix = [[numbers.get(f"confusion/{label}/{other}", 0) for other in LABELS] for label in LABELS]
    np.testing.assert_array_equal(matrix, sklearn.confusion_matrix(true, said, labels=LABELS))
    mcc = sklearn.matthews_corrcoef(true, said)
    assert MatthewsCorrelation().compute(labelled(found))["mcc"] == pytest.approx(mcc, abs=1e-12)


@given(label_sets)
def test_of_several_labels(found):
    numbers = Confusion().compute(labelled(found))
    for label, matrix in zip(LABELS, sklearn.multilabel_confusion_matrix(*indicators(found)), strict=True):
        (_, wrong), (missed, right) = matrix.tolist()
        counted = [numbers.get(f"confusion/{label}/{kind}", 0) for kind in ("right", "wrong", "missed")]
        assert counted == [right, wrong, missed]


def test_one_label_alone_has_no_correlation_and_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert MatthewsCorrelation().compute(labelled([("a", "a"), ("a", "a")])) == {"mcc": 0}
        assert MatthewsCorrelation().compute(labelled([("a", "a"), ("b", "a")])) == {"mcc": 0}


def test_without_known_labels_there_is_nothing():
    assert Confusion().compute(labelled([(None, "a")])) == {}
    assert math.isnan(MatthewsCorrelation().compute(labelled([(None, "a")]))["mcc"])
