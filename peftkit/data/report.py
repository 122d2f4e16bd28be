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
    first: list[int] | list[str]
    """Numbers, or places where the rows are of several files."""

    def line(self, unit: str) -> str:
        """`12 rows left out (no 'text'): lines 3, 7, 8, 20, 31, ...`"""
        numbers = ", ".join(map(str, self.first)) + (", ..." if self.count > len(self.first) else "")
        rows, units = ("row", unit) if self.count == 1 else ("rows", unit + "s")
        places = numbers if isinstance(self.first[0], str) else f"{units} {numbers}"
        return f"{self.count} {rows} left out ({self.reason}): {places}"


@dataclass(frozen=True)
class SplitReport:
    """One split's count."""

    source: str
    unit: str
    rows: int
    kept: int
    cut: int
    tokens: int
    """0 where the rows are no text."""
    targets: int
    dropped: list[Dropped] = field(default_factory=list)
    windows: int = 0
    """What the kept rows were cut into; as many as there are rows, where each is one."""
    copies: int = 0
    """Changed copies among the rows."""

    def lines(self, max_length: int) -> list[str]:
        """What a user should know, the count first."""
        windows = f" in {self.windows:,} windows" if self.windows > self.kept else ""
        tokens = f"{counted(self.tokens, 'token')}, " if self.tokens else ""
        lines = [f"{counted(self.kept, 'row')}{windows}, {tokens}{counted(self.targets, 'target')} from {self.source}"]
        if self.copies:
            lines.append(f"{self.copies:,} of the {self.rows:,} rows read are changed copies (--data.augment)")
        if self.cut:
            lines.append(f"{self.cut} of them cut to {max_length} tokens (--data.max_length, or the model's own limit)")
        return lines + [dropped.line(self.unit) for dropped in self.dropped]


def counted(number: int, what: str) -> str:
    """`1 row`, `2,000 rows`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


@dataclass(frozen=True)
class Report:
    """Every split's count."""

    splits: dict[str, SplitReport]
    max_length: int
    epoch: str = ""
    """What an epoch takes of the training rows, where it is not simply all of them."""

    def lines(self) -> list[str]:
        """In words, a line each: `train: 400 rows, ...`."""
        lines = [f"{name}: {line}" for name, split in self.splits.items() for line in split.lines(self.max_length)]
        return [*lines, *([f"train: {self.epoch}"] if self.epoch else [])]

    def plain(self) -> dict[str, Any]:
        """As JSON holds it; `read` is its inverse."""
        return asdict(self)

    @classmethod
    def read(cls, plain: dict[str, Any]) -> Report:
        splits = {
            name: SplitReport(**{**split, "dropped": [Dropped(**dropped) for dropped in split["dropped"]]})
            for name, split in plain["splits"].items()
        }
        return cls(splits, plain["max_length"], plain["epoch"])
