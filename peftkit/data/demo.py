"""The embedded rows: Python's own functions, each to be described by the first line of its docstring.

They are read from the standard library of the Python that runs, so nothing is downloaded and nothing is copied into this
package (its licence, PSF-2.0, allows the use). The same Python gives the same rows.
"""

from __future__ import annotations

import ast
import hashlib
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from peftkit.data.sources import Table
from peftkit.tasks.base import EMBEDDED, Row

COLUMNS = EMBEDDED
INSTRUCTION = "What does this Python function do? Answer in one sentence.\n\n"
TRAIN, VALIDATION = 400, 64
PER_MODULE = 12
"""So that no module's style prevails."""
LONGEST = 700
"""Characters of a function."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def tables(limit: int | None = None) -> dict[str, Table]:
    """The training and validation rows; which is which does not depend on a seed."""
    rows = functions(VALIDATION + TRAIN)
    name = (
        f"Python {sys.version_info.major}.{sys.version_info.minor}'s standard library (functions and their docstrings)"
    )
    return {
        "train": _table(name, rows[VALIDATION:][:limit]),
        "validation": _table(name, rows[:VALIDATION][:limit]),
    }


def _table(name: str, rows: list[Row]) -> Table:
    return Table(name, rows, range(1, len(rows) + 1))


def functions(count: int) -> list[Row]:
    """`count` rows from as many modules as that takes, in an order that has nothing to do with their names."""
    rows: dict[str, Row] = {}
    for file in sorted(modules(), key=lambda path: _mixed(path.name)):
        found = {row["response"]: row for row in rows_of(file.read_text(encoding="utf-8"))}
        rows |= {
            response: found[response] for response in sorted(found, key=_mixed)[:PER_MODULE] if response not in rows
        }
        if len(rows) >= count:
            break
    return [rows[response] for response in sorted(rows, key=_mixed)][:count]


def modules() -> list[Path]:
    """The library's modules, without private ones and what is data more than code."""
    folder = Path(sysconfig.get_path("stdlib"))
    packages = (
        "asyncio",
        "collections",
        "concurrent/futures",
        "email",
        "http",
        "importlib",
        "json",
        "logging",
        "unittest",
    )
    found = [path for place in ("", *packages) for path in (folder / place).glob("*.py")]
    return [path for path in found if not path.name.startswith(("_", "pydoc_data", "this", "antigravity"))]


def rows_of(source: str) -> Iterator[Row]:
    """A row for each short function with a docstring whose first line stands by itself."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Function) and (summary := summary_of(node)):
            code = code_of(node, lines)
            if code and len(code) <= LONGEST:
                yield {"prompt": f"{INSTRUCTION}```python\n{code}\n```", "response": summary}


def summary_of(node: Function) -> str | None:
    """The docstring's first line, if it is a whole sentence of reasonable length."""
    first, _, rest = (ast.get_docstring(node) or "").partition("\n")
    whole = 20 <= len(first) <= 120 and first.endswith(".") and first[0].isupper() and not rest.split("\n")[0].strip()
    return first if whole else None


def code_of(node: Function, lines: list[str]) -> str | None:
    """The function without its docstring, at the left edge; None if the docstring was all of it, or text hangs out on the left."""
    if len(node.body) < 2:
        return None
    doc = node.body[0]
    start = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    kept = lines[start - 1 : doc.lineno - 1] + lines[doc.end_lineno or doc.lineno : node.end_lineno]
    code = [line.rstrip() for line in kept if line.strip()]
    if any(line[: node.col_offset].strip() for line in code):
        return None
    return "\n".join(line[node.col_offset :] for line in code)


def _mixed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
