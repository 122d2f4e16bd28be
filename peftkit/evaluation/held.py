"""The task's own metrics on held-out rows, of the trained model and of its export: the same functions as in an evaluation."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from peftkit.config.sections import Generate
from peftkit.engine.world import Alone
from peftkit.evaluation.certificate import Score
from peftkit.evaluation.score import Split, compute, judge, records
from peftkit.evaluation.verify import in_fp32
from peftkit.metrics import Metric
from peftkit.metrics.base import Record
from peftkit.tasks import Task

Batches = Sequence[tuple[Sequence[int], Mapping[str, Any]]]
"""Each behind the numbers of its windows in the split."""
Records = list[tuple[int, Record]]
SECONDS = 3.0
"""After so long the trained model is given no further batch: an export is not to take longer for it than it must."""


@dataclass(frozen=True)
class Held:
    """Held-out rows, and what they are scored by."""

    split: Split
    batches: Batches
    metrics: Sequence[Metric]
    generate: Generate | None
    """How texts are written, if a metric reads any."""

    def first(self, count: int) -> Held:
        return Held(self.split, self.batches[:count], self.metrics, self.generate)


def recorded(model: nn.Module, batches: Batches, task: Task, processor: Any, generate: Generate | None) -> Records:
    """Every window's number and record, computed in fp32 where the model's weights can be."""
    world = Alone(0, 1, 0, next(model.parameters()).device)
    with in_fp32(model):
        return records(model, ((numbers, dict(batch)) for numbers, batch in batches), task, world, processor, generate)


def recorded_in_time(model: nn.Module, held: Held, task: Task, seconds: float = SECONDS) -> tuple[Held, Records]:
    """The records of as many batches as are begun within so many seconds, at least one; and those batches."""
    taken: list[tuple[Sequence[int], Mapping[str, Any]]] = []

    def until() -> Iterator[tuple[Sequence[int], Mapping[str, Any]]]:
        began = time.monotonic()
        for batch in held.batches:
            if taken and time.monotonic() - began > seconds:
                return
            taken.append(batch)
            yield batch

    found = recorded(model, until(), task, held.split.processor, held.generate)  # type: ignore[arg-type]
    return held.first(len(taken)), found


def scores(held: Held, task: Task, trained: Records, export: Records) -> tuple[int, dict[str, Score]]:
    """How many rows were scored, and every number of every metric, before and after."""
    metrics = [metric.fit(task) for metric in held.metrics]
    (rows, before), (_, after) = (judge(found, held.split, task) for found in (trained, export))
    first, second = compute(before, metrics), compute(after, metrics)
    return len(rows), {name: score(first[name], second[name]) for name in first if name in second}


def score(trained: float, export: float) -> Score:
    return Score(trained=number(trained), export=number(export), difference=number(export - trained))


def number(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return float(value) if math.isfinite(value) else None


def size_in_memory(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, each once."""
    tensors = {id(one): one for one in [*model.parameters(), *model.buffers()]}.values()
    return sum(one.numel() * one.element_size() for one in tensors if isinstance(one, torch.Tensor))
