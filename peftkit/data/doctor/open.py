"""The data settings -> sheets: every source is read as far as it can be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from peftkit.config.sections import Data
from peftkit.data import demo
from peftkit.data.columns import has_needed, matched
from peftkit.data.doctor.sheet import TRAIN, Case, Reading, Sheet
from peftkit.data.doctor.tolerant import READERS, read_lines
from peftkit.data.sources import Table, read
from peftkit.errors import DataError
from peftkit.tasks import Task


def open_case(data: Data, task: Task, reading: Reading | None = None) -> Case:
    """Every split's sources. DataError only for a source that is not there; what is wrong inside one is for the checks."""
    sheets = [open_sheet(split, source, own, data.columns | columns, data.limit)
              for split, source, own, columns in _sources(data, task)]  # fmt: skip
    if not any(sheet.split == TRAIN for sheet in sheets):
        embedded = demo.tables(data.limit)
        sheets += [
            _matched(Sheet(split, "", table.name, task, list(table.rows), table.numbers, unit=table.unit), data.columns)
            for split, table in embedded.items()
            if not any(sheet.split == split for sheet in sheets)
        ]
    return Case(tuple(sheets), reading)


def open_sheet(split: str, source: str, task: Task, columns: Mapping[str, str], limit: int | None) -> Sheet:
    """One source, its columns matched with the task's."""
    path = Path(source).expanduser()
    try:
        sheet = _tolerant(split, path, task, limit) if _is_lines(path) else _strict(split, source, task, limit)
    except DataError as problem:
        if not path.exists():
            raise
        return Sheet(split, source, path.name, task, [], [], problem=str(problem))
    return _matched(sheet, columns)


def _sources(data: Data, task: Task) -> Iterator[tuple[str, str, Task, dict[str, str]]]:
    for one in data.mixture:
        own = task if one.task in (None, task.name) else Task.model_validate({"name": one.task})
        yield TRAIN, one.path, own, one.columns
    given = {TRAIN: data.train, "validation": data.validation, "test": data.test}
    yield from ((split, source, task, {}) for split, source in given.items() if source is not None)


def _is_lines(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in READERS


def _tolerant(split: str, path: Path, task: Task, limit: int | None) -> Sheet:
    found = read_lines(path, limit)
    problem = "" if found.rows or found.broken else f"{path.name} is empty: it has no rows"
    return Sheet(
        split, str(path), path.name, task, found.rows, found.numbers,
        unit="line", broken=found.broken, recoded=found.recoded, problem=problem,
    )  # fmt: skip


def _strict(split: str, source: str, task: Task, limit: int | None) -> Sheet:
    table = read(source, limit, split)
    return Sheet(split, source, table.name, task, list(table.rows), table.numbers, unit=table.unit)


def _matched(sheet: Sheet, columns: Mapping[str, str]) -> Sheet:
    """With the columns that the task reads; where they do not do, every column that is known by name is still looked at."""
    words: dict[str, Any] = dict(vars(sheet))
    table = Table(sheet.name, sheet.raw, sheet.numbers, sheet.unit)
    lacking = ""
    try:
        names = matched(table, sheet.task, dict(columns))
    except DataError as problem:
        names, lacking = matched(table, sheet.task, {}), str(problem)
    if not lacking and sheet.raw and sheet.task.needs and not has_needed(sheet.task, names):
        needed = ", or ".join(" and ".join(f"`{name}`" for name in one) for one in sheet.task.needs)
        there = ", ".join(dict.fromkeys(name for row in sheet.raw for name in row))
        lacking = f"--task {sheet.task.name} reads {needed}; the columns there are: {there}"
    return Sheet(**{**words, "columns": names, "lacking": lacking})
