"""Everything that makes a model compute the same with less, hung on it as far as the settings ask and the model allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from peftkit.config.speed import Speed
from peftkit.errors import ConfigError
from peftkit.kernels.fused import hang_compiled, hang_liger
from peftkit.kernels.head import hang_head
from peftkit.kernels.linear import hang_products
from peftkit.kernels.lora import hang_lora
from peftkit.kernels.norm import hang_norms
from peftkit.tasks import Task

Run = Callable[[], Any]
"""A forward pass of the model over a few rows."""


@dataclass
class Quickened:
    """What was hung on a model."""

    hooks: list[Any] = field(default_factory=list)
    """Handles; `remove` of all of them leaves the model as it was."""
    words: list[str] = field(default_factory=list)
    """For the header of a run: what is used, and why something is not."""
    proofs: list[Callable[[Run], None]] = field(default_factory=list)
    """What has to be seen on the model itself, once it can compute."""

    def prove(self, run: Run) -> None:
        """Let `run` show that the model still computes the same; what does not is taken off. ConfigError if it was asked for."""
        while self.proofs:
            self.proofs.pop(0)(run)

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
    quick.add(hang_head(model, task, speed.way("head")))  # before the other linear layers get their products
    quick.add(hang_products(model, speed.way("kernels")))
    quick.add(hang_lora(model, speed.way("lora")))
    quick.add(hang_liger(model, speed.way("liger")))
    quick.add(hang_compiled(model, speed.compile))
    quick.add(hang_norms(model, speed.way("norm")))
    if speed.way("unpad") != "off":
        without_padding(quick, model, speed)
    return quick


def without_padding(quick: Quickened, model: nn.Module, speed: Speed) -> None:
    """Layers that see no padding, where a pass over a few rows shows that they compute the same."""
    from peftkit.kernels.unpadded import disagreement, unpad, why_not

    def refuse(why: str) -> None:
        if speed.unpad == "on":
            raise ConfigError(f"--speed.unpad on: the layers cannot go without padding: {why}")
        quick.words.append(f"layers see padded rows: {why}")

    def prove(run: Run) -> None:
        if why := disagreement(hung, run):
            hung.remove()
            refuse(why)
        elif hung.whole:
            quick.words.append(f"layers see no padding, but those of {', '.join(hung.whole)}, which are told of none")
        else:
            quick.words.append("layers see no padding: 100% of what they compute is useful tokens")

    if why := why_not(model):
        refuse(why)
        return
    hung = unpad(model, proven=False)
    quick.hooks.append(hung)
    quick.proofs.append(prove)
