"""Several sources of training rows: each read by its own task and columns, its rows marked with its name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

from peftkit.config.rows import source_column, task_of
from peftkit.config.sections import Data, Source
from peftkit.data.columns import rename
from peftkit.data.encode import Sources
from peftkit.data.rows import Joined, Labelled
from peftkit.data.sources import Table, read
from peftkit.errors import DataError
from peftkit.tasks import Task
from peftkit.tasks.base import RowError


def read_mixture(data: Data, task: Task, keep: Sequence[str]) -> tuple[Task, Sources, list[Table]]:
    """The fitted task, what is known of the sources, and a table of each."""
    column = source_column(task)
    tables = [_read(source, data, task, keep, column) for source in data.mixture]
    names = {source.called: task_of(source, task).name for source in data.mixture}
    fitted = {task.name: task}
    for name in dict.fromkeys(names.values()):
        alike = [table for table, own in zip(tables, names.values(), strict=True) if own == name]
        fitted[name] = fit(fitted.get(name) or Task.model_validate(name), joined(alike))
    return fitted[task.name], Sources(column, {source: fitted[name] for source, name in names.items()}), tables


def _read(source: Source, data: Data, task: Task, keep: Sequence[str], column: str) -> Table:
    table = read(source.path, data.limit, "train", data.cache)
    kept = [name for name in keep if name != column]
    named = rename(table, task_of(source, task), {**data.columns, **source.columns}, kept)
    return marked(named, column, source.called)


def marked(table: Table, column: str, name: str) -> Table:
    """The table with its rows' source in a column."""
    return Table(table.name, Labelled(table.rows, column, name), table.numbers, table.unit, table.places)


def fit(task: Task, table: Table) -> Task:
    """The task with what the training rows say; DataError if they say nothing that can be learnt."""
    try:
        return task.fit(table.rows)
    except RowError as problem:
        raise DataError(f"{table.name}: {problem}") from None


def joined(tables: Sequence[Table]) -> Table:
    """The rows of all of them; a row's place is the one it has in its own table."""
    if len(tables) == 1:
        return tables[0]
    rows = Joined([table.rows for table in tables])
    name = " + ".join(table.name for table in tables)
    return Table(name, rows, range(1, len(rows) + 1), "row", Places(tables, rows))


class Places(Sequence[str]):
    """Where each row of several tables stands."""

    def __init__(self, tables: Sequence[Table], rows: Joined) -> None:
        self.tables, self.rows = tables, rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        part, at = self.rows.find(index)
        return self.tables[part].place(at)
