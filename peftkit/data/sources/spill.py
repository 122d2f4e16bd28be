"""A source's rows as a table: in memory while they are few, else on disk."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
import weakref
from array import array
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from peftkit.data.rows import RowFile, write_rows
from peftkit.data.sources.table import Source, Table
from peftkit.errors import DataError
from peftkit.tasks.base import Row

FEW = 5_000
"""So many rows stay in memory."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
STALE = 2 * 86_400
"""Seconds after which rows that a killed process left behind are removed."""


def collect(source: Source, limit: int | None, root: Path) -> Table:
    """The first `limit` rows; never more than FEW of them in memory at a time."""
    numbers, columns = array("q"), dict[str, None]()
    rows = _noting(source, limit, numbers, columns)
    few = list(islice(rows, FEW))
    more = next(rows, None)
    kept = few if more is None else _on_disk(chain(few, [more], rows), root)
    table = Table(source.name, kept, numbers, source.unit, source.places)
    vars(table)["columns"] = list(columns)  # it would go through all rows again for them
    return table


def _noting(source: Source, limit: int | None, numbers: array[int], columns: dict[str, None]) -> Iterator[Row]:
    for number, row in islice(source.rows(), limit):
        numbers.append(number)
        if not row.keys() <= columns.keys():
            columns.update(dict.fromkeys(row))
        yield row


def _on_disk(rows: Iterator[Row], root: Path) -> RowFile:
    """The rows in a folder of their own, which goes when nobody holds them any more."""
    home = root / "rows"
    try:
        home.mkdir(parents=True, exist_ok=True)
        _remove_stale(home)
        folder = Path(tempfile.mkdtemp(dir=home))
    except OSError as problem:
        raise DataError(f"--data.cache: {home} cannot be written ({problem.strerror or problem})") from None
    try:
        found = write_rows(folder, rows)
    except BaseException as problem:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(problem, OSError) and problem.errno in FULL:
            raise DataError(
                f"--data.cache: {home} has no room for the rows ({problem.strerror}); make some, or name another folder"
            ) from None
        raise
    weakref.finalize(found, _remove, folder, os.getpid())
    return found


def _remove(folder: Path, owner: int) -> None:
    """By the process that wrote it alone: a forked one has the same object."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_stale(home: Path) -> None:
    """An open row file outlives this: it is mapped."""
    for folder in home.iterdir():
        if folder.stat().st_mtime < time.time() - STALE:
            shutil.rmtree(folder, ignore_errors=True)
