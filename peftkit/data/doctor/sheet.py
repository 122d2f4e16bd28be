"""What the checks look at: a sheet (one source's rows, as read and under the task's names) and the case (all sheets)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from peftkit.data.rows import Renamed
from peftkit.tasks import Task
from peftkit.tasks.base import Row

T = TypeVar("T")
TRAIN = "train"


@dataclass(frozen=True)
class Sheet:
    """The rows of one source. `numbers` are the file's own, and stay with the rows whatever is dropped."""

    split: str
    source: str
    name: str
    task: Task
    raw: Sequence[Row]
    numbers: Sequence[int]
    columns: Mapping[str, str] = field(default_factory=dict)
    """Task's column -> the file's."""
    unit: str = "row"
    broken: Sequence[tuple[int, str]] = ()
    """Lines that are no row, and why."""
    recoded: Sequence[int] = ()
    """Lines that are not UTF-8, and were read as Windows-1252 or UTF-16."""
    problem: str = ""
    """Why there are no rows at all."""
    lacking: str = ""
    """Why the columns do not do for the task."""

    @cached_property
    def rows(self) -> list[Row]:
        """The rows under the task's names."""
        return list(Renamed(self.raw, self.columns))

    @cached_property
    def needed(self) -> tuple[tuple[str, ...], ...]:
        """The sets of columns that the task needs and that are there."""
        return tuple(names for names in self.task.needs if set(names) <= set(self.columns))


@dataclass(frozen=True)
class Reading:
    """How the model will read the rows."""

    processor: Any
    max_length: int
    stride: int | None = None


@dataclass(frozen=True)
class Case:
    """All sheets, and the tokenizer if there is one."""

    sheets: tuple[Sheet, ...]
    reading: Reading | None = None
    memory: dict[tuple[Any, int], tuple[Row, Any]] = field(default_factory=dict)
    """What was worked out of a row, so that checking again after a remedy costs only the changed rows."""

    def of(self, split: str) -> list[Sheet]:
        """The sheets of a split."""
        return [sheet for sheet in self.sheets if sheet.split == split]

    def each(self, kind: Any, sheet: Sheet, make: Callable[[Row], T]) -> list[T]:
        """`make(row)` of every row under the task's names, kept under `kind` for as long as the row is the same object."""
        made = []
        for raw, row in zip(sheet.raw, sheet.rows, strict=True):
            known = self.memory.get((kind, id(raw)))
            if known is None:
                known = self.memory[kind, id(raw)] = (raw, make(row))  # holding the row keeps its id from being reused
            made.append(known[1])
        return made
