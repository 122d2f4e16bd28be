"""Precision, recall and their harmonic mean F1, of one label a row or of several."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from peftkit.metrics.base import Record
from peftkit.metrics.labels import is_several
from peftkit.metrics.tally import Tally

Average = Literal["macro", "micro", "weighted"]


@dataclass(frozen=True)
class Hits:
    """How often something was found rightly, said wrongly, or missed."""

    right: float = 0
    wrong: float = 0
    missed: float = 0

    @property
    def precision(self) -> float:
        return self._of(self.right + self.wrong)

    @property
    def recall(self) -> float:
        return self._of(self.right + self.missed)

    @property
    def f1(self) -> float:
        return 2 * self.right / (2 * self.right + self.wrong + self.missed)

    def _of(self, whole: float) -> float:
        # As scikit-learn with zero_division=0: a label that is never predicted has a precision of 0.
        return self.right / whole if whole else 0.0


def hits(sums: Mapping[Any, float]) -> dict[str, Hits]:
    """By label, sorted; of labels that occur or are predicted (any other says nothing and is left out)."""
    labels = sorted({label for _, label in sums})
    kinds = ("right", "wrong", "missed")
    return {label: Hits(*(sums.get((kind, label), 0) for kind in kinds)) for label in labels}


def average(of: str, by_label: Mapping[str, Hits], how: Average) -> float:
    """Precision, recall or f1 (`of`) over all labels; NaN if there are none."""
    if not by_label:
        return math.nan
    found = list(by_label.values())
    if how == "micro":
        total: float = getattr(pooled(by_label), of)
        return total
    weights = [1.0 if how == "macro" else one.right + one.missed for one in found]
    weighed = math.fsum(weight * getattr(one, of) for weight, one in zip(weights, found, strict=True))
    return weighed / sum(weights) if sum(weights) else 0.0


def pooled(by_label: Mapping[str, Hits]) -> Hits:
    """All labels as if they were one."""
    found = by_label.values()
    return Hits(sum(one.right for one in found), sum(one.wrong for one in found), sum(one.missed for one in found))


def compared(true: set[Any], said: set[Any]) -> dict[tuple[str, Any], float]:
    """What is in both, what was said wrongly, and what was missed, as a tally's keys."""
    kinds = {"right": true & said, "wrong": said - true, "missed": true - said}
    return {(kind, label): 1.0 for kind, labels in kinds.items() for label in labels}


class F1(Tally, name="f1"):
    """Harmonic mean of precision and recall."""

    needs: ClassVar[tuple[str, ...]] = ("label", "prediction")

    average: Average = "macro"
    """macro: every label counts alike; weighted: by its number of rows; micro: over all rows at once."""
    detail: bool = False
    """Also each of the averages and each label by itself: `f1/micro`, `f1/LABEL`."""

    def count(self, record: Record) -> Mapping[Any, float]:
        label, prediction = record["label"], record["prediction"]
        if label is None:
            return {}
        return compared(set(label), set(prediction)) if is_several(label) else compared({label}, {prediction})

    def of(self, sums: Mapping[Any, float]) -> dict[str, float]:
        by_label = hits(sums)
        numbers = {self.name: average(self.name, by_label, self.average)}
        if self.detail:
            ways: tuple[Average, ...] = ("macro", "micro", "weighted")
            numbers |= {f"{self.name}/{how}": average(self.name, by_label, how) for how in ways}
            numbers |= {f"{self.name}/{label}": getattr(one, self.name) for label, one in by_label.items()}
        return numbers


class Precision(F1, name="precision"):
    """Share of what was predicted that is right; 0 for a label that is never predicted."""


class Recall(F1, name="recall"):
    """Share of what is true that was predicted; 0 for a label that is predicted but never occurs."""
