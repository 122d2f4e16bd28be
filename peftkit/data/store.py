"""Encoded rows on disk: one .npy file per feature and its row starts, opened as memory maps that processes share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peftkit.tasks.base import IGNORED, Features

Array = NDArray[Any]
STARTS = ".starts.npy"


class Store:
    """`len(store)` rows; `store[i]` is the i-th one's features, as they were encoded."""

    def __init__(self, folder: Path) -> None:
        files = sorted(path for path in folder.glob("*.npy") if not path.name.endswith(STARTS))
        self._values = {path.stem: _open(path) for path in files}
        self._starts = {
            name: _open(folder / (name + STARTS)) for name in self._values if (folder / (name + STARTS)).exists()
        }

    def __len__(self) -> int:
        for name, values in self._values.items():
            return len(self._starts[name]) - 1 if name in self._starts else len(values)
        return 0

    def __getitem__(self, row: int) -> Features:
        return {name: _plain(self._value(name, row)) for name in self._values}

    def _value(self, name: str, row: int) -> Array:
        starts = self._starts.get(name)
        found: Array = self._values[name][row] if starts is None else self._values[name][starts[row] : starts[row + 1]]
        return found

    @cached_property
    def lengths(self) -> list[int]:
        """Positions of each row: its tokens, or 1 where a row has nothing of varying length."""
        starts = self._starts.get("input_ids", next(iter(self._starts.values()), None))
        return [1] * len(self) if starts is None else np.diff(starts).tolist()

    @cached_property
    def targets(self) -> int:
        """Labels that a loss counts, over all rows."""
        labels = self._values.get("labels")
        return 0 if labels is None else int((labels != IGNORED).sum())


def write(folder: Path, features: Sequence[Features]) -> Store:
    """Lay features out in `folder`; the rows must have the same names, and arrays that differ in their first axis at most."""
    folder.mkdir(parents=True)
    for name in features[0] if features else ():
        column = [_array(row[name]) for row in features]
        if column[0].ndim == 0:
            _save(folder / f"{name}.npy", np.stack(column))
        else:
            _save(folder / f"{name}.npy", np.concatenate(column))
            _save(folder / (name + STARTS), np.cumsum([0, *(len(value) for value in column)]))
    return Store(folder)


def _array(value: Any) -> Array:
    """An empty list is one of whole numbers: numpy would take it for fractions, and its neighbours with it."""
    return np.asarray(value, dtype=np.int64) if isinstance(value, list) and not value else np.asarray(value)


def _save(path: Path, values: Array) -> None:
    """In half the width where every value fits: token ids do."""
    narrow: Any = {"i": np.int32, "f": np.float32}.get(values.dtype.kind, values.dtype)
    fits = values.dtype.kind != "i" or not values.size or np.abs(values).max() <= np.iinfo(np.int32).max
    np.save(path, values.astype(narrow) if fits else values, allow_pickle=False)


def _open(path: Path) -> Array:
    values: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    return values


def _plain(value: Any) -> Any:
    """Numbers and flat lists as Python's own; an image or a spectrum stays an array."""
    return value if value.ndim > 1 else value.tolist()
