"""RUN/metrics.jsonl: a JSON object a line, complete after every row, whatever ends the program."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from peftkit.redact import redact_all


class JsonLines:
    """Appends rows to a file; each is on disk, for every reader, when `write` returns.

    While the disk is full rows wait in memory, and go with the next one that can be written.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)
        self._end_half_line(path)
        self.waiting = b""
        """What is not on disk yet."""

    def write(self, row: dict[str, Any]) -> None:
        """One row as one line. A number that is not finite becomes null: JSON has no word for it."""
        self.waiting += (json.dumps(redact_all(_plain(row)), allow_nan=False, ensure_ascii=False) + "\n").encode()
        self._write()

    def close(self) -> None:
        self._write()
        self._file.close()

    def _write(self) -> None:
        with suppress(OSError):
            while self.waiting:
                self.waiting = self.waiting[self._file.write(self.waiting) :]

    def _end_half_line(self, path: Path) -> None:
        # A killed program leaves half a line; a row written behind it would be lost with it.
        content = path.read_bytes()
        if content and not content.endswith(b"\n"):
            self._file.truncate(content.rfind(b"\n") + 1)


def append_row(path: Path, row: dict[str, Any]) -> None:
    """One row more in a file that is seldom written to."""
    lines = JsonLines(path)
    try:
        lines.write(row)
    finally:
        lines.close()


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The file's rows; a line that is no complete object (half-written) is left out."""
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


def truncate_after(path: Path, step: int, scored: int | None = None) -> None:
    """Drop the rows that a resumed run will write again: those after `step`, the test's, and scores after step `scored`.

    The file is whole at every moment.
    """
    if not path.exists():
        return
    last_scored = step if scored is None else min(step, scored)
    kept = [
        row
        for row in read_rows(path)
        if row.get("step", 0) <= (last_scored if "split" in row else step) and row.get("split") != "test"
    ]
    beside = path.with_name(path.name + ".part")
    with beside.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _plain(value: Any) -> Any:
    """Numbers of torch and numpy as Python's own."""
    if hasattr(value, "item") and not isinstance(value, (int, float)):
        value = value.item()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int)) else str(value)
