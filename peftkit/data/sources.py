"""Rows from a file or a hub data set; an error names the file and the line, and never says what stands in it.

.jsonl .ndjson   an object a line              .csv .tsv   a header line, then a row a line
.json            a list of objects, or         .txt        a row a line (column `text`), blank lines left out
                 {"data": [...]}               .parquet    a row a row
ORG/NAME         on the hub; ORG/NAME/CONFIG names one of its configurations, ORG/NAME:SPLIT a split of it
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain, islice
from pathlib import Path
from typing import Any, NoReturn, TextIO

from peftkit.errors import DataError
from peftkit.tasks.base import Row

HUB = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(/(?P<config>[\w.-]+))?(:(?P<split>[\w\[\]%:.+-]+))?")
Numbered = Iterator[tuple[int, Row]]


@dataclass(frozen=True)
class Table:
    """Rows as they were read, and where each stands in its file."""

    name: str
    rows: list[Row]
    numbers: Sequence[int]
    unit: str = "row"

    def place(self, index: int) -> str:
        """`reviews.csv line 7`."""
        return f"{self.name} {self.unit} {self.numbers[index]}"

    def pick(self, indices: Sequence[int]) -> Table:
        """These rows of it, with their places."""
        return Table(self.name, [self.rows[i] for i in indices], [self.numbers[i] for i in indices], self.unit)


def read(source: str, limit: int | None = None, split: str = "train") -> Table:
    """The first `limit` rows of a file or hub data set. `split` is what a hub name without one means."""
    path = Path(source).expanduser()
    if path.exists():
        unit, reader = _reader(path)
        found = list(islice(reader(path), limit))
        table = Table(path.name, [row for _, row in found], [number for number, _ in found], unit)
    else:
        data = _from_hub(source, split)
        rows = list(islice(_hub_rows(data), limit))
        table = Table(source, rows, range(1, len(rows) + 1))
    if not table.rows:
        raise DataError(f"{table.name} is empty: it has no rows")
    return table


def digest(source: str, split: str = "train") -> str:
    """What the rows are, in 64 letters: of a file its bytes, of a hub data set its fingerprint."""
    path = Path(source).expanduser()
    if not path.exists():
        data = _from_hub(source, split)
        return hashlib.sha256(f"{source} {split} {data._fingerprint}".encode()).hexdigest()
    _reader(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() + path.suffix


def _reader(path: Path) -> tuple[str, Callable[[Path], Numbered]]:
    if path.is_dir():
        files = sorted(entry.name for entry in path.iterdir() if entry.suffix in READERS)
        inside = f"one of its files: {', '.join(files[:8])}" if files else f"a file ({' '.join(READERS)})"
        raise DataError(f"{path} is a folder; name {inside}")
    if path.suffix.lower() not in READERS:
        raise DataError(f"{path} has a suffix that names no format known here; there are: {' '.join(READERS)}")
    if not os.access(path, os.R_OK):
        raise DataError(f"{path} may not be read: its permissions forbid it")
    return READERS[path.suffix.lower()]


def _json_lines(path: Path) -> Numbered:
    with _text(path, "\n") as file:
        for number, line in enumerate(_decoded(file, path), start=1):
            if line.strip():
                yield number, _object(_parsed(line.strip(), path, number), f"{path.name} line {number}")


def _json(path: Path) -> Numbered:
    with _text(path, None) as file:
        text = "".join(_decoded(file, path))
    values = _parsed(text, path) if text.strip() else []
    if isinstance(values, dict) and isinstance(values.get("data"), list):
        values = values["data"]
    if not isinstance(values, list):
        raise DataError(
            f'{path.name} is neither a list of objects nor {{"data": [...]}}; a file of one object a line is .jsonl'
        )
    for number, value in enumerate(values, start=1):
        yield number, _object(value, f"{path.name} row {number}")


def _parsed(text: str, path: Path, line: int | None = None) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as problem:
        place = f"{path.name} line {line or problem.lineno}, column {problem.colno}"
        one_a_line = line is None and problem.msg == "Extra data"
        hint = "; if each line is an object of its own, name the file .jsonl" if one_a_line else ""
        raise DataError(f"{place}: broken JSON ({problem.msg}){hint}") from None
    except (RecursionError, ValueError):
        raise DataError(
            f"{path.name} line {line or 1}: JSON nested too deeply, or a number of thousands of digits"
        ) from None


def _object(value: Any, place: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f'{place}: {_json_kind(value)} where an object {{"column": value}} is expected')
    return value


def _json_kind(value: Any) -> str:
    kinds = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def _separated(delimiter: str) -> Callable[[Path], Numbered]:
    def rows(path: Path) -> Numbered:
        csv.field_size_limit(2**31 - 1)  # the default refuses texts of more than 128 KiB
        with _text(path, "") as file:
            yield from _records(csv.reader(_decoded(file, path), delimiter=delimiter, strict=True), path)

    return rows


def _records(reader: Any, path: Path) -> Numbered:
    header: list[str] = []
    line = 1
    try:
        for record in reader:
            if record and header:
                _check_width(record, header, path, line)
                yield line, dict(zip(header, record, strict=True))
            elif record:
                header = _checked_header(record, path)
            line = reader.line_num + 1
    except csv.Error as problem:
        raise DataError(f"{path.name} line {line}: {problem}") from None


def _checked_header(header: list[str], path: Path) -> list[str]:
    names = [name.strip() for name in header]
    if not all(names):
        raise DataError(f"{path.name} line 1: column {names.index('') + 1} has no name")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path.name} line 1: two columns are named {', '.join(twice)}")
    return names


def _check_width(record: list[str], header: list[str], path: Path, line: int) -> None:
    if len(record) != len(header):
        kind = "many" if len(record) > len(header) else "few"
        raise DataError(
            f"{path.name} line {line}: too {kind} fields, {len(record)} where the header names {len(header)};"
            " a field with a separator or a line break in it must stand in double quotes"
        )


def _lines(path: Path) -> Numbered:
    with _text(path, None) as file:
        for number, line in enumerate(_decoded(file, path), start=1):
            if line.strip():
                yield number, {"text": line.rstrip("\n")}


def _text(path: Path, newline: str | None) -> TextIO:
    return path.open(encoding="utf-8-sig", newline=newline)


def _decoded(file: TextIO, path: Path) -> Iterator[str]:
    """The file's lines; an encoding that is not UTF-8 is named with its place."""
    try:
        yield from file
    except UnicodeDecodeError:
        _refuse_encoding(path)


