"""What was taken for what: the confusion matrix, and Matthews' correlation, which is one number of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar

from peftkit.metrics.base import LabelsAre, Record
from peftkit.metrics.labels import is_several, one
from peftkit.metrics.tally import Tally


class Confusion(Tally, name="confusion"):
    """Rows by true and predicted label, as `confusion/TRUE/PREDICTED`; cells without rows are left out.

    Where rows have several labels, each label has `confusion/LABEL/right`, `/wrong` (predicted but not so) and `/missed`.
    """

    needs: ClassVar[tuple[str, ...]] = ("label", "prediction")
    estimates: ClassVar[bool] = False

    def count(self, record: Record) -> Mapping[Any, float]:
        label, said = record["label"], record["prediction"]
        if label is None:
            return {}
        if not is_several(label):
            return {(label, said): 1}
        true, said = set(label), set(said)
        kinds = {"right": true & said, "wrong": said - true, "missed": true - said}
        return {(name, kind): 1 for kind, names in kinds.items() for name in names}

    def of(self, sums: Mapping[Any, float]) -> dict[str, float]:
        return {f"{self.name}/{true}/{said}": rows for (true, said), rows in sorted(sums.items())}


class MatthewsCorrelation(Tally, name="mcc"):
    """Correlation of true and predicted labels (Matthews, 1975), from -1 to 1: fair to labels of very unlike sizes."""

    needs: ClassVar[tuple[str, ...]] = ("label", "prediction")
    labels_are: ClassVar[tuple[LabelsAre, ...]] = ("a name",)

    def count(self, record: Record) -> Mapping[Any, float]:
        label = one(self, record["label"])
        return {} if label is None else {(label, record["prediction"]): 1}

    def of(self, sums: Mapping[Any, float]) -> dict[str, float]:
        """Gorodkin's form for any number of labels (2004); 0 where all rows or all predictions have one label."""
        true, said = Counter[str](), Counter[str]()
        for (label, prediction), rows in sums.items():
            true[label] += rows  # type: ignore[assignment]
            said[prediction] += rows  # type: ignore[assignment]
        rows = sum(sums.values())
        right = sum(n for (label, prediction), n in sums.items() if label == prediction)
        together = right * rows - sum(true[label] * said[label] for label in true)
        spread = (rows**2 - sum(n**2 for n in true.values())) * (rows**2 - sum(n**2 for n in said.values()))
        return {self.name: math.nan if not rows else together / math.sqrt(spread) if spread else 0.0}
