"""What a check says: a finding, and the remedy that `--fix` applies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from peftkit.data.doctor.sheet import Sheet
from peftkit.tasks.base import Row

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
RemedyName = Literal["drop", "fill", "deduplicate", "normalise", "trim"]
FIRST = 8
"""How many row numbers are shown."""


@dataclass(frozen=True)
class Remedy:
    """What is changed: index of a row -> its columns' new values (task's names), or None where the row goes."""

    name: RemedyName
    says: str
    changes: Mapping[int, Row | None] = field(default_factory=dict)
    asked: bool = False
    """Applied only where `--only` names the check: it gives up what may be wanted."""

    @property
    def drops(self) -> bool:
        return self.name in ("drop", "deduplicate")


@dataclass(frozen=True)
class Finding:
    """One defect of one sheet: which rows have it (or lines that are no rows), what it means, what to do."""

    sheet: Sheet
    severity: Severity
    rows: Sequence[int]
    means: str
    remedies: tuple[Remedy, ...] = ()
    advice: str = ""
    lines: tuple[int, ...] = ()
    check: str = ""

    @property
    def numbers(self) -> list[int]:
        """The file's own numbers of the rows."""
        return [*self.lines, *(self.sheet.numbers[row] for row in self.rows)]

    @property
    def says(self) -> str:
        """What can be done."""
        told = [f"{one.name}: {one.says}" + (f" (--only {self.check})" * one.asked) for one in self.remedies]
        return "; ".join([*told, *([self.advice] if self.advice else [])])

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        sheet = self.sheet
        place = {"split": sheet.split, "file": sheet.name, "unit": sheet.unit}
        numbers = self.numbers
        remedies = [one.name for one in self.remedies]
        return {
            "check": self.check,
            "severity": self.severity,
            **place,
            "count": len(numbers),
            "rows": numbers,
            "means": self.means,
            "remedies": remedies,
            "remedy": self.says,
        }


def drop(rows: Iterable[int], says: str = "leave these rows out", asked: bool = False) -> Remedy:
    """The remedy that leaves rows out."""
    return Remedy("drop", says, dict.fromkeys(rows), asked)
