"""Scoring a split: every row exactly once, the same numbers in any world."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from peftkit.engine.loop import on_device
from peftkit.engine.open import Engine
from peftkit.engine.world import World
from peftkit.metrics import Metric
from peftkit.tasks import Task
from peftkit.tasks.base import Record


def score(
    engine: Engine,
    batches: Iterable[tuple[Sequence[int], dict[str, Any]]],
    task: Task,
    metrics: Sequence[Metric],
    world: World,
) -> dict[str, float]:
    """The metrics' numbers over all rows, the same on every process.

    `batches` are this process's share: each behind the numbers of its rows in the split, none for a batch that only keeps
    the processes in step. The composition of a batch must not depend on the number of processes.
    """
    engine.deepspeed.eval()
    mine: list[tuple[int, Record]] = []
    with torch.no_grad():
        for rows, batch in batches:
            batch = on_device(batch, world.device, engine)
            records = task.score(engine.deepspeed(**task.inputs(batch)), batch)
            mine += zip(rows, records, strict=False)  # a blank batch scores no row
    engine.deepspeed.train()
    everyones = world.gather(mine)
    numbers = compute([record for _, record in sorted(_flat(everyones), key=_row)], metrics) if world.first else None
    shared: dict[str, float] = world.share(numbers)
    return shared


def compute(records: Sequence[Record], metrics: Sequence[Metric]) -> dict[str, float]:
    """All metrics' numbers by name; records are in the split's order."""
    return {name: value for metric in metrics for name, value in metric.compute(records).items()}


def _flat(everyones: Iterable[list[tuple[int, Record]]]) -> list[tuple[int, Record]]:
    return [pair for mine in everyones for pair in mine]


def _row(pair: tuple[int, Record]) -> int:
    return pair[0]
