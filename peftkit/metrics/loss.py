"""Loss per target: the sum of all rows' losses over the number of their targets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from peftkit.metrics.base import Metric


class Loss(Metric, name="loss"):
    """Loss per target, summed without rounding, so that no order of the rows changes its last digit."""

    needs: ClassVar[tuple[str, ...]] = ("loss", "targets")
    higher_is_better: ClassVar[bool] = False

    def compute(self, records: Sequence[dict[str, Any]]) -> dict[str, float]:
        targets = sum(record["targets"] for record in records)
        return {"loss": math.fsum(record["loss"] for record in records) / targets if targets else math.nan}
