"""Two models side by side on the same rows: all that is shown of them, in whatever form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from peftkit.evaluation.changes import Change, counts
from peftkit.evaluation.paired import Difference


@dataclass(frozen=True)
class Side:
    """One of the two models."""

    label: str
    """What it is called in tables: `base`, `tuned`, `A`, `B`."""
    name: str
    """Which model it is."""
    unread: tuple[tuple[str, str], ...] = ()
    """The rows that it could not read, by their place, and why."""


@dataclass(frozen=True)
class Group:
    """The rows with one value in a column."""

    value: str
    rows: int
    numbers: tuple[tuple[str, float, float], ...]
    """Name, and what each side scores."""


@dataclass(frozen=True)
class Comparison:
    """What came of it."""

    before: Side
    after: Side
    data: str
    """What the rows were read from."""
    task: str
    differences: tuple[Difference, ...]
    changes: tuple[Change, ...]
    """Every row that both have read."""
    samples: int
    """Drawn for an interval, and exchanges made for a test."""
    by: str | None = None
    groups: tuple[Group, ...] = ()
    notes: tuple[str, ...] = field(default=())
    """What one should know before one believes the numbers."""

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.before, self.after

    @property
    def counts(self) -> dict[str, int]:
        """How many rows became what."""
        return {str(kind): count for kind, count in counts(self.changes).items()}

    @property
    def changed(self) -> list[Change]:
        """The rows whose answer is another one, the gravest change first; of one kind those whose loss moved most."""
        order = list(self.counts)
        return sorted(
            (change for change in self.changes if change.kind != "same" or change.before != change.after),
            key=lambda change: (order.index(change.kind), -moved(change), change.row),
        )

    def plain(self) -> dict[str, Any]:
        """As JSON holds it: numbers that are none (NaN, infinity) as null."""
        found: dict[str, Any] = finite(asdict(self))
        for one, own in zip(found["differences"], self.differences, strict=True):
            one |= {"difference": finite(own.difference), "verdict": own.verdict}
        return {**found, "counts": self.counts}


def moved(change: Change) -> float:
    """By how much a row's loss changed."""
    gap = abs(change.losses[1] - change.losses[0]) if change.losses else 0.0
    return 0.0 if math.isnan(gap) else gap


def finite(value: Any) -> Any:
    """The same with None for every number that is none, which JSON has no word for."""
    if isinstance(value, dict):
        return {name: finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def verdict_of(one: Difference, label: str) -> str:
    """In words, of the second model."""
    words = {"better": f"{label} is better", "worse": f"{label} is worse", "even": "undecided"}
    return words.get(one.verdict, "not tested" if math.isnan(one.p) and one.test else "")


def unread_lines(sides: Sequence[Side], first: int = 3) -> list[str]:
    """Which rows a model could not read, and why; the first of them by name."""
    lines = []
    alike = len({side.unread for side in sides}) == 1
    for side in sides[:1] if alike else sides:
        if side.unread:
            named = "; ".join(f"{place} ({why})" for place, why in side.unread[:first])
            more = f"; and {len(side.unread) - first:,} more" if len(side.unread) > first else ""
            count, whom = len(side.unread), "both" if alike else side.label
            lines.append(f"{count:,} row{'s' * (count != 1)} could not be read for {whom}: {named}{more}")
    return lines
