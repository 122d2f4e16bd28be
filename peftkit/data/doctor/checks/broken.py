"""Lines that are no row, files that are not UTF-8, and sources whose columns do not do for the task."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from peftkit.data.doctor.check import check
from peftkit.data.doctor.finding import Finding, Remedy, drop
from peftkit.data.doctor.sheet import Case


@check("broken", "drop")
def broken(case: Case) -> Iterator[Finding]:
    """Lines that do not parse, by reason; of other formats the whole file."""
    for sheet in case.sheets:
        if sheet.problem:
            yield Finding(
                sheet, "error", [], f"nothing can be read: {sheet.problem}", advice="mend the file", lines=(1,)
            )
        reasons = defaultdict(list)
        for number, reason in sheet.broken:
            reasons[reason].append(number)
        for reason, numbers in reasons.items():
            means = f"training stops here: {reason}"
            yield Finding(sheet, "error", [], means, (drop([], "leave these lines out"),), lines=tuple(numbers))


@check("encoding", "normalise")
def encoding(case: Case) -> Iterator[Finding]:
    """Lines in another encoding."""
    remedy = Remedy("normalise", "write them as UTF-8, read as Windows-1252 (or UTF-16 where the file says so)")
    for sheet in case.sheets:
        if sheet.recoded:
            means = "training stops here: these bytes are not UTF-8"
            yield Finding(sheet, "error", [], means, (remedy,), lines=tuple(sheet.recoded))


@check("columns")
def columns(case: Case) -> Iterator[Finding]:
    """Sources that lack a column which the task reads."""
    for sheet in case.sheets:
        if sheet.lacking:
            advice = "name it with --data.columns, or choose another --task"
            yield Finding(sheet, "error", range(len(sheet.raw)), sheet.lacking, advice=advice)