def _refuse_encoding(path: Path) -> NoReturn:
    before = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as problem:
                hint = " (it looks like UTF-16)" if number == 1 and line[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
                raise DataError(
                    f"{path.name} line {number}: byte {before + problem.start} of the file is not UTF-8{hint};"
                    " save the file as UTF-8"
                ) from None
            before += len(line)
    raise DataError(f"{path.name} is not UTF-8; save the file as UTF-8")


def _parquet(path: Path) -> Numbered:
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            batches = (batch.to_pylist() for batch in file.iter_batches(1024))
            yield from enumerate(chain.from_iterable(batches), start=1)
    except (pyarrow.ArrowException, OSError) as problem:
        raise DataError(f"{path.name} is no readable Parquet file ({str(problem).splitlines()[0]})") from None


def _from_hub(source: str, split: str) -> Any:
    """The data set of that name on the hub (or in its cache), if `source` can be a hub name at all."""
    found = HUB.fullmatch(source)
    path = Path(source).expanduser()
    near = _near(path)
    if found is None or near or path.suffix.lower() in READERS:
        raise DataError(f"there is no file {source}{near}")
    from datasets import load_dataset

    try:
        return load_dataset(found["name"], found["config"], split=found["split"] or split)
    except Exception as problem:  # the hub's errors come from half a dozen libraries
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise DataError(f"{source} is no file here, and the hub does not give it: {reason}") from None


def _near(path: Path) -> str:
    """Files of data in the same folder whose names are near."""
    folder = path.parent
    names = [entry.name for entry in folder.iterdir() if entry.suffix.lower() in READERS] if folder.is_dir() else []
    matches = get_close_matches(path.name, names, n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(str(folder / name) for name in matches)}?)" if matches else ""


def _hub_rows(data: Any) -> Iterator[Row]:
    """Its rows, with class labels by their names instead of their numbers (-1, a missing label, as None)."""
    named = {column: kind for column, kind in data.features.items() if type(kind).__name__ == "ClassLabel"}
    for row in data:
        yield {column: _label(value, named[column]) if column in named else value for column, value in row.items()}


def _label(value: int | None, kind: Any) -> str | None:
    return None if value is None or value < 0 else str(kind.int2str(value))


READERS: dict[str, tuple[str, Callable[[Path], Numbered]]] = {
    ".jsonl": ("line", _json_lines),
    ".ndjson": ("line", _json_lines),
    ".json": ("row", _json),
    ".csv": ("line", _separated(",")),
    ".tsv": ("line", _separated("\t")),
    ".txt": ("line", _lines),
    ".parquet": ("row", _parquet),
}
