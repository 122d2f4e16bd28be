"""Perplexity: e to the loss per target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from peftkit.metrics.base import Metric
from peftkit.metrics.loss import Loss


class Perplexity(Metric, name="perplexity"):
    """e to the loss per target; infinite where that is more than a number holds."""

    needs: ClassVar[tuple[str, ...]] = ("loss", "targets")
    higher_is_better: ClassVar[bool] = False

    def compute(self, records: Sequence[dict[str, Any]]) -> dict[str, float]:
        loss = Loss().compute(records)["loss"]
        try:
            return {"perplexity": math.exp(loss)}
        except OverflowError:
            return {"perplexity": math.inf}
