"""BatchNorm that keeps the statistics it came with, also while its model trains (ResNet, EfficientNet)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def hold_statistics(model: nn.Module) -> None:
    """Let every norm over the batch use its running statistics and leave them; its scale and shift may still train.

    In training mode such a norm takes the mean over the micro-batch, so a row's loss would hang on the rows beside it, and
    a step's on how it is split.
    """
    from torch.nn.modules.batchnorm import _NormBase

    for module in model.modules():
        if isinstance(module, _NormBase) and module.running_mean is not None:
            module.register_forward_pre_hook(_evaluate)


def _evaluate(norm: nn.Module, inputs: Any) -> None:
    norm.training = False
