"""A table's rows as features: what cannot be learnt from is left out and counted, a wrong label stops everything."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from peftkit.data.report import FIRST, Dropped, SplitReport
from peftkit.data.sources import Table
from peftkit.errors import DataError
from peftkit.tasks import Task
from peftkit.tasks.base import IGNORED, Features, LabelError, Row, RowError


def encode(table: Table, task: Task, processor: Any, max_length: int) -> tuple[list[Features], SplitReport]:
    """Every usable row's features, and the count; DataError for labels that are none, and if no row is usable."""
    features, cut = [], 0
    dropped: dict[str, list[int]] = defaultdict(list)
    wrong: dict[str, list[int]] = defaultdict(list)
    for row, number in zip(table.rows, table.numbers, strict=True):
        try:
            encoded = task.encode(row, processor, max_length)
            cut += was_cut(encoded, row, task, processor, max_length)
            features.append(encoded)
        except LabelError as problem:
            wrong[str(problem)].append(number)
        except RowError as problem:
            dropped[str(problem)].append(number)
    reasons = [Dropped(reason, len(numbers), numbers[:FIRST]) for reason, numbers in dropped.items()]
    _check(table, wrong, features, reasons)
    tokens = sum(length(row) for row in features)
    targets = sum(count_targets(row) for row in features)
    return features, SplitReport(table.name, table.unit, len(table.rows), len(features), cut, tokens, targets, reasons)


def was_cut(features: Features, row: Row, task: Task, processor: Any, max_length: int) -> bool:
    """Whether the row had more to say: only one that fills `max_length` can have, and it is asked again with one more."""
    if length(features) < max_length:
        return False
    return length(task.encode(row, processor, max_length + 1)) > max_length


def length(features: Features) -> int:
    """Positions of a row."""
    return len(features.get("input_ids", [0]))


def count_targets(features: Features) -> int:
    labels = features.get("labels", [])
    return sum(label != IGNORED for label in (labels if isinstance(labels, list) else [labels]))


def _check(table: Table, wrong: dict[str, list[int]], kept: list[Features], reasons: list[Dropped]) -> None:
    if wrong:
        problems = [f"{_places(table, numbers)}: {reason}" for reason, numbers in wrong.items()]
        raise DataError("\n".join(problems) + "\nMend these rows, or name all labels with --task.labels")
    if not kept:
        lines = "\n".join(f"  {reason.line(table.unit)}" for reason in reasons)
        raise DataError(f"{table.name}: none of its {len(table.rows)} rows can be learnt from\n{lines}")


def _places(table: Table, numbers: list[int]) -> str:
    more = f" and {len(numbers) - FIRST} more" if len(numbers) > FIRST else ""
    return f"{table.name} {table.unit} {', '.join(map(str, numbers[:FIRST]))}{more}"
