"""Parquet and Arrow (.parquet; .arrow and .feather, IPC files or streams), a thousand rows in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from peftkit.data.sources.table import Numbered
from peftkit.data.sources.values import plain_row
from peftkit.errors import DataError
from peftkit.tasks.base import Row

ROWS = 1024
Opened = tuple[Any, Iterator[Any]]
"""A schema and its record batches."""


def parquet(path: Path, media: Path) -> Numbered:
    return _rows(path, "Parquet", _parquet, media)


def arrow(path: Path, media: Path) -> Numbered:
    return _rows(path, "Arrow", _arrow, media)


def plain_rows(batches: Iterator[Any], features: dict[str, Any], media: Path) -> Iterator[Row]:
    """The rows of record batches or tables."""
    for batch in batches:
        for start in range(0, batch.num_rows, ROWS):
            for row in batch.slice(start, ROWS).to_pylist():
                yield plain_row(row, features, media)


def _rows(path: Path, kind: str, opener: Callable[[Any], Opened], media: Path) -> Numbered:
    import pyarrow  # type: ignore[import-untyped]

    number = 0
    try:
        with closing(pyarrow.memory_map(str(path))) as file:
            schema, batches = opener(file)
            for number, row in enumerate(plain_rows(batches, _features(schema), media), start=1):
                yield number, row
    except PermissionError:
        raise
    except UnicodeDecodeError:
        raise DataError(
            f"{path.name} after row {number}: a text that is not UTF-8; write it as binary or mend it"
        ) from None
    except (pyarrow.ArrowException, OSError, ValueError) as problem:
        after = f" after row {number}" if number else ""
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise DataError(f"{path.name} is no readable {kind} file{after} ({reason})") from None


def _parquet(file: Any) -> Opened:
    from pyarrow import parquet

    opened = parquet.ParquetFile(file)
    return opened.schema_arrow, opened.iter_batches(ROWS)


def _arrow(file: Any) -> Opened:
    from pyarrow import ipc

    if file.read(6) == b"ARROW1":
        reader = ipc.open_file(file)
        return reader.schema, (reader.get_batch(at) for at in range(reader.num_record_batches))
    file.seek(0)
    stream = ipc.open_stream(file)
    return stream.schema, iter(stream)


def _features(schema: Any) -> dict[str, Any]:
    """What `datasets` noted of the columns when it wrote the file: names of class labels."""
    if b"huggingface" not in (schema.metadata or {}):
        return {}
    from datasets import Features

    try:
        return dict(Features.from_arrow_schema(schema))
    except (ValueError, TypeError, KeyError):  # noted by a version that knows other features
        return {}
