"""What a task must know of a whole step before its first backward pass: a mean over all of the step's targets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from peftkit.engine.loop import forward, on_device
from peftkit.engine.open import Engine
from peftkit.engine.world import World
from peftkit.tasks import Task

MicroBatches = Sequence[dict[str, Any]]


def with_ahead(engine: Engine, batches: Iterable[MicroBatches], task: Task, world: World) -> Iterator[MicroBatches]:
    """The same micro-batches with the step's mean of `task.ahead` in each, as `ahead`: the same however a step is split."""
    for step in batches:
        mean = step_mean(engine, step, task, world)
        yield [{**batch, "ahead": mean} for batch in step]


def step_mean(engine: Engine, step: MicroBatches, task: Task, world: World) -> torch.Tensor:
    """Without gradients and dropout; one more forward pass a micro-batch."""
    total = count = 0.0
    engine.deepspeed.eval()
    with torch.no_grad():
        for batch in step:
            batch = on_device(batch, world.device)
            value, targets = task.ahead(forward(engine.deepspeed, task, batch), batch)
            total, count = total + float(value), count + targets
    engine.deepspeed.train()
    total, count = world.sum(total, count)
    return torch.tensor(total / max(1.0, count), device=world.device)
