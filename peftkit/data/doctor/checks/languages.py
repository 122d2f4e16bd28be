"""Which languages the texts are in (py3langid); rows in another one where one is nearly all."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any

from peftkit.data.doctor.check import check
from peftkit.data.doctor.finding import Finding, drop
from peftkit.data.doctor.sheet import Case, Sheet
from peftkit.data.doctor.values import texts
from peftkit.tasks.base import Row

SURE = 0.95
LETTERS = 40
"""Of shorter texts the language is a guess."""
READ = 400
"""Characters that are looked at."""
FEWEST = 20
DOMINATES = 0.9


@check("languages", "drop")
def languages(case: Case) -> Iterator[Finding]:
    """Rows in another language than most, by column; or how the languages are mixed."""
    for sheet in case.sheets:
        found = case.each("languages", sheet, lambda row: {name: language(text) for name, text in texts(row).items()})
        for column in dict.fromkeys(name for row in found for name in row):
            yield from _column(sheet, column, found)


def _column(sheet: Sheet, column: str, found: list[Row]) -> Iterator[Finding]:
    counts = Counter(row[column] for row in found if row.get(column))
    if len(counts) < 2 or counts.total() < FEWEST:
        return
    main, most = counts.most_common(1)[0]
    rows = [at for at, row in enumerate(found) if row.get(column) not in (None, main)]
    told = ", ".join(f"{name} {count}" for name, count in counts.most_common(8))
    if most >= DOMINATES * counts.total():
        means = f"`{column}` is in another language than nearly all rows, which are {main} ({told})"
        yield Finding(sheet, "warning", rows, means, (drop(rows, asked=True),))
    else:
        means = f"`{column}` is in several languages ({told})"
        yield Finding(
            sheet, "note", rows, means, advice="score each apart: --eval.by COLUMN, if a column names the language"
        )


def language(text: str) -> str | None:
    """Its code (ISO 639-1); None where the text is too short, no language, or not surely one."""
    text = text[:READ]
    if len(re.findall(r"[^\W\d_]", text)) < LETTERS:
        return None
    code, sure = _identifier().classify(text)
    return str(code) if sure >= SURE and code != "zxx" else None


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
