"""Steps that are not taken: a loss or gradient that is NaN or infinite must move nothing, at any ZeRO stage.

DeepSpeed skips such a gradient at some stages and in some formats, and looks at no loss. What is here makes it skip: the
gradient is thrown away by DeepSpeed's own way of skipping a step, so that what it keeps between steps stays in order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from peftkit.engine.open import Engine
from peftkit.engine.statistics import statistics


def drop(engine: Engine) -> None:
    """Take no step, and throw away what the backward passes have left. All processes take part."""
    if not engine.zero:
        engine.deepspeed.zero_grad()
        return
    with _overflowing(engine):
        engine.deepspeed.step()


@contextmanager
def _overflowing(engine: Engine) -> Iterator[None]:
    """Meanwhile ZeRO takes any gradient for one that overflows."""
    wrapper = engine.deepspeed.optimizer
    said = _alarm(wrapper)
    before = {name: vars(wrapper)[name] for name in said if name in vars(wrapper)}
    vars(wrapper).update(said)
    try:
        yield
    finally:
        for name in said:
            vars(wrapper).pop(name)
        vars(wrapper).update(before)


def _alarm(wrapper: Any) -> dict[str, Any]:
    """Members of ZeRO's optimizer that let its next step find a gradient that is no number, and what they answer."""
    if hasattr(wrapper, "get_grads_for_norm"):  # stage 1 in bf16
        no_number = torch.tensor([math.nan], device=wrapper.fp32_groups_flat_partition[0].device)
        return {"get_grads_for_norm": lambda **_: ([no_number], {})}
    if hasattr(wrapper, "_get_norm_groups"):  # stage 3
        no_number = torch.tensor(math.nan, device=wrapper.device)
        return {"_get_norm_groups": lambda: [no_number]}
    return {"check_grad_overflow": True, "check_overflow": lambda **_: setattr(wrapper, "overflow", True)}


def kept_statistics(model: nn.Module) -> dict[str, Tensor]:
    """A copy of BatchNorm's running statistics: the forward pass has moved them before the loss is known."""
    return {name: buffer.clone() for name, buffer in statistics(model).items()}


def put_statistics(model: nn.Module, kept: dict[str, Tensor]) -> None:
    """Put the copy back."""
    for name, buffer in statistics(model).items():
        buffer.copy_(kept[name])


def weights_are_finite(engine: Engine) -> bool:
    """Whether what this process holds of the trained weights has numbers in it alone."""
    held = _parts(engine) if engine.zero == 3 else (flat for _, flats in engine.flats() for flat in flats)
    return all(bool(torch.isfinite(values).all()) for values in held)


def _parts(engine: Engine) -> Iterator[Tensor]:
    """This process's part of each weight at ZeRO-3, without what fills up the last part: that may hold anything."""
    from deepspeed.utils import safe_get_local_fp32_param

    for weight in engine.trained().values():
        size = weight.ds_tensor.numel()  # type: ignore[attr-defined]
        own = min(size, max(0, weight.ds_numel - size * dist.get_rank()))  # type: ignore[attr-defined]
        yield safe_get_local_fp32_param(weight).flatten()[:own]
