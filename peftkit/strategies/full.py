"""Full fine-tuning: every weight trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftkit.models.inspect import places
from peftkit.strategies.freezing import Freezing

if TYPE_CHECKING:
    from torch import nn


class Full(Freezing, name="full"):
    """Every weight trains, except those that the architecture itself holds fixed."""

    def names(self, model: nn.Module) -> set[str]:
        return set(places(model))
