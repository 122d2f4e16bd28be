"""Rows to train on that are also rows to validate or test on, exactly or nearly: scores on them are too good."""

from __future__ import annotations

from collections.abc import Iterator

from peftkit.data.doctor.check import check
from peftkit.data.doctor.finding import Finding, drop
from peftkit.data.doctor.sheet import TRAIN, Case, Sheet
from peftkit.data.doctor.similar import Index, Shingled, shingle
from peftkit.data.doctor.values import LABELS, TARGETS, inputs, loosened, texts

PAIRS = ((TRAIN, "test"), (TRAIN, "validation"), ("validation", "test"))
"""Rows are left out of the first of the two, never of the test rows."""
WRITTEN = {*TARGETS, "messages", "prompt"} - set(LABELS)
"""Columns with texts that are learnt, or with conversations."""


@check("leakage", "drop")
def leakage(case: Case) -> Iterator[Finding]:
    """Equal inputs (but for case and blanks) in two splits."""
    for from_split, into in PAIRS:
        keys = {key for sheet in case.of(into) for key in _keys(case, sheet) if key is not None}
        for sheet in case.of(from_split):
            rows = [at for at, key in enumerate(_keys(case, sheet)) if key in keys]
            remedy = drop(rows, f"leave these rows out of {from_split}")
            yield Finding(
                sheet, "error", rows, f"the same input is in {into}, whose scores are too good then", (remedy,)
            )


@check("near_leakage", "drop")
def near_leakage(case: Case) -> Iterator[Finding]:
    """Nearly equal inputs in two splits."""
    for from_split, into in PAIRS:
        if not case.of(from_split) or not case.of(into):
            continue
        index, exact = Index(), set()
        for other in case.of(into):
            exact |= set(_keys(case, other))
            for row in _shingled(case, other):
                if row is not None:
                    index.add(row)
        for sheet in case.of(from_split):
            both = zip(_shingled(case, sheet), _keys(case, sheet), strict=True)
            rows = [at for at, (row, key) in enumerate(both) if row and key not in exact and index.has_near(row)]
            remedy = drop(rows, f"leave these rows out of {from_split}")
            yield Finding(sheet, "warning", rows, f"nearly the same input is in {into}", (remedy,))


def _keys(case: Case, sheet: Sheet) -> list[bytes | None]:
    return case.each("inputs", sheet, lambda row: loosened(inputs(row)))


def _shingled(case: Case, sheet: Sheet) -> list[Shingled | None]:
    """Of rows whose texts are all inputs, those that `near_duplicates` made."""
    if set(sheet.columns) & WRITTEN:
        return case.each("shingled inputs", sheet, lambda row: shingle(inputs(row)))
    return case.each("shingled", sheet, lambda row: shingle(texts(row)))
