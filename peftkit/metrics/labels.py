"""What metrics of labels have in common: one label a row or several, and the order of the labels."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar, Self

from pydantic import PrivateAttr

from peftkit.errors import ConfigError
from peftkit.metrics.base import Metric, Record


class Ordered(Metric):
    """A metric that needs the task's labels in their order: that of `probabilities`."""

    needs: ClassVar[tuple[str, ...]] = ("label", "probabilities")

    _labels: tuple[str, ...] = PrivateAttr(default=())

    def fit(self, task: Any) -> Self:
        fitted = self.model_copy()
        fitted._labels = tuple(getattr(task, "labels", None) or ())
        return fitted

    def names(self, record: Record) -> tuple[str, ...]:
        """The labels in order; without any of the task's own the choices are numbered (multiple choice)."""
        return self._labels or tuple(map(str, range(len(record["probabilities"]))))

    def hits(self, record: Record) -> list[bool]:
        """For each label whether the row has it."""
        label, names = record["label"], self.names(record)
        true = set(label) if is_several(label) else {label}
        if unknown := true - set(names):
            raise ValueError(f"the labels {sorted(unknown)} are none of {list(names)}: Metric.fit(task) tells them")
        return [name in true for name in names]


def is_several(label: Any) -> bool:
    """Whether rows have several labels each, or none."""
    return isinstance(label, Collection) and not isinstance(label, str)


def one(metric: Metric, label: Any) -> Any:
    """The label of a row that has one; a metric that knows no others refuses several."""
    if is_several(label):
        raise ConfigError(
            f"--eval.metrics {metric.name} is of one label a row, and these rows have several;"
            " f1, precision, recall, accuracy, hamming, roc_auc and pr_auc take those too"
        )
    return label
