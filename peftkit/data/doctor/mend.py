"""Remedies applied until none is left to apply: first what changes values, then what leaves rows out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace

from peftkit.data.doctor.check import Check, examine
from peftkit.data.doctor.finding import Finding, Remedy, RemedyName
from peftkit.data.doctor.sheet import Case, Sheet
from peftkit.errors import DataError
from peftkit.tasks.base import Row

ROUNDS = 12
"""One remedy can make room for another (trimmed rows that are equal now); this many times in a row it never does."""
EDITS: tuple[RemedyName, ...] = ("normalise", "trim", "fill")
DROPS: tuple[RemedyName, ...] = ("drop", "deduplicate")


@dataclass(frozen=True)
class Change:
    """What a remedy did to one sheet: the numbers, in the file as it was, of the rows that it changed or left out."""

    sheet: str
    split: str
    check: str
    remedy: RemedyName
    numbers: tuple[int, ...]


def mend(case: Case, checks: Collection[Check], asked: Collection[str] = ()) -> tuple[Case, list[Change]]:
    """The case with its remedies applied, and what they changed. `asked` names the checks whose costly remedies are wanted."""
    done: list[Change] = []
    for names in (EDITS, DROPS):
        usable = [one for one in checks if set(one.remedies) & set(names)]
        for _ in range(ROUNDS):
            case, changes = _round(case, examine(case, usable), lambda one: one.name in names, asked)  # noqa: B023
            done += changes
            if not changes:
                break
    _check_left(case)
    return case, done


def _round(
    case: Case, findings: Iterable[Finding], wanted: Callable[[Remedy], bool], asked: Collection[str]
) -> tuple[Case, list[Change]]:
    """Apply what does not meet another change of the same row; the rest is found again in the next round."""
    changes: list[Change] = []
    touched: dict[int, dict[int, Row | None]] = {id(sheet): {} for sheet in case.sheets}
    lines: dict[int, set[int]] = {id(sheet): set() for sheet in case.sheets}
    for finding in findings:
        sheet = finding.sheet
        for remedy in finding.remedies:
            if not wanted(remedy) or (remedy.asked and finding.check not in asked):
                continue
            free = {row: new for row, new in remedy.changes.items() if row not in touched[id(sheet)]}
            touched[id(sheet)] |= free
            lines[id(sheet)] |= set(finding.lines)
            numbers = (*finding.lines, *(sheet.numbers[row] for row in sorted(free)))
            if numbers:
                changes.append(Change(sheet.name, sheet.split, finding.check, remedy.name, tuple(numbers)))
    mended = tuple(_applied(sheet, touched[id(sheet)], lines[id(sheet)]) for sheet in case.sheets)
    return replace(case, sheets=mended), changes


def _applied(sheet: Sheet, changes: dict[int, Row | None], lines: set[int]) -> Sheet:
    if not changes and not lines:
        return sheet
    kept = [row for row in range(len(sheet.raw)) if changes.get(row, {}) is not None]
    return replace(
        sheet,
        raw=[_edited(sheet, row, changes.get(row)) for row in kept],
        numbers=[sheet.numbers[row] for row in kept],
        broken=[one for one in sheet.broken if one[0] not in lines],
        recoded=[number for number in sheet.recoded if number not in lines],
    )


def _edited(sheet: Sheet, row: int, new: Row | None) -> Row:
    """The row, its file's other columns untouched; the same object where nothing changes."""
    if not new:
        return sheet.raw[row]
    return {**sheet.raw[row], **{sheet.columns[own]: value for own, value in new.items()}}


def _check_left(case: Case) -> None:
    for sheet in case.sheets:
        if not sheet.raw and not sheet.problem:
            raise DataError(f"--fix would leave no row of {sheet.split} ({sheet.name}); name fewer checks with --only")
