"""What became of the rows: how many were read, kept, cut, left out, and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

FIRST = 5
"""So many row numbers are named; the rest is counted."""


@dataclass(frozen=True)
class Dropped:
    """Rows left out for one reason."""

    reason: str
    count: int
    first: list[int]

    def line(self, unit: str) -> str:
        """`12 rows left out (no 'text'): lines 3, 7, 8, 20, 31, ...`"""
        numbers = ", ".join(map(str, self.first)) + (", ..." if self.count > len(self.first) else "")
        rows, units = ("row", unit) if self.count == 1 else ("rows", unit + "s")
        return f"{self.count} {rows} left out ({self.reason}): {units} {numbers}"


@dataclass(frozen=True)
class SplitReport:
    """One split's count."""

    source: str
    unit: str
    rows: int
    kept: int
    cut: int
    tokens: int
    targets: int
    dropped: list[Dropped] = field(default_factory=list)

    def lines(self, max_length: int) -> list[str]:
        """What a user should know, the count first."""
        lines = [f"{self.kept:,} rows, {self.tokens:,} tokens, {self.targets:,} targets from {self.source}"]
        if self.cut:
            lines.append(f"{self.cut} of them cut to {max_length} tokens (--data.max_length, or the model's own limit)")
        return lines + [dropped.line(self.unit) for dropped in self.dropped]


@dataclass(frozen=True)
class Report:
    """Every split's count."""

    splits: dict[str, SplitReport]
    max_length: int

    def lines(self) -> list[str]:
        """In words, a line each: `train: 400 rows, ...`."""
        return [f"{name}: {line}" for name, split in self.splits.items() for line in split.lines(self.max_length)]

    def plain(self) -> dict[str, Any]:
        """As JSON holds it; `read` is its inverse."""
        return asdict(self)

    @classmethod
    def read(cls, plain: dict[str, Any]) -> Report:
        splits = {
            name: SplitReport(**{**split, "dropped": [Dropped(**dropped) for dropped in split["dropped"]]})
            for name, split in plain["splits"].items()
        }
        return cls(splits, plain["max_length"])
