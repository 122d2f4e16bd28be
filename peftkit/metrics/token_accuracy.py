"""Share of the targets that were the model's likeliest token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from peftkit.metrics.base import Record
from peftkit.metrics.tally import Tally, share


class TokenAccuracy(Tally, name="token_accuracy"):
    """Share of the target tokens that the model put first, given the right ones before them."""

    needs: ClassVar[tuple[str, ...]] = ("correct", "targets")

    def count(self, record: Record) -> Mapping[Any, float]:
        return {name: record[name] for name in self.needs}

    def of(self, sums: Mapping[Any, float]) -> dict[str, float]:
        return {self.name: share(sums.get("correct", 0), sums.get("targets", 0))}
