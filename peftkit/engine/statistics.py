"""The running means and variances of BatchNorm (ResNet, EfficientNet): part of what is learnt, though no optimizer moves them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.hooks import RemovableHandle


def statistics(model: nn.Module) -> dict[str, Tensor]:
    """The running statistics that training moves, by name: those of the norms that train."""
    return {
        f"{path}.{name}" if path else name: buffer
        for path, norm in _norms(model)
        if _trains(norm, model)
        for name, buffer in norm.named_buffers(recurse=False)
    }


def hold_frozen(model: nn.Module) -> list[RemovableHandle]:
    """Let each norm whose weights are frozen use the statistics that it has, and leave them, also while the model trains.

    Removing the handles ends it.
    """

    def evaluate(norm: nn.Module, args: Any) -> None:
        norm.training = False

    return [norm.register_forward_pre_hook(evaluate) for _, norm in _norms(model) if not _trains(norm, model)]


@torch.no_grad()
def share_statistics(model: nn.Module) -> None:
    """Give all processes the mean of their running statistics: each has seen other rows. All processes take part.

    Done before each evaluation and each checkpoint, so a score does not depend on which process computes it.
    """
    for buffer in statistics(model).values():
        if buffer.is_floating_point():
            total = buffer.float()
            dist.all_reduce(total)
            buffer.copy_(total / dist.get_world_size())


def _norms(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, module in model.named_modules():
        if isinstance(module, _NormBase) and module.running_mean is not None:
            yield path, module


def _trains(norm: nn.Module, model: nn.Module) -> bool:
    """Whether its weights train; one without weights of its own moves only where the whole model does."""
    weights = list(norm.parameters(recurse=False)) or list(model.parameters())
    return all(weight.requires_grad for weight in weights)
