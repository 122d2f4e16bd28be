"""Rows with nothing in them, and columns without a value."""

from __future__ import annotations

from collections.abc import Iterator

from peftkit.data.doctor.check import check
from peftkit.data.doctor.finding import Finding, Remedy, drop
from peftkit.data.doctor.sheet import Case, Sheet
from peftkit.data.doctor.values import LABELS, is_missing
from peftkit.tasks.base import Row


@check("empty", "drop")
def empty(case: Case) -> Iterator[Finding]:
    """Rows in which no column that the task reads has a value."""
    for sheet in case.sheets:
        rows = [at for at, row in enumerate(sheet.rows) if is_empty(row)]
        if sheet.columns:
            yield Finding(sheet, "warning", rows, "no column that the task reads has a value", (drop(rows),))


@check("missing", "drop", "fill")
def missing(case: Case) -> Iterator[Finding]:
    """Values that the task needs and that are not there; and columns that only some rows have."""
    for sheet in case.sheets:
        needed = list(dict.fromkeys(name for names in sheet.needed for name in names))
        for column in sheet.columns:
            rows = [
                at for at, row in enumerate(sheet.rows) if not is_empty(row) and is_missing(column, row.get(column))
            ]
            if column in needed:
                short = [at for at in rows if lacks(sheet, sheet.rows[at])]
                yield _needed(sheet, column, short)
            elif len(rows) < len(sheet.rows):
                absent = [at for at in rows if not isinstance(sheet.rows[at].get(column), (str, list))]
                yield _optional(sheet, column, absent)


def is_empty(row: Row) -> bool:
    return all(is_missing(column, value) for column, value in row.items())


def lacks(sheet: Sheet, row: Row) -> bool:
    """Whether the row has none of the sets of columns that the task needs."""
    return bool(sheet.needed) and all(any(is_missing(name, row.get(name)) for name in names) for names in sheet.needed)


def _needed(sheet: Sheet, column: str, rows: list[int]) -> Finding:
    if column in LABELS:
        return Finding(sheet, "error", rows, f"training stops here: `{column}` has no value", (drop(rows),))
    return Finding(sheet, "warning", rows, f"not learnt from: `{column}` has no value", (drop(rows),))


def _optional(sheet: Sheet, column: str, rows: list[int]) -> Finding:
    fill = Remedy("fill", "write an empty text there", {at: {column: ""} for at in rows}, asked=True)
    return Finding(sheet, "note", rows, f"`{column}`, which other rows have, has no value", (fill,))
