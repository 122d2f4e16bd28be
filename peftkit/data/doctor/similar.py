"""Texts that are nearly the same: MinHash (Broder, 1997) proposes pairs, the exact overlap of their shingles decides.

Near means: in every column at least 0.8 of all shingles of five bytes are shared (case and punctuation aside), and the
numbers are the same (`5 apples` and `7 apples` are two exercises, no copies).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

NEAR = 0.8
WIDTH = 5
ENOUGH = 40
"""Bytes that a row must have: of a few words, nearly the same is not the same."""
PERMUTATIONS, BANDS, ROWS = 120, 20, 6
"""Bands of rows: a pair at 0.8 is proposed with probability 0.998, one at 0.5 with 0.27."""
POWERS = np.array([257**power for power in range(WIDTH)], dtype=np.uint64)
SPREAD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Shingled:
    """A row's texts as sets of numbers, by column, its signature, and the numbers that it names."""

    columns: dict[str, NDArray[np.uint32]]
    figures: tuple[str, ...]
    signature: Any


def shingle(found: dict[str, str]) -> Shingled | None:
    """The texts' shingles; None where there is too little to compare."""
    plain = {column: re.sub(r"\W+", " ", text.casefold()).strip() for column, text in found.items()}
    if sum(len(text.encode("utf-8", "ignore")) for text in plain.values()) < ENOUGH:
        return None
    figures = tuple(re.findall(r"\d+", " ".join(found.values())))
    columns = {column: _hashes(text) for column, text in plain.items()}
    return Shingled(columns, figures, _signature(np.concatenate(list(columns.values()))))


def near(one: Shingled, other: Shingled) -> bool:
    """Whether two rows are nearly the same in every column."""
    if one.figures != other.figures or one.columns.keys() != other.columns.keys():
        return False
    return all(overlap(one.columns[name], other.columns[name]) >= NEAR for name in one.columns)


def overlap(one: NDArray[np.uint32], other: NDArray[np.uint32]) -> float:
    """Shared shingles of all shingles (Jaccard)."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / max(1, len(one) + len(other) - shared)


class Index:
    """Rows to look for near ones among."""

    def __init__(self) -> None:
        from datasketch import MinHashLSH

        self._buckets = MinHashLSH(num_perm=PERMUTATIONS, params=(BANDS, ROWS))
        self._kept: list[Shingled] = []

    def add(self, row: Shingled) -> None:
        self._buckets.insert(len(self._kept), row.signature, check_duplication=False)
        self._kept.append(row)

    def has_near(self, row: Shingled) -> bool:
        return any(near(row, self._kept[at]) for at in self._buckets.query(row.signature))


def near_earlier(rows: Sequence[Shingled | None]) -> Iterator[int]:
    """The rows that are nearly the same as an earlier one that is not itself such a row."""
    index = Index()
    for at, row in enumerate(rows):
        if row is not None and index.has_near(row):
            yield at
        elif row is not None:
            index.add(row)


def _hashes(text: str) -> NDArray[np.uint32]:
    data = np.frombuffer(text.encode("utf-8", "ignore").ljust(WIDTH), np.uint8).astype(np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(data, WIDTH)
    return np.unique(((windows * POWERS).sum(axis=1) * SPREAD >> np.uint64(32)).astype(np.uint32))


def _signature(hashes: NDArray[np.uint32]) -> Any:
    made = _blank().copy()
    made.update_batch(hashes.tolist())
    return made


@cache
def _blank() -> Any:
    """A signature of nothing: its permutations are drawn once."""
    from datasketch import MinHash

    return MinHash(PERMUTATIONS, hashfunc=int)
