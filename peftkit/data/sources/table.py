"""What was read: rows, and where each stands in which file."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import overload

from peftkit.data.rows import Picked
from peftkit.tasks.base import Row

Numbered = Iterator[tuple[int, Row]]
"""Rows, each with its number (the line or row, from 1) in what it was read from."""


@dataclass(frozen=True)
class Table:
    """Rows as they were read (on disk if there are many), and where each stands in its file."""

    name: str
    rows: Sequence[Row]
    numbers: Sequence[int]
    unit: str = "row"
    places: Sequence[str] | None = None
    """Where a row's number alone does not say it (several files): the place of row 1, 2, ..."""

    @cached_property
    def columns(self) -> list[str]:
        """The columns of all rows, in the order they first appear."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def place(self, index: int) -> str:
        """`reviews.csv line 7`."""
        number = self.numbers[index]
        return f"{self.name} {self.unit} {number}" if self.places is None else self.places[number - 1]

    def pick(self, indices: Sequence[int]) -> Table:
        """These rows of it, with their places."""
        rows = self.rows
        picked = [rows[i] for i in indices] if isinstance(rows, list) else Picked(rows, array("q", indices))
        return replace(self, rows=picked, numbers=array("q", (self.numbers[i] for i in indices)))


@dataclass(frozen=True)
class Source:
    """Something that rows can be read from: a file, several, a folder, a data set."""

    name: str
    unit: str
    rows: Callable[[], Numbered]
    digest: Callable[[Path], str]
    """What the rows are, in letters; its argument is the cache's folder, where digests of files are kept."""
    places: Sequence[str] | None = None


class Places(Sequence[str]):
    """`a.jsonl line 3` for each row of several files, at eight bytes a row."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._starts: list[int] = []
        self._numbers = array("q")

    def begin(self, name: str) -> None:
        """The rows from here on are those of the file `name`; it ends with the unit: `a.jsonl line`."""
        self._names.append(name)
        self._starts.append(len(self._numbers))

    def add(self, number: int) -> None:
        self._numbers.append(number)

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        return f"{self._names[bisect_right(self._starts, index) - 1]} {self._numbers[index]}"
