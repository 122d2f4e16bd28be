"""A running average of the weights (Polyak & Juditsky, 1992, https://doi.org/10.1137/0330046), kept beside the optimizer's state.

follow(engine, 0.999)          # once, when the engine was opened: every step taken moves the average
with averaged(engine):         # the model computes with its average, and afterwards with its own weights to the last bit
    score(...)

The rule is one element at a time, so it holds for the flat fp32 partitions that ZeRO's stages update as for whole weights;
as a state of the optimizer, the average is captured, cut for another world and resumed with the rest of that state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from peftkit.engine.open import Engine
from peftkit.errors import StoppedError

AVERAGE = "average"
"""The name of the average among a parameter's optimizer state."""
COUNT = "averaged"
"""How many steps are in it."""


def follow(engine: Engine, decay: float) -> None:
    """Average the weights after every step from now on.

    The average begins as the weights after the first step, and `t` steps later becomes `d average + (1 - d) weights` with
    `d = min(decay, (1 + t) / (10 + t))`: no weight is given to values from before the first step, and early ones are
    forgotten soon. A step that overflows fp16 is not taken, and not counted.
    """

    @torch.no_grad()
    def average(weight: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        taken = state.get(COUNT, 0)
        if taken:
            state[AVERAGE].lerp_(weight, 1 - min(decay, (1 + taken) / (10 + taken)))
        else:
            state[AVERAGE] = weight.detach().clone()
        state[COUNT] = taken + 1

    after_each_step(engine.torch_optimizer, average)


def after_each_step(
    optimizer: torch.optim.Optimizer, rule: Callable[[Tensor, dict[str, Any], dict[str, Any]], None]
) -> None:
    """Call `rule(weight, its state, its group)` for whatever a step has just updated.

    ZeRO steps group by group (stages 1 and 2) or part by part (stage 3): the others' groups are then hidden or empty.
    Only after the step may a rule put something into a state: optimizers make theirs where they find none.
    """

    def hook(stepped: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for group in stepped.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    rule(weight, stepped.state[weight], group)

    optimizer.register_step_post_hook(hook)


@contextmanager
def averaged(engine: Engine) -> Iterator[None]:
    """The model with its average in place of its weights, where there is one. All processes take part.

    After an error the weights are left: putting them back would wait for the others. They all come back to be saved.
    """
    exchange(engine)
    try:
        yield
    except StoppedError:
        exchange(engine)
        raise
    exchange(engine)


@torch.no_grad()
def exchange(engine: Engine) -> None:
    """Weights become the average and the average the weights; done twice, nothing has changed."""
    for _, flats in engine.flats():
        for flat in flats:
            average = engine.torch_optimizer.state.get(flat, {}).get(AVERAGE)
            if average is not None:
                weights = flat.detach().clone()
                flat.data.copy_(average)
                average.copy_(weights)
    show(engine)


def forget(engine: Engine) -> None:
    """Keep no average any more."""
    for state in engine.torch_optimizer.state.values():
        state.pop(AVERAGE, None)


def show(engine: Engine) -> None:
    """Let the model compute with what the optimizer holds, as DeepSpeed does at the end of each step."""
    wrapper = engine.deepspeed.optimizer
    if engine.zero in (1, 2):
        wrapper.update_lp_params()
    if engine.zero == 3:
        wrapper._partition_all_parameters()
        for number in range(len(wrapper.fp16_groups)):
            wrapper._reassign_or_swap_out_partitioned_parameters(number)
        if wrapper.persistent_parameters:  # the small ones, which stay whole between passes
            wrapper.persistent_parameters[0].all_gather(wrapper.persistent_parameters)
