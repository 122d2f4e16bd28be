"""A trained model's answers to rows that are in memory: what `peftkit predict` and `peftkit serve` both do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol

from peftkit.data.encode import Encoder, encode_rows, length
from peftkit.engine.world import World
from peftkit.errors import ConfigError
from peftkit.evaluation.reference import reference_values
from peftkit.evaluation.score import records
from peftkit.flows.trained import Trained, placed
from peftkit.tasks.base import Features, Record, Row


class How(Protocol):
    """What answers to rows that are encoded depend on."""

    @property
    def batch(self) -> int: ...
    @property
    def generate(self) -> Mapping[str, int]: ...


@dataclass(frozen=True)
class Answering:
    """A model that answers rows, their columns under the task's own names."""

    trained: Trained
    encoder: Encoder
    untrained: Any
    """The model as it was before its first step, if the task measures against it."""
    world: World
    batch: int
    """Rows in one forward pass."""
    generate: Mapping[str, int] = field(default_factory=dict)
    """Settings of the texts that are written, other than those that the model was trained with."""

    def __call__(self, rows: Sequence[Row]) -> list[Row]:
        """The columns of each row's answer, or its `error`."""
        task = self.trained.task
        asked_of = [task.unlabelled(row) for row in rows]
        encoded = encode_rows(self.encoder, asked_of)
        if self.untrained is not None:
            join_reference(self.untrained, self.trained, encoded.windows, self, self.world)
        found = judged(self.trained, asked_of, encoded.windows, self, self.world)
        return [
            {"error": str(encoded.problems[at])} if at in encoded.problems else task.answer(found[at])
            for at in range(len(rows))
        ]


def answering(trained: Trained, world: World, batch: int, generate: Mapping[str, int] | None = None) -> Answering:
    """The model, which is on its device, ready for rows. ConfigError if its task has nothing to predict of them."""
    task, data = trained.task, trained.data
    if not task.predicts:
        raise ConfigError(f"--task {task.name} has nothing to predict of a row; peftkit eval scores it")
    max_length = min(data.max_length, trained.context or data.max_length)
    encoder = Encoder(task, trained.processor, max_length, data.truncate, data.stride)
    untrained = placed(trained.start(), world.device) if task.reference else None
    return Answering(trained, encoder, untrained, world, batch, generate or {})


def join_reference(
    untrained: Any, trained: Trained, windows: Sequence[list[Features]], asked: How, world: World
) -> None:
    """What the task needs of the model as it was before its first step, among the features."""
    flat = [window for own in windows for window in own]
    numbered = list(enumerate(flat))
    values = reference_values(untrained, batches(trained, numbered, asked.batch), len(flat), trained.task, world)
    for number, window in numbered:
        window |= {name: float(column[number]) for name, column in values.items()}


def judged(
    trained: Trained, rows: Sequence[Row], windows: Sequence[list[Features]], asked: How, world: World
) -> dict[int, Record]:
    """Each usable row's record."""
    flat = [(row, window) for row, own in enumerate(windows) for window in own]
    generate = trained.generate.model_copy(update=dict(asked.generate))
    made = records(trained.model, batches(trained, flat, asked.batch), trained.task, world, trained.processor, generate)
    grouped = groupby(made, key=lambda pair: flat[pair[0]][0])
    return {
        row: trained.task.judge(rows[row], [record for _, record in own], trained.processor) for row, own in grouped
    }


def batches(
    trained: Trained, windows: Sequence[tuple[int, Features]], size: int
) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Windows of like lengths together."""
    longest_first = sorted(range(len(windows)), key=lambda number: (-length(windows[number][1]), number))
    for start in range(0, len(longest_first), size):
        chosen = longest_first[start : start + size]
        yield chosen, trained.task.collate([windows[number][1] for number in chosen], trained.processor)
