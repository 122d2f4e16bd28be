"""Rows that are not all in memory: on disk (a JSON line each and an index of where they start), picked, renamed, joined."""

from __future__ import annotations

import json
import os
import weakref
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

import numpy as np

from peftkit.tasks.base import Row

LINES, STARTS = "rows.jsonl", "rows.starts.npy"


class Lazy(Sequence[Row]):
    """Rows made when they are asked for: what a subclass gives is `__len__` and `row`."""

    def row(self, index: int) -> Row:
        """The row at 0 <= index < len(self)."""
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self.row(at) for at in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self.row(index % len(self))

    def __iter__(self) -> Iterator[Row]:
        return (self.row(at) for at in range(len(self)))


class Picked(Lazy):
    """Some of the rows, in the order of `indices`."""

    def __init__(self, rows: Sequence[Row], indices: Sequence[int]) -> None:
        self.rows, self.indices = rows, indices

    def __len__(self) -> int:
        return len(self.indices)

    def row(self, index: int) -> Row:
        return self.rows[self.indices[index]]


class Renamed(Lazy):
    """The rows with some of their columns under other names: `names` is new name -> the rows' own."""

    def __init__(self, rows: Sequence[Row], names: Mapping[str, str]) -> None:
        self.rows, self.names = rows, names

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> Row:
        row = self.rows[index]
        return {new: row[own] for new, own in self.names.items() if own in row}


class Joined(Lazy):
    """The rows of several sequences, one after another."""

    def __init__(self, parts: Sequence[Sequence[Row]]) -> None:
        self.parts = parts
        self.starts = [0, *accumulate(len(part) for part in parts)]

    def __len__(self) -> int:
        return self.starts[-1]

    def find(self, index: int) -> tuple[int, int]:
        """The part that a row is in, and its number there."""
        part = bisect_right(self.starts, index) - 1
        return part, index - self.starts[part]

    def row(self, index: int) -> Row:
        part, at = self.find(index)
        return self.parts[part][at]


class Labelled(Lazy):
    """The rows with one value in a column, the same in all of them."""

    def __init__(self, rows: Sequence[Row], column: str, value: Any) -> None:
        self.rows, self.label = rows, {column: value}

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> Row:
        return {**self.rows[index], **self.label}


class RowFile(Lazy):
    """The rows of a folder that `write_rows` made: as many as a disk holds, one in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._starts = np.load(folder / STARTS, mmap_mode="r", allow_pickle=False)
        self._lines = os.open(folder / LINES, os.O_RDONLY)
        weakref.finalize(self, os.close, self._lines)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def row(self, index: int) -> Row:
        start, end = (int(at) for at in self._starts[index : index + 2])
        # Not a memory map: its pages would count as this process's memory. No position is shared either, as by seek.
        line: Row = _of_text(os.pread(self._lines, end - start, start).decode("utf-8", "surrogatepass"))
        return line

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return type(self), (self.folder,)


def write_rows(folder: Path, rows: Iterable[Row]) -> RowFile:
    """Lay rows out in the existing `folder`. A value that JSON cannot hold becomes its text."""
    with RowWriter(folder) as writer:
        writer.add(rows)
    return writer.close()


class RowWriter:
    """The same, some rows at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = (folder / LINES).open("wb")
        self._starts = array("q", [0])

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, *problem: object) -> None:
        self._file.close()

    def add(self, rows: Iterable[Row]) -> None:
        at = self._starts[-1]
        for row in rows:
            line = _to_text(row).encode("utf-8", "surrogatepass") + b"\n"
            self._file.write(line)
            at += len(line)
            self._starts.append(at)

    def close(self) -> RowFile:
        self._file.close()
        np.save(self._folder / STARTS, np.asarray(self._starts, dtype=np.int64), allow_pickle=False)
        return RowFile(self._folder)


_to_text = json.JSONEncoder(ensure_ascii=False, default=lambda value: _plain(value)).encode
"""Made once: `json.dumps` would make one for every row."""
_of_text = json.JSONDecoder().decode


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)
