"""A table's rows as features: what cannot be learnt from is left out and counted, a wrong label stops everything."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from peftkit.data.report import FIRST, Dropped, SplitReport
from peftkit.data.sources import Table
from peftkit.data.store import Writer
from peftkit.errors import DataError
from peftkit.tasks import Task
from peftkit.tasks.base import IGNORED, Features, LabelError, Row, RowError

CHUNK = 500
ENOUGH = 5_000
"""Rows from which on it is worth starting other processes, each of which takes seconds to import what it needs."""


@dataclass(frozen=True)
class Encoder:
    """How rows become features: the same in every process that works at it."""

    task: Task
    processor: Any
    max_length: int
    truncate: str = "right"
    stride: int | None = None

    def windows(self, row: Row) -> list[Features]:
        """All features of a row."""
        return self.task.windows(row, self.processor, self.max_length, self.stride)

    def was_cut(self, windows: Sequence[Features], row: Row) -> bool:
        """Whether the row had more to say: only one that fills `max_length` can have, and it is asked again with one more."""
        if len(windows) > 1 or length(windows[0]) < self.max_length:
            return False
        longer = self.task.windows(row, self.processor, self.max_length + 1, self.stride)
        return length(longer[0]) > self.max_length


@dataclass
class Encoded:
    """What became of some rows: their windows, or why there are none."""

    windows: list[list[Features]] = field(default_factory=list)
    cut: int = 0
    problems: dict[int, RowError] = field(default_factory=dict)


def encode(table: Table, encoder: Encoder, folder: Path, workers: int | None = None) -> SplitReport:
    """Write every usable row's features into the new `folder`; DataError for labels that are none, and if no row is usable."""
    writer = Writer(folder)
    kept = cut = tokens = targets = at = 0
    dropped: dict[str, list[int]] = defaultdict(list)
    wrong: dict[str, list[int]] = defaultdict(list)
    for chunk in encoded(table.rows, encoder, workers):
        cut += chunk.cut
        for offset, windows in enumerate(chunk.windows, start=at):
            problem = chunk.problems.get(offset - at)
            if problem is not None:
                reasons = wrong if isinstance(problem, LabelError) else dropped
                reasons[str(problem)].append(table.numbers[offset])
                continue
            kept += 1
            for window in windows:
                writer.add(offset, window)
                tokens += length(window)
                targets += count_targets(window)
        at += len(chunk.windows)
    report = [Dropped(reason, len(numbers), numbers[:FIRST]) for reason, numbers in dropped.items()]
    _check(table, wrong, kept, report)
    writer.close()
    return SplitReport(table.name, table.unit, len(table.rows), kept, cut, tokens, targets, report)


def encoded(rows: Sequence[Row], encoder: Encoder, workers: int | None) -> Iterator[Encoded]:
    """The rows' features, some rows at a time and in their order, made by several processes where there are many."""
    if workers is None:
        workers = min(len(os.sched_getaffinity(0)), len(rows) // ENOUGH)
    chunks = (rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK))
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


def encode_rows(encoder: Encoder, rows: Sequence[Row]) -> Encoded:
    """The features of rows that are in memory."""
    if hasattr(encoder.processor, "truncation_side"):
        encoder.processor.truncation_side = encoder.truncate
    done = Encoded()
    for number, row in enumerate(rows):
        windows: list[Features] = []
        try:
            windows = encoder.windows(row)
            done.cut += encoder.was_cut(windows, row)
        except RowError as problem:
            done.problems[number] = problem
        done.windows.append(windows)
    return done


def length(features: Features) -> int:
    """Positions of a window: those of all its texts."""
    texts = [len(value) for name, value in features.items() if name.endswith("input_ids")]
    return sum(texts) if texts else 1


def count_targets(features: Features) -> int:
    """Labels that a loss counts; a window without `labels` is one target (a pair to prefer)."""
    if "labels" not in features:
        return 1
    return int((np.asarray(features["labels"]) != IGNORED).sum())


def _check(table: Table, wrong: dict[str, list[int]], kept: int, reasons: list[Dropped]) -> None:
    if wrong:
        problems = [f"{_places(table, numbers)}: {reason}" for reason, numbers in wrong.items()]
        raise DataError("\n".join(problems) + "\nMend these rows, or name all labels with --task.labels")
    if not kept:
        lines = "\n".join(f"  {reason.line(table.unit)}" for reason in reasons)
        raise DataError(f"{table.name}: none of its {len(table.rows)} rows can be learnt from\n{lines}")


def _places(table: Table, numbers: list[int]) -> str:
    more = f" and {len(numbers) - FIRST} more" if len(numbers) > FIRST else ""
    return f"{table.name} {table.unit} {', '.join(map(str, numbers[:FIRST]))}{more}"
