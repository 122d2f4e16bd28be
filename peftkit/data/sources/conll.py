"""CoNLL's columns (Tjong Kim Sang and De Meulder, 2003): a word a line, a blank line between two sentences.

The first column is `tokens`, the last `tags`; those between go by their numbers, "2", "3", ...  (`--data.columns '{tags: "2"}'`).
Columns stand apart by tabs where a line has one, else by blanks. A file of words alone has no `tags`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from peftkit.data.sources.opened import text
from peftkit.data.sources.table import Numbered
from peftkit.errors import DataError
from peftkit.tasks.base import Row

DOCUMENT = "-DOCSTART-"
COMMENT = re.compile(r"#\s*(id\b|\w+\s*=)")
"""What some files write over a sentence: `# id 12 domain=en`, `# sent_id = 7`."""


def sentences(path: Path) -> Numbered:
    """A row a sentence, with the line on which it begins."""
    width = None
    with text(path, None) as file:
        for first, words in _blocks(file):
            width = width or len(words[0])
            for number, columns in enumerate(words, start=first):
                if len(columns) != width:
                    raise DataError(
                        f"{path.name} line {number}: a column count of {len(columns)} where the lines before have {width};"
                        " every word's line needs all of them"
                    )
            yield first, _row(words)


def _blocks(lines: Iterator[str]) -> Iterator[tuple[int, list[list[str]]]]:
    """Each sentence's columns, and the number of its first line."""
    words: list[list[str]] = []
    number = 0
    for number, line in enumerate(lines, start=1):
        stays = line.strip() and not line.startswith(DOCUMENT)
        if stays and (words or not COMMENT.match(line)):
            words.append(_columns(line))
        elif words:
            yield number - len(words), words
            words = []
    if words:
        yield number + 1 - len(words), words


def _columns(line: str) -> list[str]:
    return [column.strip() for column in line.strip("\r\n").split("\t")] if "\t" in line else line.split()


def _row(words: list[list[str]]) -> Row:
    columns = [list(column) for column in zip(*words, strict=True)]
    between = {str(number): column for number, column in enumerate(columns[1:-1], start=2)}
    return {"tokens": columns[0], **({"tags": columns[-1]} if len(columns) > 1 else {}), **between}
