"""Images and recordings that a table names and that are not there, or are empty."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peftkit.data.doctor.check import check
from peftkit.data.doctor.edit import FILES
from peftkit.data.doctor.finding import Finding, drop
from peftkit.data.doctor.sheet import Case, Sheet


@check("files", "drop")
def files(case: Case) -> Iterator[Finding]:
    """Images and sounds that are not there or empty."""
    for sheet in case.sheets:
        for column in FILES:
            if column in sheet.columns:
                rows = [at for at, row in enumerate(sheet.rows) if _is_lost(row.get(column), sheet)]
                yield Finding(
                    sheet, "error", rows, f"the file that `{column}` names is not there or empty", (drop(rows),)
                )


def _is_lost(value: Any, sheet: Sheet) -> bool:
    """Only of local paths; a path may also count from the table's folder."""
    if not isinstance(value, str) or not value or "://" in value:
        return False
    folder = Path(sheet.source).expanduser().parent
    sizes = [path.stat().st_size for path in (Path(value).expanduser(), folder / value) if path.is_file()]
    return not any(sizes)
