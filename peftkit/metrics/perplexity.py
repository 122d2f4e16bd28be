"""Perplexity: e to the loss per target."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from peftkit.metrics.loss import Loss


class Perplexity(Loss, name="perplexity"):
    """e to the loss per target; infinite where that is more than a number holds."""

    def of(self, sums: Mapping[Any, float]) -> dict[str, float]:
        loss = super().of(sums)[self.name]
        try:
            return {self.name: math.exp(loss)}
        except OverflowError:
            return {self.name: math.inf}
