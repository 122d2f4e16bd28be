"""Rows on disk: one JSON line each and an index of where they start, read one at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from peftkit.tasks.base import Row

LINES, STARTS = "rows.jsonl", "rows.starts.npy"


class RowFile(Sequence[Row]):
    """The rows of a folder that `write_rows` made: as many as a disk holds, one in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._starts = np.load(folder / STARTS, mmap_mode="r", allow_pickle=False)
        empty = not (folder / LINES).stat().st_size
        self._lines = np.empty(0, np.uint8) if empty else np.memmap(folder / LINES, np.uint8, mode="r")

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        start, end = self._starts[index % len(self)], self._starts[index % len(self) + 1]
        row: Row = json.loads(self._lines[start:end].tobytes())
        return row

    def __iter__(self) -> Iterator[Row]:
        return (self[at] for at in range(len(self)))


def write_rows(folder: Path, rows: Iterable[Row]) -> RowFile:
    """Lay rows out in the existing `folder`. A value that JSON cannot hold becomes its text."""
    starts = [0]
    with (folder / LINES).open("wb") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, default=_plain).encode("utf-8", "surrogatepass") + b"\n")
            starts.append(file.tell())
    np.save(folder / STARTS, np.asarray(starts, dtype=np.int64), allow_pickle=False)
    return RowFile(folder)


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)
