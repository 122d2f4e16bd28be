"""Rows that are there more than once, exactly or nearly."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

from peftkit.data.doctor.check import check
from peftkit.data.doctor.checks.missing import is_empty, lacks
from peftkit.data.doctor.finding import Finding, Remedy
from peftkit.data.doctor.sheet import TRAIN, Case, Sheet
from peftkit.data.doctor.similar import near_earlier, shingle
from peftkit.data.doctor.values import canonical, loosened, texts


@check("duplicates", "deduplicate")
def duplicates(case: Case) -> Iterator[Finding]:
    """Rows equal to an earlier one of the same source in every column that the task reads."""
    for sheet in case.sheets:
        keys = zip(sheet.rows, case.each("canonical", sheet, canonical), strict=True)
        rows = (
            later([None if is_empty(row) or lacks(sheet, row) else key for row, key in keys]) if sheet.columns else []
        )
        means = "equal to an earlier row in every column that the task reads"
        yield Finding(sheet, "warning", rows, means, (_remedy(sheet, rows),))


@check("near_duplicates", "deduplicate")
def near_duplicates(case: Case) -> Iterator[Finding]:
    """Rows whose texts are nearly those of an earlier one; equal texts are for other checks."""
    for sheet in case.sheets:
        again = set(later(case.each("texts", sheet, lambda row: loosened(texts(row)))))
        shingled = case.each("shingled", sheet, lambda row: shingle(texts(row)))
        rows = list(near_earlier([None if at in again else one for at, one in enumerate(shingled)]))
        means = "nearly the text of an earlier row (four fifths of it, with the same numbers)"
        yield Finding(sheet, "warning", rows, means, (_remedy(sheet, rows),))


def later(keys: Sequence[Hashable]) -> list[int]:
    """Where a key stands that stood before (None never does)."""
    seen: set[Hashable] = set()
    found = []
    for at, key in enumerate(keys):
        if key is not None and key in seen:
            found.append(at)
        seen.add(key)
    return found


def _remedy(sheet: Sheet, rows: Sequence[int]) -> Remedy:
    """Of rows to validate or test on nothing is left out unless asked: their scores are compared with others'."""
    return Remedy("deduplicate", "keep the first of them", dict.fromkeys(rows), asked=sheet.split != TRAIN)
