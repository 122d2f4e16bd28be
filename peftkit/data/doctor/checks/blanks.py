"""Blanks at the ends of texts and names."""

from __future__ import annotations

from collections.abc import Iterator

from peftkit.data.doctor.check import check
from peftkit.data.doctor.edit import FILES, edited
from peftkit.data.doctor.finding import Finding, Remedy
from peftkit.data.doctor.sheet import Case
from peftkit.data.doctor.values import LABELS

BUT = (*FILES, *LABELS, "tokens", "answers")
"""Names are another check's (`label_names`); words and answers stand at positions."""


@check("blanks", "trim")
def blanks(case: Case) -> Iterator[Finding]:
    """Texts that begin or end with blanks; texts that are nothing else are missing, and another check's."""
    for sheet in case.sheets:
        new = case.each("blanks", sheet, lambda row: edited(row, _trimmed, BUT))
        changes = {at: one for at, one in enumerate(new) if one}
        yield Finding(
            sheet, "note", list(changes), "texts begin or end with blanks", (Remedy("trim", "cut them off", changes),)
        )


def _trimmed(text: str) -> str:
    return text.strip() or text
