"""Shares of rows that were labelled right: accuracy, balanced accuracy, and of several labels the Hamming loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from peftkit.metrics.base import LabelsAre, Record
from peftkit.metrics.labels import Ordered, is_several, one
from peftkit.metrics.tally import Tally, share


class Accuracy(Tally, name="accuracy"):
    """Share of the rows whose label was predicted; of rows with several labels, those with exactly the right ones."""

    needs: ClassVar[tuple[str, ...]] = ("label", "prediction")

    def count(self, record: Record) -> Mapping[Any, float]:
        label, prediction = record["label"], record["prediction"]
        if label is None:
            return {}
        right = set(label) == set(prediction) if is_several(label) else label == prediction
        return {"rows": 1, "right": right}

    def of(self, sums: Mapping[Any, float]) -> dict[str, float]:
        return {self.name: share(sums.get("right", 0), sums.get("rows", 0))}


class SubsetAccuracy(Accuracy, name="subset_accuracy"):
    """Share of the rows whose labels were predicted without one too many or too few; another name of accuracy."""


class BalancedAccuracy(Tally, name="balanced_accuracy"):
    """Mean over the labels of the share of their rows that was found: rare labels count as much as frequent ones."""

    needs: ClassVar[tuple[str, ...]] = ("label", "prediction")
    labels_are: ClassVar[tuple[LabelsAre, ...]] = ("a name",)

    def count(self, record: Record) -> Mapping[Any, float]:
        label = one(self, record["label"])
        return {} if label is None else {("rows", label): 1, ("right", label): label == record["prediction"]}

    def of(self, sums: Mapping[Any, float]) -> dict[str, float]:
        found = [sums.get(("right", key[1]), 0) / rows for key, rows in sums.items() if key[0] == "rows"]
        return {self.name: share(sum(found), len(found))}


class Hamming(Ordered, Tally, name="hamming"):
    """Hamming loss: the share of all yes-or-no decisions, one a row and label, that are wrong."""

    needs: ClassVar[tuple[str, ...]] = ("label", "prediction")
    higher_is_better: ClassVar[bool] = False

    def count(self, record: Record) -> Mapping[Any, float]:
        label, prediction = record["label"], record["prediction"]
        if label is None:
            return {}
        if not is_several(label):
            return {"rows": 1, "wrong": label != prediction}
        seen = {("label", name): 1.0 for name in {*label, *prediction}}
        return {"rows": 1, "several": 1, "wrong": len(set(label) ^ set(prediction)), **seen}

    def of(self, sums: Mapping[Any, float]) -> dict[str, float]:
        labels = len(self._labels) or sum(isinstance(key, tuple) for key in sums)
        each = max(1, labels) if sums.get("several") else 1
        return {self.name: share(sums.get("wrong", 0), sums.get("rows", 0) * each)}
