"""Encoded rows on disk: one .npy file per feature and where its windows start, opened as memory maps that processes share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peftkit.tasks.base import IGNORED, Features

Array = NDArray[Any]
STARTS = ".starts.npy"
ROWS = "_row.npy"


class Store:
    """`len(store)` windows; `store[i]` is the i-th one's features, as they were encoded, and `store.row[i]` its row's number."""

    def __init__(self, folder: Path) -> None:
        files = sorted(path for path in folder.glob("*.npy") if not path.name.endswith((STARTS, ROWS)))
        self.row = _open(folder / ROWS)
        self._values = {path.stem: _open(path) for path in files}
        self._starts = {
            name: _open(folder / (name + STARTS)) for name in self._values if (folder / (name + STARTS)).exists()
        }

    def __len__(self) -> int:
        return len(self.row)

    def join(self, columns: Mapping[str, Array]) -> None:
        """More features, one number a window."""
        self._values.update(columns)

    def __getitem__(self, row: int) -> Features:
        return {name: _plain(self._value(name, row)) for name in self._values}

    def _value(self, name: str, row: int) -> Array:
        starts = self._starts.get(name)
        found: Array = self._values[name][row] if starts is None else self._values[name][starts[row] : starts[row + 1]]
        return found

    @cached_property
    def lengths(self) -> list[int]:
        """Positions of each window: its tokens (of all its texts), or 1 where it has nothing of varying length."""
        texts = [starts for name, starts in self._starts.items() if name.endswith("input_ids")]
        texts = texts or list(self._starts.values())[:1]
        return np.sum([np.diff(starts) for starts in texts], axis=0).tolist() if texts else [1] * len(self)

    @cached_property
    def targets(self) -> int:
        """Labels that a loss counts, over all rows."""
        labels = self._values.get("labels")
        return 0 if labels is None else int((labels != IGNORED).sum())


class Writer:
    """Lays features out in a new folder, as many as a disk holds; `close` makes the store of them.

    The windows must have the same names, and arrays that differ in their first axis at most.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._columns: dict[str, _Column] = {}
        self._rows: list[int] = []

    def add(self, row: int, features: Features) -> None:
        """One window of the row of that number."""
        for name, value in features.items():
            if name not in self._columns:
                self._columns[name] = _Column(self._folder / f"{name}.npy")
            self._columns[name].add(_array(value))
        self._rows.append(row)

    def close(self) -> Store:
        for column in self._columns.values():
            column.close()
        np.save(self._folder / ROWS, np.asarray(self._rows, dtype=np.int64), allow_pickle=False)
        return Store(self._folder)


class _Column:
    """One feature of all windows: raw values on the way, .npy in the end."""

    def __init__(self, path: Path) -> None:
        self.path, self.raw = path, path.with_suffix(".raw")
        self.file = self.raw.open("w+b")
        self.starts = [0]
        self.scalar = False
        self.tail: tuple[int, ...] = ()
        self.dtype: Any = None

    def add(self, value: Array) -> None:
        narrow = _narrow(value.dtype)
        if self.dtype is None:
            self.scalar, self.tail, self.dtype = value.ndim == 0, value.shape[1:], narrow
        if narrow != self.dtype and value.size:
            self._widen(np.promote_types(narrow, self.dtype))
        if narrow.kind == "i" and value.size and np.abs(value).max() > np.iinfo(self.dtype).max:
            self._widen(np.dtype(np.int64))
        self.file.write(np.ascontiguousarray(value, dtype=self.dtype).tobytes())
        self.starts.append(self.starts[-1] + (1 if self.scalar else len(value)))

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
        shape = (self.starts[-1], *self.tail)
        out = np.lib.format.open_memmap(self.path, mode="w+", dtype=self.dtype, shape=shape)
        if out.size:
            out[:] = np.memmap(self.raw, self.dtype, mode="r", shape=shape)
        out.flush()
        self.raw.unlink()
        if not self.scalar:
            starts = np.asarray(self.starts, dtype=np.int64)
            np.save(self.path.with_name(self.path.stem + STARTS), starts, allow_pickle=False)


def write(folder: Path, features: Sequence[Features]) -> Store:
    """A store of one window a row."""
    writer = Writer(folder)
    for row, window in enumerate(features):
        writer.add(row, window)
    return writer.close()


def _array(value: Any) -> Array:
    """An empty list is one of whole numbers: numpy would take it for fractions, and its neighbours with it."""
    return np.asarray(value, dtype=np.int64) if isinstance(value, list) and not value else np.asarray(value)


def _narrow(dtype: Any) -> Any:
    """Half the width: token ids fit into it."""
    return np.dtype({"i": np.int32, "f": np.float32}.get(dtype.kind, dtype))


def _open(path: Path) -> Array:
    values: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    return values


def _plain(value: Any) -> Any:
    """Numbers and flat lists as Python's own; an image or a spectrum stays an array."""
    return value if value.ndim > 1 else value.tolist()
