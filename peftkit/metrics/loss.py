"""Loss per target: the sum of all rows' losses over the number of their targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from peftkit.metrics.base import Record
from peftkit.metrics.tally import Tally, share


class Loss(Tally, name="loss"):
    """Loss per target, summed without rounding, so that no order of the rows changes its last digit."""

    needs: ClassVar[tuple[str, ...]] = ("loss", "targets")
    higher_is_better: ClassVar[bool] = False

    def count(self, record: Record) -> Mapping[Any, float]:
        return {name: record[name] for name in self.needs}

    def of(self, sums: Mapping[Any, float]) -> dict[str, float]:
        return {self.name: share(sums.get("loss", 0), sums.get("targets", 0))}
