"""Encoded rows on disk: one .npy file per feature and where its windows start, opened as memory maps that processes share."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peftkit.data.draws import Draws
from peftkit.tasks.base import IGNORED, Features

Array = NDArray[Any]
STARTS, SHAPES = ".starts.npy", ".shapes.npy"
ROWS, GROUPS = "_row.npy", "_group.npy"
PLACES = "_place.npy"
NO_FEATURES = (STARTS, SHAPES, ROWS, GROUPS, PLACES)


class Store:
    """`len(store)` windows; `store[i]` is the i-th one's features, as they were encoded, and `store.row[i]` its row's number."""

    def __init__(self, folder: Path) -> None:
        files = [path for path in folder.glob("*.npy") if not path.name.endswith(NO_FEATURES)]
        self.row = _open(folder / ROWS)
        self.group = _open(folder / GROUPS)
        """The number of the source that each window's row is of; 0 where there is one."""
        self.draws: Draws | None = None
        """What an epoch takes of these windows, where it is not simply all of them."""
        self.first: int | None = None
        """The number of its first window among those of all splits, where batches say which windows are in them."""
        self._values = {path.stem: _open(path) for path in sorted(files)}
        self._starts, self._shapes = (
            {name: _open(folder / (name + end)) for name in self._values if (folder / (name + end)).exists()}
            for end in (STARTS, SHAPES)
        )

    def __len__(self) -> int:
        return len(self.row)

    @property
    def epoch(self) -> int:
        """Windows in an epoch."""
        return self.draws.size if self.draws else len(self)

    def windows_of(self, rows: int | None) -> int:
        """How many windows the first `rows` rows have; None: all rows."""
        starts = np.unique(self.row, return_index=True)[1]
        return len(self) if rows is None or rows >= len(starts) else int(starts[rows])

    def join(self, columns: Mapping[str, Array]) -> None:
        """More features, one number a window."""
        self._values.update(columns)

    def __getitem__(self, row: int) -> Features:
        return {name: _plain(self._value(name, row)) for name in self._values}

    def _value(self, name: str, row: int) -> Array:
        starts, shapes = self._starts.get(name), self._shapes.get(name)
        found: Array = self._values[name][row] if starts is None else self._values[name][starts[row] : starts[row + 1]]
        return found if shapes is None else found.reshape(shapes[row])

    def numbers(self, name: str) -> Array | None:
        """A feature that is one whole number in every window; None if it is none, or another kind of feature."""
        found = self._values.get(name)
        plain = found is not None and name not in self._starts and found.dtype.kind == "i"
        return found if plain else None

    @cached_property
    def lengths(self) -> list[int]:
        """Positions of each window: its tokens (of all its texts), or 1 where it has nothing of varying length."""
        texts = [starts for name, starts in self._starts.items() if name.endswith("input_ids")]
        texts = texts or [starts for name, starts in self._starts.items() if name.startswith("input_")][:1]
        return np.sum([np.diff(starts) for starts in texts], axis=0).tolist() if texts else [1] * len(self)

    @cached_property
    def targets(self) -> int:
        """Labels that a loss counts, over all rows."""
        labels = self._values.get("labels")
        return 0 if labels is None else int((labels != IGNORED).sum())


