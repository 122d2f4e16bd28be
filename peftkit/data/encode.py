"""A table's rows as features: what cannot be learnt from is left out and counted, a wrong label stops everything."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from peftkit.data.report import FIRST, Dropped, SplitReport
from peftkit.data.rows import RowWriter
from peftkit.data.sources import Table
from peftkit.data.store import Writer
from peftkit.errors import DataError
from peftkit.tasks import Task
from peftkit.tasks.base import IGNORED, Features, Known, LabelError, Row, RowError
from peftkit.tasks.many import takes_many, utf8

CHUNK = 500
HOW = ("encode_many", "encode", "windows", "loses")
ENOUGH = 5_000
"""Rows from which on it is worth starting other processes, each of which takes seconds to import what it needs."""


@dataclass(frozen=True)
class Sources:
    """A mixture's: the column that names a row's source, and the task of each."""

    column: str
    tasks: Mapping[str, Task]

    @property
    def names(self) -> list[str]:
        return list(self.tasks)


@dataclass(frozen=True)
class Encoder:
    """How rows become features: the same in every process that works at it."""

    task: Task
    processor: Any
    max_length: int
    truncate: str = "right"
    stride: int | None = None
    sources: Sources | None = None

    def windows(self, row: Row) -> list[Features]:
        """All features of a row. RowError for a text that is none: tokenizers have no error of their own for it."""
        try:
            return self.task_of(row).windows(row, self.processor, self.max_length, self.stride)
        except (TypeError, UnicodeEncodeError) as problem:
            if torn := [name for name, value in row.items() if not utf8(_written(value))]:
                raise RowError(
                    f"{torn[0]!r} holds half a character (one of the two parts of a surrogate pair, as \\ud800)"
                ) from problem
            raise

    def task_of(self, row: Row) -> Task:
        """The run's task, or that of the row's source."""
        return self.sources.tasks.get(row.get(self.sources.column, ""), self.task) if self.sources else self.task

    def group(self, row: Row) -> int:
        """The number of the row's source; 0 for one that is not of the mixture."""
        if self.sources is None:
            return 0
        name = str(row.get(self.sources.column))
        return self.sources.names.index(name) if name in self.sources.tasks else 0

    def together(self, rows: Sequence[Row]) -> list[Known | RowError | None]:
        """What the rows' tasks make of many of them at once; None for each that they would rather have by itself."""
        if self.sources is None:
            return self._together(self.task, rows)
        found: list[Known | RowError | None] = [None] * len(rows)
        tasks = [self.task_of(row) for row in rows]
        for task in {id(task): task for task in tasks}.values():
            numbers = [number for number, own in enumerate(tasks) if own is task]
            known = self._together(task, [rows[number] for number in numbers])
            for number, one in zip(numbers, known, strict=True):
                found[number] = one
        return found

    def _together(self, task: Task, rows: Sequence[Row]) -> list[Known | RowError | None]:
        if not can_together(task):
            return [None] * len(rows)
        return task.encode_many(rows, self.processor, self.max_length)

    def was_cut(self, windows: Sequence[Features], row: Row) -> bool:
        """Whether the row had more to say: one that fills `max_length` is asked again with one more, of others the task knows."""
        if len(windows) > 1:
            return False
        task = self.task_of(row)
        if length(windows[0]) >= self.max_length:
            longer = task.windows(row, self.processor, self.max_length + 1, self.stride)
            if length(longer[0]) > length(windows[0]):
                return True
        return task.loses(row, windows[0], self.processor, self.max_length)


@dataclass
class Encoded:
    """What became of some rows: their windows, or why there are none."""

    windows: list[list[Features]] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    cut: int = 0
    problems: dict[int, RowError] = field(default_factory=dict)


def encode(table: Table, encoder: Encoder, folder: Path, workers: int | None = None) -> SplitReport:
    """Write all rows, and every usable one's features, into the new `folder`.

    DataError for labels that are none, and if no row is usable.
    """
    split = "" if folder.name == "train" else f"{folder.name} "
    count = _Count(table, split, is_text=encoder.task.reads == "text")
    with Writer(folder) as writer, RowWriter(folder) as kept:
        for chunk in encoded(table.rows, encoder, workers, kept.add):
            count.cut += chunk.cut
            windows = [
                (count.rows + number, window, chunk.groups[number])
                for number, windows in enumerate(chunk.windows)
                for window in (() if number in chunk.problems else windows)
            ]
            writer.add_many(windows)
            count.note(len(chunk.windows), chunk.problems, [window for _, window, _ in windows])
        report = count.report()
        writer.close()
        kept.close()
    return report


