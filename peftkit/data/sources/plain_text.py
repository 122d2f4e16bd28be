"""Plain text: a row a line, in the column `text`; blank lines are left out."""

from __future__ import annotations

from pathlib import Path

from peftkit.data.sources.opened import text
from peftkit.data.sources.table import Numbered


def lines(path: Path) -> Numbered:
    with text(path, None) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, {"text": line.rstrip("\n")}
