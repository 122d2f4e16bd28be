"""Optimizers, and the parameter groups that they are given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field, NonNegativeFloat, PositiveFloat

from peftkit.config.section import Choice

Beta = Annotated[float, Field(ge=0, lt=1)]


class Optimizer(Choice, kind="optimizer", default="adamw"):
    """How a gradient becomes an update. Settings that all share stand here; each adds its own."""

    splits_anywhere: ClassVar[bool] = True
    """Whether its state is elementwise, so that ZeRO may cut it at any element."""

    lr: PositiveFloat = 2e-4
    """Peak learning rate."""
    weight_decay: NonNegativeFloat = 0.0
    """Decay of the weights; biases and the weights of norms are left out of it."""
    lr_by_name: dict[str, PositiveFloat] = {}
    """Learning rates of their own: a regular expression found in the parameter's name -> its peak rate, e.g. {lora_B: 3.2e-3}."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Each layer further from the output learns at this share of the next one's rate."""
    clip: NonNegativeFloat = 1.0
    """The gradient's norm is cut to this; 0 turns it off."""

    def build(self, groups: Sequence[dict[str, Any]]) -> Any:
        """The torch optimizer over `groups` (each has `params`, `lr`, `weight_decay`)."""
        raise NotImplementedError


class AdamW(Optimizer, name="adamw"):
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2017, https://arxiv.org/abs/1711.05101)."""

    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay rates of the running means of the gradient and of its square."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator."""

    def build(self, groups: Sequence[dict[str, Any]]) -> Any:
        import torch

        return torch.optim.AdamW(groups, betas=self.betas, eps=self.eps)
