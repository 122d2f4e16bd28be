"""Scoring a split: every row exactly once, the same numbers in any world."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from peftkit.config.sections import Generate
from peftkit.data.rows import RowFile
from peftkit.data.store import Store
from peftkit.engine.loop import forward, on_device
from peftkit.engine.pulse import beat
from peftkit.engine.world import World
from peftkit.evaluation.generate import write_texts
from peftkit.metrics import Metric
from peftkit.tasks import Task
from peftkit.tasks.base import Record, Row

Batches = Iterable[tuple[Sequence[int], dict[str, Any]]]
"""Batches behind the numbers of their windows in the split; none for a batch that only keeps the processes in step."""


@dataclass(frozen=True)
class Split:
    """What is scored, and what its records are judged by."""

    store: Store
    rows: Sequence[Row] | RowFile
    processor: Any


@dataclass(frozen=True)
class Scored:
    """What came of it: the numbers on every process, the records on the first one."""

    numbers: dict[str, float]
    task: Task
    """With the thresholds that were tuned, if any were."""
    records: list[Record]


def score(
    model: Callable[..., Any],
    batches: Batches,
    split: Split,
    task: Task,
    metrics: Sequence[Metric],
    world: World,
    generate: Generate | None = None,
    by: str | None = None,
    tunes: bool = False,
    pause: Callable[[], None] = beat,
) -> Scored:
    """The metrics' numbers over all rows, the same on every process.

    `batches` are this process's share; the composition of a batch must not depend on the number of processes. `by` is a
    column whose values are scored apart, too; with `tunes` the task sets its thresholds by these rows. `pause` is called
    between two batches, as often on every process.
    """
    metrics = [metric.fit(task) for metric in metrics]
    texts = generate if any("generated" in metric.needs for metric in metrics) else None
    found = records(model, batches, task, world, split.processor, texts, pause)
    if world.first:
        rows, judged = judge(found, split, task)
        if tunes and (tuned := task.tune(judged)) is not task:
            task, (rows, judged) = tuned, judge(found, split, tuned)
        answer = Scored(numbers_by(rows, judged, metrics, by), task, judged)
        world.share((answer.numbers, task.model_dump(mode="json")))
        return answer
    numbers, settings = world.share(None)
    return Scored(numbers, Task.model_validate(settings), [])


def records(
    model: Any,
    batches: Batches,
    task: Task,
    world: World,
    processor: Any,
    generate: Generate | None = None,
    pause: Callable[[], None] = beat,
) -> list[tuple[int, Record]]:
    """On the first process every window's number and record, in order; on the others nothing."""
    training = model.training
    model.eval()
    mine: list[tuple[int, Record]] = []
    with torch.no_grad():
        for windows, batch in batches:
            pause()
            batch = on_device(batch, world.device)
            made = task.score(forward(model, task, batch), batch)
            if generate is not None:
                written = write_texts(model, task, batch, processor, generate)
                for name, ids in (("generated_ids", written), ("reference_ids", task.expected(batch))):
                    for record, own in zip(made, ids or (), strict=ids is not None):
                        record[name] = own
            mine += zip(windows, made, strict=False)  # a blank batch scores no row
    model.train(training)
    everyones = world.gather(mine)
    return sorted((pair for each in everyones for pair in each), key=lambda pair: pair[0]) if world.first else []


def judge(found: Sequence[tuple[int, Record]], split: Split, task: Task) -> tuple[list[Row], list[Record]]:
    """The rows that were scored, and one record for each."""
    rows, judged = [], []
    for number, windows in groupby(found, key=lambda pair: int(split.store.row[pair[0]])):
        rows.append(split.rows[number])
        judged.append(task.judge(rows[-1], [record for _, record in windows], split.processor))
    return rows, judged


def numbers_by(
    rows: Sequence[Row], judged: Sequence[Record], metrics: Sequence[Metric], by: str | None
) -> dict[str, float]:
    """All metrics' numbers, and with `by` those of each of the column's values as `column=value/name`."""
    numbers = compute(judged, metrics)
    parts: dict[str, list[Record]] = defaultdict(list)
    for row, record in zip(rows, judged, strict=True):
        parts[str(row[by])].append(record) if by else None
    for value, part in sorted(parts.items()):
        numbers |= {f"{by}={value}/{name}": number for name, number in compute(part, metrics).items()}
    return numbers


def compute(records: Sequence[Record], metrics: Sequence[Metric]) -> dict[str, float]:
    """All metrics' numbers by name; records are in the split's order."""
    return {name: value for metric in metrics for name, value in metric.compute(records).items()}
