"""The optimizer in the backward pass: each weight moves as soon as its gradient is whole, which is let go (LOMO, Lv et al., 2023,
https://arxiv.org/abs/2306.09782). At no time are all gradients there: of full fine-tuning in fp32 a quarter less is held.

What asks for the whole gradient before anything moves cannot be had with it: clipping, a sum over processes or micro-batches,
and leaving a step whose gradient is no number. A loss that is none still moves nothing; such a gradient ends the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from peftkit.engine.ds_config import Config, offload_devices, stage_of
from peftkit.errors import ConfigError, NonFiniteError


def check_in_backward(config: Config, processes: int) -> None:
    """ConfigError for a filled configuration in which a weight's gradient is not whole, or not its own, in the backward pass."""
    found = list(_against(config, processes))
    if found:
        raise ConfigError(
            f"--optim.in_backward needs --deepspeed zero0, --precision fp32 and one process; here {', '.join(found)}"
        )


def _against(config: Config, processes: int) -> Iterator[str]:
    if stage_of(config):
        yield f"ZeRO's stage is {stage_of(config)}"
    for name in ("bf16", "fp16"):
        if config.get(name, {}).get("enabled", False) is True:
            yield f"the precision is {name}"
    if any(device != "none" for device in offload_devices(config)):
        yield "something is offloaded"
    if processes > 1:
        yield f"{processes} processes share a step"


class InBackward:
    """Hooks on the weights that an optimizer has; `remove` takes them off.

    >>> moving = InBackward(optimizer, {"lm_head.weight": model.lm_head.weight})
    >>> loss.backward()          # the weights have moved, and no gradient is left
    >>> moving.norm()            # of the whole gradient
    """

    def __init__(self, optimizer: torch.optim.Optimizer, weights: dict[str, torch.nn.Parameter]) -> None:
        self._optimizer = optimizer
        self._names = {weight: name for name, weight in weights.items()}
        self._groups = {weight: group for group in optimizer.param_groups for weight in group["params"]}
        self._norms: list[Tensor] = []
        self._handles = [weight.register_post_accumulate_grad_hook(self._move) for weight in self._groups]

    def norm(self) -> float:
        """The norm of all gradients since it was last asked for."""
        found = torch.linalg.vector_norm(torch.stack(self._norms)) if self._norms else torch.zeros(())
        self._norms = []
        return float(found)

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    @torch.no_grad()
    def _move(self, weight: Tensor) -> None:
        """One weight's update, by the optimizer itself, which sees no other."""
        gradient: Any = weight.grad
        size = torch.linalg.vector_norm(gradient, dtype=torch.float32)
        if not torch.isfinite(size):
            name = self._names.get(weight, "a weight")  # type: ignore[call-overload]
            raise NonFiniteError(
                f"the gradient of {name} is no number, and with --optim.in_backward other weights have moved by now:"
                " go on from the last checkpoint with --resume, with a lower --optim.lr or without --optim.in_backward"
            )
        self._norms.append(size)
        groups: list[dict[str, Any]] = self._optimizer.param_groups
        self._optimizer.param_groups = [{**self._groups[weight], "params": [weight]}]
        try:
            self._optimizer.step()
        finally:
            self._optimizer.param_groups = groups
        weight.grad = None
