"""JSON: an object a line, a list of objects, or {"data": [...]} with rows or with SQuAD's paragraphs in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peftkit.data.sources import squad
from peftkit.data.sources.opened import text
from peftkit.data.sources.table import Numbered
from peftkit.errors import DataError
from peftkit.tasks.base import Row


def lines(path: Path) -> Numbered:
    """An object a line; blank lines are left out."""
    with text(path, "\n") as file:
        for number, line in enumerate(map(str.strip, file), start=1):
            if line:
                row = _parsed(line, path, number)
                yield number, row if type(row) is dict else _object(row, f"{path.name} line {number}")


def document(path: Path) -> Numbered:
    """One list of objects."""
    with text(path, None) as file:
        content = file.read()
    values = _parsed(content, path) if content.strip() else []
    if isinstance(values, dict) and isinstance(values.get("data"), list):
        values = values["data"]
        if squad.is_squad(values):
            yield from squad.rows(values, path.name)
            return
    if not isinstance(values, list):
        raise DataError(
            f'{path.name} is neither a list of objects nor {{"data": [...]}}; a file of one object a line is .jsonl'
        )
    for number, value in enumerate(values, start=1):
        yield number, _object(value, f"{path.name} row {number}")


def _parsed(content: str, path: Path, line: int | None = None) -> Any:
    try:
        return json.loads(content)
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
