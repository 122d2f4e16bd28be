"""What a loss needs of the model as it was before its first step: computed once, kept in the run's folder.

A preference is learnt against a reference model. That is the model at its start, so no second one is held in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from peftkit.data.store import Store
from peftkit.engine.loop import forward, on_device
from peftkit.engine.pulse import beat
from peftkit.engine.world import World
from peftkit.errors import CheckpointError
from peftkit.evaluation.score import Batches
from peftkit.tasks import Task

LENGTHS = "_lengths"
"""Of the rows that the numbers are of."""


def join_reference(
    model: Any,
    batches: Batches,
    store: Store,
    task: Task,
    world: World,
    folder: Path,
    first_time: bool,
    pause: Callable[[], None] = beat,
) -> None:
    """Put the reference's numbers beside the features of `store`: computed before the first step, else read from `folder`.

    Every process calls it; `pause` is called between two batches.
    Raises FileNotFoundError if they are neither there nor can be computed any more, CheckpointError
    if they are of other rows.
    """
    if first_time:
        found = reference_values(model, batches, len(store), task, world, pause)
        if world.first:
            folder.mkdir(parents=True, exist_ok=True)
            for name, column in {**found, LENGTHS: np.asarray(store.lengths)}.items():
                np.save(folder / f"{name}.npy", column, allow_pickle=False)
        world.wait()
    elif not np.array_equal(np.load(folder / f"{LENGTHS}.npy", allow_pickle=False), store.lengths):
        raise CheckpointError(
            f"{folder} is of other rows than there are now; go on with the rows that the run began with"
        )
    store.join({name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in task.reference})


def reference_values(
    model: Any, batches: Batches, windows: int, task: Task, world: World, pause: Callable[[], None] = beat
) -> dict[str, Any]:
    """On the first process, the numbers of each of so many windows, fp32; on the others zeros."""
    training = model.training
    model.eval()
    mine: list[tuple[int, dict[str, float]]] = []
    with torch.no_grad():
        for numbers, batch in batches:
            pause()
            batch = on_device(batch, world.device)
            values = task.reference_values(forward(model, task, batch), batch)
            rows = zip(*(values[name].tolist() for name in task.reference), strict=True)
            mine += zip(numbers, (dict(zip(task.reference, row, strict=True)) for row in rows), strict=False)
    model.train(training)
    columns = {name: np.zeros(windows, np.float32) for name in task.reference}
    for number, row in (pair for each in world.gather(mine) for pair in each):
        for name, value in row.items():
            columns[name][number] = value
    return columns
