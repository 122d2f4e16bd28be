"""Accuracy, F1 and Matthews' correlation of one label a row, as scikit-learn computes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from peftkit.metrics.base import Metric


class LabelMetric(Metric):
    """A number from the true and the predicted labels; rows without a true label are left out."""

    needs: ClassVar[tuple[str, ...]] = ("label", "prediction")

    def compute(self, records: Sequence[dict[str, Any]]) -> dict[str, float]:
        known = [record for record in records if record["label"] is not None]
        labels, predictions = ([record[name] for record in known] for name in self.needs)
        return {self.name: self.of(labels, predictions) if known else math.nan}

    def of(self, labels: list[str], predictions: list[str]) -> float:
        """The number itself."""
        raise NotImplementedError


class Accuracy(LabelMetric, name="accuracy"):
    """Share of the rows whose label was predicted."""

    def of(self, labels: list[str], predictions: list[str]) -> float:
        from sklearn.metrics import accuracy_score

        return float(accuracy_score(labels, predictions))


class F1(LabelMetric, name="f1"):
    """Harmonic mean of precision and recall."""

    average: Literal["macro", "micro", "weighted"] = "macro"
    """macro: every label counts alike; weighted: by its number of rows; micro: over all rows at once."""

    def of(self, labels: list[str], predictions: list[str]) -> float:
        from sklearn.metrics import f1_score

        return float(f1_score(labels, predictions, average=self.average, zero_division=0))


class MatthewsCorrelation(LabelMetric, name="mcc"):
    """Correlation of true and predicted labels (Matthews, 1975), from -1 to 1: fair to labels of very unlike sizes."""

    def of(self, labels: list[str], predictions: list[str]) -> float:
        from sklearn.metrics import matthews_corrcoef

        if len({*labels, *predictions}) == 1:
            return 0.0  # scikit-learn gives the same with a warning
        return float(matthews_corrcoef(labels, predictions))
