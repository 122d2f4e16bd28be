"""How well the probabilities put the rows that have a label before those that do not: ROC-AUC and PR-AUC."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

from peftkit.metrics.base import Record
from peftkit.metrics.labels import Ordered, is_several

T = TypeVar("T")


class Ranking(Ordered):
    """A mean over the labels, each against the rest; of two labels only the second, which stands for yes.

    A label that all the rows have, or none, has no order to be judged and is left out; with none left the number is NaN.
    """

    detail: bool = False
    """Also each label by itself: `NAME/LABEL`."""

    def compute(self, records: Sequence[Record]) -> dict[str, float]:
        known = [record for record in records if record["label"] is not None]
        by_label = dict(self._by_label(known)) if known else {}
        found = [value for value in by_label.values() if not math.isnan(value)]
        numbers = {self.name: sum(found) / len(found) if found else math.nan}
        return numbers | ({f"{self.name}/{name}": value for name, value in by_label.items()} if self.detail else {})

    def _by_label(self, known: Sequence[Record]) -> list[tuple[str, float]]:
        names = self.names(max(known, key=lambda record: len(record["probabilities"])))
        wanted = range(len(names)) if len(names) != 2 or is_several(known[0]["label"]) else (1,)
        truths = [self.hits(record) for record in known]
        said = [record["probabilities"] for record in known]
        return [(names[at], self._one(_column(truths, at, False), _column(said, at, 0.0))) for at in wanted]

    def _one(self, truth: list[bool], scores: list[float]) -> float:
        if len(set(truth)) < 2 or any(math.isnan(score) for score in scores):
            return math.nan
        return self.of(truth, scores)

    def of(self, truth: list[bool], scores: list[float]) -> float:
        """The number of one label."""
        raise NotImplementedError


def _column(rows: Sequence[Sequence[T]], at: int, none: T) -> list[T]:
    """A label's values; rows of multiple choice may have fewer choices than others."""
    return [row[at] if at < len(row) else none for row in rows]


class RocAuc(Ranking, name="roc_auc"):
    """Area under the ROC curve: the chance that a row with the label scores higher than one without; 0.5 is guessing."""

    def of(self, truth: list[bool], scores: list[float]) -> float:
        from sklearn.metrics import roc_auc_score

        return float(roc_auc_score(truth, scores))


class PrAuc(Ranking, name="pr_auc"):
    """Area under precision over recall (average precision): for rare labels; guessing gives the label's share of rows."""

    def of(self, truth: list[bool], scores: list[float]) -> float:
        from sklearn.metrics import average_precision_score

        return float(average_precision_score(truth, scores))
