"""Metrics that are a formula over sums: each row counts something, the sums make the number."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from peftkit.metrics.base import Metric, Record


class Tally(Metric):
    """A metric whose rows are counted one by one.

    So a sample of the rows is scored from sums alone (`evaluation.bootstrap`), and no order of the rows changes a digit.
    """

    def count(self, record: Record) -> Mapping[Any, float]:
        """What this row adds, by any keys; nothing if its true answer is not known."""
        raise NotImplementedError

    def of(self, sums: Mapping[Any, float]) -> dict[str, float]:
        """The numbers of these sums, in which what was never counted is missing; NaN where there is nothing to divide by."""
        raise NotImplementedError

    def compute(self, records: Sequence[Record]) -> dict[str, float]:
        return self.of(add(self.count(record) for record in records))


def add(counts: Iterable[Mapping[Any, float]]) -> dict[Any, float]:
    """The sums by key, rounded once; keys that sum to zero are left out."""
    values: dict[Hashable, list[float]] = defaultdict(list)
    for count in counts:
        for key, value in count.items():
            values[key].append(value)
    return {key: total for key, found in values.items() if (total := math.fsum(found))}


def share(part: float, whole: float) -> float:
    """`part / whole`; NaN of nothing."""
    return part / whole if whole else math.nan
