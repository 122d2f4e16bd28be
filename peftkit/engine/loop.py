"""The loop: a generator of optimizer steps, whose gradient does not depend on how a step is split.

A task's loss is a sum over targets. The loop counts the targets of the whole step, over all micro-batches and processes,
before the first backward pass, and divides every micro-batch's sum by that count. The step's gradient is then the
gradient of the mean over all its targets, whatever the split.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch

from peftkit.engine.nonfinite import drop, kept_statistics, put_statistics
from peftkit.engine.open import Engine
from peftkit.engine.pulse import beat
from peftkit.engine.world import World
from peftkit.errors import NonFiniteError
from peftkit.tasks.positions import Wanted, reading


class Learnt(Protocol):
    """What the loop knows of a task: see `tasks.base.Task`."""

    def inputs(self, batch: dict[str, Any]) -> dict[str, Any]: ...

    def targets(self, batch: dict[str, Any]) -> int: ...

    def wanted(self, batch: dict[str, Any]) -> Wanted | None: ...

    def loss(self, outputs: Any, batch: dict[str, Any]) -> torch.Tensor: ...


@dataclass(frozen=True)
class Step:
    """One optimizer step. `step` counts from 1; `loss` is the mean over `targets`."""

    step: int
    loss: float
    grad_norm: float
    lr: float
    targets: int
    seconds: float
    asked: int = 0
    """Processes that ask to stop after this step; the same number on all of them."""
    skipped: bool = False
    """Whether the loss or the gradient is no number, so that nothing was moved."""
    bad: tuple[int, ...] = ()
    """This process's micro-batches whose loss is no number."""

    def row(self) -> dict[str, Any]:
        """The step as a row of metrics.jsonl."""
        names = ("step", "loss", "grad_norm", "lr", "targets", "seconds")
        return {name: getattr(self, name) for name in names} | ({"skipped": True} if self.skipped else {})


def steps(
    engine: Engine,
    batches: Iterable[Sequence[dict[str, Any]]],
    task: Learnt,
    world: World,
    rate: Callable[[int], float],
    done: int = 0,
    wish: Callable[[], bool] = lambda: False,
) -> Iterator[Step]:
    """One optimizer step for each list of micro-batches, counting on from `done`; `rate` gives a step's share of the peak rate.

    `wish` says whether this process wants to stop: all of them learn of it in the same step.
    Every process must be given lists of the same lengths (ZeRO gathers and reduces in every pass).
    """
    engine.deepspeed.train()
    start = time.perf_counter()
    for number, micro_batches in enumerate(batches, start=done):
        engine.set_rate(rate(number))
        lr = max(group["lr"] for group in engine.groups)
        (targets,) = world.sum(sum(task.targets(batch) for batch in micro_batches))
        kept = kept_statistics(engine.model)
        losses = accumulate(engine, micro_batches, task, world, max(1.0, targets))
        loss, asked = world.sum(sum(losses), wish())
        grad_norm = _update(engine) if math.isfinite(loss) else _drop(engine)
        # What overflows fp16 at a large scale of the loss is fp16's way of finding the right one.
        skipped = not math.isfinite(loss) or (not math.isfinite(grad_norm) and not engine.loss_scaler)
        if skipped:
            put_statistics(engine.model, kept)
        bad = tuple(index for index, value in enumerate(losses) if not math.isfinite(value))
        now = time.perf_counter()
        yield Step(number + 1, loss, grad_norm, lr, int(targets), now - start, int(asked), skipped, bad)
        start = time.perf_counter()


def accumulate(
    engine: Engine, micro_batches: Sequence[dict[str, Any]], task: Learnt, world: World, targets: float
) -> list[float]:
    """Run every micro-batch forward and back; their parts of the step's mean loss."""
    losses = []
    for index, batch in enumerate(micro_batches):
        batch = on_device(batch, world.device)
        engine.deepspeed.set_gradient_accumulation_boundary(index == len(micro_batches) - 1)
        loss = task.loss(forward(engine.deepspeed, task, batch), batch) / targets
        losses.append(float(loss.detach()))
        if engine.moving and not math.isfinite(losses[-1]):
            continue  # its backward pass would move weights
        # DeepSpeed averages over the processes, and the count of targets is already that of all of them.
        engine.deepspeed.backward(loss * world.processes, scale_wrt_gas=False)
        beat()
    return losses


def _update(engine: Engine) -> float:
    """Take the step; the norm of its gradient before clipping, infinite if it is no number: then nothing has moved."""
    if engine.moving:
        engine.deepspeed.step()  # finds no gradient: it counts
        return engine.moving.norm()
    if engine.zero:
        _take(engine.deepspeed.step, engine)
        return math.inf if engine.overflowed else float(engine.deepspeed.get_global_grad_norm() or 0.0)
    gradients = [weight.grad for weight in engine.trained().values() if weight.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(gradients))  # without ZeRO DeepSpeed does not tell
    if not math.isfinite(norm):
        return _drop(engine)
    engine.deepspeed.step()
    return norm


def _drop(engine: Engine) -> float:
    """Leave the step, whose gradient counts as infinite."""
    _take(partial(drop, engine), engine)
    return math.inf


def _take(step: Callable[[], None], engine: Engine) -> None:
    try:
        step()
    except Exception as problem:
        if engine.overflowed and engine.loss_scaler:
            raise NonFiniteError(
                f"the gradient overflows fp16 at any loss scale ({problem}); use --precision bf16 or fp32, or lower --optim.lr"
            ) from problem
        raise


def forward(model: Any, task: Learnt, batch: dict[str, Any]) -> Any:
    """The model's outputs for a batch, as far as the task reads them.

    Pixels and sound enter in the model's own number format, and nothing else is cast.
    """
    inputs = task.inputs(batch)
    if any(value.is_floating_point() for value in inputs.values() if isinstance(value, torch.Tensor)):
        dtype = next((weight.dtype for weight in model.parameters() if weight.is_floating_point()), torch.float32)
        inputs = {
            name: value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
            for name, value in inputs.items()
        }
    with reading(task.wanted(batch)) as asked:
        outputs = model(**inputs)
    return outputs if asked is None else asked.answer(outputs)


def on_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch where the model is."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }
