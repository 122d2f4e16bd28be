"""Files of lines, read on after lines that do not parse: .jsonl, .csv, .tsv and .txt (training stops at the first)."""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from peftkit.errors import DataError
from peftkit.tasks.base import Row

REACH = 1000
"""A quoted field that is not closed within so many lines was never meant to be one."""
MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


@dataclass
class Lines:
    """What a file holds: rows with their line numbers, lines that are none, and lines that are not UTF-8."""

    rows: list[Row] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    broken: list[tuple[int, str]] = field(default_factory=list)
    recoded: list[int] = field(default_factory=list)


def read_lines(path: Path, limit: int | None = None) -> Lines:
    """The first `limit` rows of a file whose suffix is in READERS; DataError only where there is no header to go by."""
    texts, recoded = decoded(path.read_bytes())
    found = Lines()
    for number, row, reason in READERS[path.suffix.lower()](texts):
        if row is None:
            found.broken.append((number, reason))
        else:
            found.rows.append(row)
            found.numbers.append(number)
        if len(found.rows) == limit:
            break
    last = max([*found.numbers, *(number for number, _ in found.broken)], default=0)
    found.recoded = [number for number in recoded if number <= last or len(found.rows) != limit]
    return found


Read = Iterator[tuple[int, Row | None, str]]


def decoded(data: bytes) -> tuple[list[str], list[int]]:
    """The lines, each with its end, and the numbers of those that are not UTF-8."""
    if encoding := MARKS.get(data[:2]):
        lines = data.decode(encoding, "replace").splitlines(keepends=True)
        return lines, list(range(1, len(lines) + 1))
    texts, recoded = [], []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            texts.append(line.decode() + "\n")
        except UnicodeDecodeError:
            recoded.append(number)
            texts.append(line.decode(errors="peftkit-windows") + "\n")
    return texts, recoded


def _windows(problem: UnicodeError) -> tuple[str, int]:
    """What stands for bytes that are not UTF-8: the letters that they are in Windows-1252; the rest of the line stays UTF-8."""
    if not isinstance(problem, UnicodeDecodeError):
        raise problem
    data = problem.object[problem.start : problem.end]
    try:
        return data.decode("cp1252"), problem.end
    except UnicodeDecodeError:
        return data.decode("latin-1"), problem.end


codecs.register_error("peftkit-windows", _windows)


def _json_lines(texts: list[str]) -> Read:
    for number, text in enumerate(texts, start=1):
        if text.strip():
            yield number, *_object(text.strip())


def _object(text: str) -> tuple[Row | None, str]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None, "broken JSON"
    return (value, "") if isinstance(value, dict) else (None, "no JSON object")


def _plain(texts: list[str]) -> Read:
    for number, text in enumerate(texts, start=1):
        if text.strip():
            yield number, {"text": text.rstrip("\r\n")}, ""


def _separated(delimiter: str) -> Callable[[list[str]], Read]:
    def rows(texts: list[str]) -> Read:
        csv.field_size_limit(2**31 - 1)
        header, at = _header(texts, delimiter)
        while at < len(texts):
            record, used = _record(texts, at, delimiter)
            good = record is not None and len(record) == len(header)
            if record is None or (record and not good):
                yield at + 1, None, "another number of fields than the header" if record else "broken quotes"
                used = 1  # what follows may be rows of its own
            elif record:
                yield at + 1, dict(zip(header, record, strict=True)), ""
            at += used

    return rows


def _header(texts: list[str], delimiter: str) -> tuple[list[str], int]:
    start = next((number for number, text in enumerate(texts) if text.strip()), 0)
    record, used = _record(texts, start, delimiter)
    names = [name.strip() for name in record or []]
    if not all(names) or len(set(names)) < len(names):
        raise DataError(f"line {start + 1}: the header has a column without a name, or two of the same name")
    return names, start + used


def _record(texts: list[str], at: int, delimiter: str) -> tuple[list[str] | None, int]:
    """The record that begins at a line and how many lines it takes; None where its quotes are broken."""
    lines = chain(texts[at : at + 1], (texts[near] for near in range(at + 1, min(at + REACH, len(texts)))))
    reader: Any = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        return next(reader, []), max(1, reader.line_num)
    except csv.Error:
        return None, 1


READERS: dict[str, Callable[[list[str]], Read]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".txt": _plain,
}
