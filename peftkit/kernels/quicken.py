"""Everything that makes a model compute the same with less, hung on it as far as the settings ask and the model allows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from peftkit.config.speed import Speed
from peftkit.kernels.linear import hang_products
from peftkit.kernels.lora import hang_lora
from peftkit.tasks import Task


@dataclass
class Quickened:
    """What was hung on a model."""

    hooks: list[Any] = field(default_factory=list)
    """Handles; `remove` of all of them leaves the model as it was."""
    words: list[str] = field(default_factory=list)
    """For the header of a run: what is used, and why something is not."""

    def add(self, hung: tuple[list[Any], list[str]]) -> None:
        """Note what one of the parts has hung on it: its handles, and its words."""
        self.hooks += hung[0]
        self.words += hung[1]

    def remove(self) -> None:
        for handle in reversed(self.hooks):
            handle.remove()


def quicken(model: nn.Module, task: Task, speed: Speed) -> Quickened:
    """Hang on `model` what `speed` asks for. Call it when what trains is marked, and before DeepSpeed opens it.

    Raises ConfigError where a setting is `on` and the model does not allow it.
    """
    quick = Quickened()
    quick.add(hang_products(model, speed.way("kernels")))
    quick.add(hang_lora(model, speed.way("lora")))
    return quick
