"""A pull of the weights back to those that they started from: L2-SP (Li et al., 2018, https://arxiv.org/abs/1802.01483)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from peftkit.engine.average import after_each_step
from peftkit.engine.open import Engine

START = "start"
"""The name of the first weights among a parameter's optimizer state."""


def pull_back(engine: Engine, strength: float) -> None:
    """After every step from now on, `w -= rate * strength * (w - start)`: decoupled, as AdamW's decay is.

    `start` is what a weight was before the first step that moved it: the base's value, or what a new head began with. It
    is kept with the optimizer's state, so a resumed run pulls to the same place.
    """
    begun: dict[Tensor, Tensor] = {}

    def remember(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            for weight in group["params"]:
                if weight.grad is not None and START not in optimizer.state.get(weight, {}):
                    begun[weight] = weight.detach().clone()

    @torch.no_grad()
    def pull(weight: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if weight in begun:
            state[START] = begun.pop(weight)
        weight.lerp_(state[START], group["lr"] * strength)

    engine.torch_optimizer.register_step_pre_hook(remember)
    after_each_step(engine.torch_optimizer, pull)
