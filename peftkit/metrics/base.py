"""What every metric answers: one or more numbers from all the records of a split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

from peftkit.config.section import Choice


class Metric(Choice, kind="metric", default="loss"):
    """How a split is scored. It sees every record of the split exactly once, in the split's order, in any world."""

    needs: ClassVar[tuple[str, ...]] = ()
    """The keys that it reads of each record."""
    higher_is_better: ClassVar[bool] = True

    def fit(self, task: Any) -> Self:
        """This metric with what it must know of the task (the order of its labels); the same object if nothing."""
        return self

    def compute(self, records: Sequence[dict[str, Any]]) -> dict[str, float]:
        """Its numbers by name; the first is the one that `--eval.best` compares when it is called by the metric's name."""
        raise NotImplementedError