@dataclass
class _Count:
    """What became of the rows so far."""

    table: Table
    split: str = ""
    """Its name, for one of several."""
    is_text: bool = True
    """Images and sounds have no tokens to count."""
    rows: int = 0
    kept: int = 0
    windows: int = 0
    cut: int = 0
    tokens: int = 0
    targets: int = 0
    dropped: dict[str, list[int]] = field(default_factory=dict)
    wrong: dict[str, list[int]] = field(default_factory=dict)
    """Why rows cannot be learnt from, and which ones, by their number in the table."""

    def note(self, rows: int, problems: Mapping[int, RowError], windows: Sequence[Features]) -> None:
        """The next rows, what is wrong with some of them, and the windows of the others."""
        self.kept += rows - len(problems)
        self.windows += len(windows)
        self.tokens += sum(map(length, windows)) if self.is_text else 0
        self.targets += _targets(windows)
        for number, problem in problems.items():
            reasons = self.wrong if isinstance(problem, LabelError) else self.dropped
            reasons.setdefault(str(problem), []).append(self.rows + number)
        self.rows += rows

    def report(self) -> SplitReport:
        """DataError if a label is wrong, or nothing is left."""
        table = self.table
        reasons = [Dropped(reason, len(rows), _first(table, rows)) for reason, rows in self.dropped.items()]
        if self.wrong:
            problems = [f"{_places(table, rows)}: {reason}" for reason, rows in self.wrong.items()]
            raise DataError("\n".join(problems) + "\nMend these rows; `peftkit data check` finds what else is wrong")
        if not self.kept:
            lines = "\n".join(f"  {reason.line(table.unit)}" for reason in reasons)
            count = f"none of its {self.rows} {self.split}rows" if self.rows > 1 else f"its one {self.split}row"
            able = "can be learnt from" if self.rows > 1 else "cannot be learnt from"
            raise DataError(f"{table.name}: {count} {able}\n{lines}")
        counts = (self.rows, self.kept, self.cut, self.tokens, self.targets)
        return SplitReport(table.name, table.unit, *counts, reasons, self.windows)


def _first(table: Table, rows: list[int]) -> Any:
    """The first rows' numbers in their file, or their places where that says more."""
    return [table.numbers[row] if table.places is None else table.place(row) for row in rows[:FIRST]]


def _places(table: Table, rows: list[int]) -> str:
    more = f" and {len(rows) - FIRST} more" if len(rows) > FIRST else ""
    named = "" if table.places is not None else f"{table.name} {table.unit} "
    return f"{named}{', '.join(map(str, _first(table, rows)))}{more}"


def encoded(
    rows: Sequence[Row],
    encoder: Encoder,
    workers: int | None,
    read: Callable[[Sequence[Row]], None] = lambda rows: None,
) -> Iterator[Encoded]:
    """The rows' features, some rows at a time and in their order, made by several processes where there are many.

    `read` is given the rows as they are read: reading them once more would take as long as all else that Python does here.
    """
    if workers is None:
        # Many rows at once are encoded by the threads of `tokenizers`, which need no process of their own.
        alone = can_together(encoder.task) and takes_many(encoder.processor)
        workers = 1 if alone else min(len(os.sched_getaffinity(0)), len(rows) // ENOUGH)
    chunks = _chunks(rows, read)
    if workers < 2:
        yield from map(partial(encode_rows, encoder), chunks)
        return
    # Not forked: this process has threads (of tokenizers, torch and the process group), and a fork may inherit a held lock.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        ahead = []
        for chunk in chunks:
            ahead.append(pool.submit(encode_rows, encoder, chunk))
            if len(ahead) > 2 * workers:
                yield ahead.pop(0).result()
        yield from chain(future.result() for future in ahead)


def _chunks(rows: Sequence[Row], read: Callable[[Sequence[Row]], None]) -> Iterator[Sequence[Row]]:
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        read(chunk)
        yield chunk


def encode_rows(encoder: Encoder, rows: Sequence[Row]) -> Encoded:
    """The features of rows that are in memory."""
    if hasattr(encoder.processor, "truncation_side"):
        encoder.processor.truncation_side = encoder.truncate
    done = Encoded()
    for number, (row, known) in enumerate(zip(rows, encoder.together(rows), strict=True)):
        windows: list[Features] = []
        if isinstance(known, RowError):
            done.problems[number] = known
        elif known is not None:
            windows = [known[0]]
            done.cut += known[1]
        else:
            try:
                windows = encoder.windows(row)
                done.cut += encoder.was_cut(windows, row)
            except RowError as problem:
                done.problems[number] = problem
        done.windows.append(windows)
        done.groups.append(encoder.group(row))
    return done


def _written(value: Any) -> str:
    """The texts in a value as they are: Python's own words for a list spell half a character out."""
    return json.dumps(value, ensure_ascii=False, default=str)


def can_together(task: Task) -> bool:
    """Whether its `encode_many` is of the class that says how a row is encoded, and not of one that this was changed from."""
    order = type(task).__mro__
    owner = {name: next(at for at, kind in enumerate(order) if name in vars(kind)) for name in HOW}
    return owner["encode_many"] == min(owner.values()) and order[owner["encode_many"]] is not Task


def length(features: Features) -> int:
    """Positions of a window: those of all its texts."""
    texts = [value for name, value in features.items() if name.endswith("input_ids")]
    return sum(map(_positions, texts)) if texts else 1


def _positions(ids: Any) -> int:
    """Of a text, or of several (the choices of a question)."""
    if isinstance(ids, np.ndarray):
        return ids.size
    return int(np.size(ids)) if len(ids) and np.ndim(ids[0]) else len(ids)


def count_targets(features: Features) -> int:
    """Labels that a loss counts; a window without `labels` is one target (a pair to prefer)."""
    if "labels" not in features:
        return 1
    return int((np.asarray(features["labels"]) != IGNORED).sum())


def _targets(windows: Sequence[Features]) -> int:
    labels: list[Any] = [window.get("labels") for window in windows]
    if labels and all(isinstance(one, np.ndarray) and one.ndim == 1 for one in labels):
        return int((np.concatenate(labels) != IGNORED).sum())
    return sum(map(count_targets, windows))
