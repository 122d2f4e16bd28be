"""A file's columns under the names that the task knows them by."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from peftkit.data.rows import Renamed
from peftkit.data.sources import Table
from peftkit.errors import DataError
from peftkit.registry import did_you_mean
from peftkit.tasks import Task


def rename(table: Table, task: Task, columns: dict[str, str], keep: Sequence[str] = ()) -> Table:
    """The rows with the task's own columns, and `keep` of the file's as they are.

    DataError if none of the sets of columns that the task needs is there, or one to keep is not.
    """
    names = matched(table, task, columns)
    if task.needs and not has_needed(task, names):
        raise DataError(_missing(table, task))
    there = table.columns if keep else []
    for name in keep:
        if name not in there:
            raise DataError(
                f"{table.name} has no column {name!r}{did_you_mean(name, there)}; it has: {', '.join(there)}"
            )
    kept = {name: name for name in keep if name not in names}
    return replace(table, rows=Renamed(table.rows, {**names, **kept}))


def to_answer(table: Table, task: Task, columns: dict[str, str]) -> dict[str, str]:
    """Task's column -> the file's, of rows whose answers need not be there; DataError if what is asked is not."""
    there = {own: name for own, name in columns.items() if own not in task.given or name in table.columns}
    names = matched(table, task, there)
    needed = [tuple(name for name in names if name not in task.given) for names in task.needs]
    if needed and not any(set(asked) <= names.keys() for asked in needed):
        raise DataError(_missing(table, task, needed))
    return names


def matched(table: Table, task: Task, columns: dict[str, str]) -> dict[str, str]:
    """Task's column -> the file's: as `--data.columns` says, else its own name, else the first usual one that is there."""
    there = table.columns
    for own, name in columns.items():
        if name not in there:
            raise DataError(
                f"--data.columns {own}: {table.name} has no column {name!r}{did_you_mean(name, there)};"
                f" it has: {', '.join(there)}"
            )
    return {**found(task, [name for name in there if name not in columns.values()]), **columns}


def found(task: Task, there: Collection[str]) -> dict[str, str]:
    """The task's columns that go by their own or a usual name; no column of the file is taken twice."""
    names = {own: own for own in task.columns if own in there}
    for own, usual in task.columns.items():
        free = [name for name in usual if name in there and name not in names.values()]
        if own not in names and free:
            names[own] = free[0]
    return names


def has_needed(task: Task, columns: Collection[str]) -> bool:
    return any(set(needed) <= set(columns) for needed in task.needs)


def _missing(table: Table, task: Task, needs: Sequence[Sequence[str]] = ()) -> str:
    there = table.columns
    needed = ", or ".join(" and ".join(f"`{name}`" for name in names) for names in needs or task.needs)
    message = f"{table.name} lacks a column for --task {task.name}, which reads {needed}; it has: {', '.join(there)}."
    names = found(task, there)
    nearest = min(task.needs, key=lambda needed: len(set(needed) - names.keys()))
    example = next((name for name in nearest if name not in names), nearest[0])
    message += f" If a column has another name, say --data.columns '{{{example}: NAME}}'"
    others = [name for name in _fitting(there) if name != task.name]
    return message + (f"; these columns look like --task {' or --task '.join(others)}" if others else "")


def _fitting(there: Collection[str]) -> list[str]:
    """The tasks that these columns would do for, the one that uses most of them first."""
    tasks = [Task.registry[name].model_construct() for name in Task.registry]
    fitting = [(len(found(task, there)), task.name) for task in tasks if has_needed(task, found(task, there))]
    return [name for _, name in sorted(fitting, key=lambda pair: (-pair[0], pair[1]))]
