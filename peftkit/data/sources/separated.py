"""Separated values (.csv, .tsv): a header line, then a row a line; a quoted field may hold line breaks."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peftkit.data.sources.opened import text
from peftkit.data.sources.table import Numbered
from peftkit.errors import DataError


def separated(delimiter: str) -> Callable[[Path], Numbered]:
    def rows(path: Path) -> Numbered:
        csv.field_size_limit(2**31 - 1)  # the default refuses texts of more than 128 KiB
        with text(path, "") as file:
            yield from _records(csv.reader(file, delimiter=delimiter, strict=True), path)

    return rows


def _records(reader: Any, path: Path) -> Numbered:
    header: list[str] = []
    line = 1
    try:
        for record in reader:
            if record and header:
                _check_width(record, header, path, line)
                yield line, dict(zip(header, record, strict=True))
            elif record:
                header = _checked_header(record, path)
            line = reader.line_num + 1
    except csv.Error as problem:
        hint = " (a double quote that nothing closes?)" if "end of data" in str(problem) else ""
        raise DataError(f"{path.name} line {line}: {problem}{hint}") from None


def _checked_header(header: list[str], path: Path) -> list[str]:
    names = [name.strip() for name in header]
    if not all(names):
        raise DataError(f"{path.name} line 1: column {names.index('') + 1} has no name")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path.name} line 1: two columns are named {', '.join(twice)}")
    return names


def _check_width(record: list[str], header: list[str], path: Path, line: int) -> None:
    if len(record) != len(header):
        kind = "many" if len(record) > len(header) else "few"
        raise DataError(
            f"{path.name} line {line}: too {kind} fields, {len(record)} where the header names {len(header)};"
            " a field with a separator or a line break in it must stand in double quotes"
        )
