"""How often an epoch learns the windows of each group: a mixture's sources by weight, labels whatever their number.

Every group is an endless stream: all of its windows in some order, then all in another one. An epoch takes its next part
of each stream, so nothing comes a second time before everything came once; and which part that is follows from the seed
and the epoch's number alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Draws:
    """The groups' windows, and how many of each an epoch takes."""

    members: tuple[NDArray[np.int64], ...]
    counts: tuple[int, ...]

    @property
    def size(self) -> int:
        """Windows in an epoch."""
        return sum(self.counts)

    def epoch(self, seed: int, number: int) -> list[int]:
        """The windows of an epoch (0 is the first), sorted; some may be there several times."""
        groups = range(len(self.members))
        return sorted(window for group in groups for window in self._taken(group, seed, number))

    def _taken(self, group: int, seed: int, number: int) -> list[int]:
        size, count = len(self.members[group]), self.counts[group]
        taken: list[int] = []
        while len(taken) < count:
            lap, start = divmod(number * count + len(taken), size)
            taken += self._lap(group, seed, lap)[start : start + count - len(taken)]
        return taken

    def _lap(self, group: int, seed: int, lap: int) -> list[int]:
        windows: list[int] = self.members[group].tolist()
        if self.counts[group] != len(windows):  # else an epoch takes all, in whatever order
            random.Random(f"lap {seed} {group} {lap}").shuffle(windows)
        return windows


def by_share(groups: Sequence[int] | NDArray[Any], shares: Sequence[float]) -> Draws:
    """As many windows as there are, shared out by `shares`, one a group. Each group that is not empty gets one or more."""
    members = _members(groups, len(shares))
    present = [number for number, windows in enumerate(members) if len(windows)]
    counts = share_out(len(groups), [shares[number] for number in present])
    return Draws(tuple(members[number] for number in present), tuple(counts))


def mixed(groups: NDArray[Any], weights: Sequence[float], temperature: float) -> Draws:
    """A mixture's sources: (weight x windows)^(1 / temperature) of an epoch each."""
    sizes = np.bincount(groups, minlength=len(weights))
    return by_share(groups, [float(weight * n) ** (1 / temperature) for weight, n in zip(weights, sizes, strict=True)])


def balanced(labels: NDArray[Any], grow: bool) -> Draws:
    """Every label as often as each other; with `grow` as often as the most frequent, and nothing is left out."""
    _, groups = np.unique(labels, return_inverse=True)
    count = int(groups.max()) + 1
    members = tuple(_members(groups, count))
    return Draws(members, (max(map(len, members)),) * count) if grow else by_share(groups, [1.0] * count)


def share_out(total: int, shares: Sequence[float]) -> list[int]:
    """`total` in whole numbers by `shares`, at least one each: what is left over goes to the largest remainders."""
    exact = np.asarray(shares, dtype=float) / sum(shares) * total
    counts = np.maximum(1, np.floor(exact)).astype(int)
    while counts.sum() != total:
        off = exact - counts
        step = 1 if counts.sum() < total else -1
        counts[int(np.argmax(off)) if step > 0 else int(np.argmin(np.where(counts > 1, off, np.inf)))] += step
    return [int(number) for number in counts]


def _members(groups: Sequence[int] | NDArray[Any], count: int) -> list[NDArray[np.int64]]:
    numbers = np.asarray(groups)
    return [np.flatnonzero(numbers == group) for group in range(count)]