class Writer:
    """Lays features out in a new folder, as many as a disk holds; `close` makes the store of them.

    The windows must have the same names. What is not closed leaves raw files behind, which are the caller's to remove.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._columns: dict[str, _Column] = {}
        self._rows = array("q")
        self._groups = array("i")

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *problem: object) -> None:
        for column in self._columns.values():
            column.file.close()

    def add(self, row: int, features: Features, group: int = 0) -> None:
        """One window of the row of that number."""
        for name, value in features.items():
            if name not in self._columns:
                self._columns[name] = _Column(self._folder / f"{name}.npy")
            self._columns[name].add(_array(value))
        self._rows.append(row)
        self._groups.append(group)

    def add_many(self, windows: Sequence[tuple[int, Features, int]]) -> None:
        """Several: each with the number of its row and that of its group."""
        names = windows[0][1].keys() if windows else ()
        columns = {name: [features.get(name) for _, features, _ in windows] for name in names}
        alike = all(features.keys() == names for _, features, _ in windows)
        if not alike or not all(map(_in_one, columns.values())):
            for row, features, group in windows:
                self.add(row, features, group)
            return
        for name, values in columns.items():
            if name not in self._columns:
                self._columns[name] = _Column(self._folder / f"{name}.npy")
            self._columns[name].add_many(values)
        self._rows.extend(row for row, _, _ in windows)
        self._groups.extend(group for _, _, group in windows)

    def close(self) -> Store:
        for column in self._columns.values():
            column.close()
        np.save(self._folder / ROWS, np.asarray(self._rows, dtype=np.int64), allow_pickle=False)
        np.save(self._folder / GROUPS, np.asarray(self._groups, dtype=np.int32), allow_pickle=False)
        return Store(self._folder)


class _Column:
    """One feature of all windows: raw values on the way, .npy in the end.

    Single numbers stand one after another, and so do the values of lists, behind an index of where each window's start;
    arrays of more axes have their shapes beside them.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.raw = path, path.with_suffix(".raw")
        self.file = self.raw.open("w+b")
        self.starts = array("q", [0])
        self.shapes: list[tuple[int, ...]] = []
        self.axes = 0
        self.dtype: Any = None

    def add(self, value: Array) -> None:
        self._write(value, value.ndim)
        self.starts.append(self.starts[-1] + value.size)
        if value.ndim > 1:
            self.shapes.append(value.shape)

    def add_many(self, values: Sequence[Any]) -> None:
        """Of several windows: whole numbers, or arrays of ids (`_in_one`)."""
        single = isinstance(values[0], int)
        self._write(np.asarray(values) if single else np.concatenate(values), 1 - single)
        ends = np.cumsum([1 if single else len(value) for value in values]) + self.starts[-1]
        self.starts.extend(ends.tolist())

    def _write(self, value: Array, axes: int) -> None:
        narrow = _narrow(value.dtype)
        if self.dtype is None:
            self.axes, self.dtype = axes, narrow
        if narrow != self.dtype and value.size:
            self._widen(np.promote_types(narrow, self.dtype))
        if narrow.kind == "i" == self.dtype.kind and value.size and not _fits(value, self.dtype):
            self._widen(np.dtype(np.int64))
        self.file.write(np.ascontiguousarray(value, dtype=self.dtype).tobytes())

    def _widen(self, dtype: Any) -> None:
        """What is written so far, in a wider format: rare, and right."""
        if dtype == self.dtype:
            return
        self.file.flush()
        old = np.fromfile(self.raw, self.dtype)
        self.file.seek(0)
        self.file.write(old.astype(dtype).tobytes())
        self.dtype = dtype

    def close(self) -> None:
        self.file.close()
        out = np.lib.format.open_memmap(self.path, mode="w+", dtype=self.dtype, shape=(self.starts[-1],))
        if out.size:
            out[:] = np.memmap(self.raw, self.dtype, mode="r")
        out.flush()
        self.raw.unlink()
        if self.axes:
            self._save(STARTS, self.starts)
        if self.shapes:
            self._save(SHAPES, self.shapes)

    def _save(self, end: str, numbers: Any) -> None:
        np.save(self.path.with_name(self.path.stem + end), np.asarray(numbers, dtype=np.int64), allow_pickle=False)


def write(folder: Path, features: Sequence[Features]) -> Store:
    """A store of one window a row."""
    with Writer(folder) as writer:
        for row, window in enumerate(features):
            writer.add(row, window)
        return writer.close()


def _array(value: Any) -> Array:
    """An empty list is one of whole numbers: numpy would take it for fractions, and its neighbours with it."""
    return np.asarray(value, dtype=np.int64) if isinstance(value, list) and not value else np.asarray(value)


def _in_one(values: Sequence[Any]) -> bool:
    """Whether they can be written as one array without a question: all whole numbers, or all flat arrays of ids."""
    if isinstance(values[0], np.ndarray):
        return all(isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype == np.int32 for value in values)
    return all(type(value) is int for value in values)


def _fits(value: Array, dtype: Any) -> bool:
    limits = np.iinfo(dtype)
    return limits.min <= int(value.min()) and int(value.max()) <= limits.max


def _narrow(dtype: Any) -> Any:
    """Half the width: token ids fit into it."""
    return np.dtype({"i": np.int32, "f": np.float32}.get(dtype.kind, dtype))


def _open(path: Path) -> Array:
    values: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    return values


def _plain(value: Any) -> Any:
    """Numbers and flat lists as Python's own; an image or a spectrum stays an array, one that may be written to."""
    return np.array(value) if value.ndim > 1 else value.tolist()  # torch warns of an array that is a read-only file
