"""Share of the targets that were the model's likeliest token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from peftkit.metrics.base import Metric


class TokenAccuracy(Metric, name="token_accuracy"):
    """Share of the target tokens that the model put first, given the right ones before them."""

    needs: ClassVar[tuple[str, ...]] = ("correct", "targets")

    def compute(self, records: Sequence[dict[str, Any]]) -> dict[str, float]:
        targets = sum(record["targets"] for record in records)
        return {"token_accuracy": sum(record["correct"] for record in records) / targets if targets else math.nan}
