"""Mended sheets as new files beside nothing old: a folder that appears whole or not at all."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftkit.data.doctor.mend import Change
from peftkit.data.doctor.sheet import Case, Sheet
from peftkit.errors import ConfigError

FIXES = "fixes.json"
SAME = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")
"""Formats that are written as they were read; of any other kind of source the rows are written as .jsonl."""


def check_free(out: Path) -> None:
    """Nothing is overwritten: ConfigError if the folder is there."""
    if out.exists():
        raise ConfigError(
            f"--fix {out} is there already and nothing is overwritten; name a folder that is not there yet"
        )


def write_fixed(
    out: Path, before: Case, after: Case, changes: Sequence[Change], limit: int | None = None
) -> list[Path]:
    """Every sheet in a file of its own in the new folder `out`, and fixes.json; what was written."""
    check_free(out)
    names = file_names(after.sheets)
    scratch = out.with_name(f".{out.name}.{os.getpid()}")
    scratch.mkdir(parents=True)
    try:
        for sheet, name in zip(after.sheets, names, strict=True):
            write_rows(scratch / name, sheet.raw)
        told = summary(before, after, names, changes, limit)
        (scratch / FIXES).write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        check_free(out)
        scratch.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return [out / name for name in (*names, FIXES)]


def file_names(sheets: Sequence[Sheet]) -> list[str]:
    """Each sheet's own name; with its split in front where two have the same."""
    names = [_file_name(sheet) for sheet in sheets]
    shared = {name for name, count in Counter(names).items() if count > 1}
    split = [f"{sheet.split}-{name}" if name in shared else name for sheet, name in zip(sheets, names, strict=True)]
    twice = {name for name, count in Counter(split).items() if count > 1}
    return [f"{at}-{name}" if name in twice else name for at, name in enumerate(split, start=1)]


def _file_name(sheet: Sheet) -> str:
    path = Path(sheet.source)
    if path.is_file() and path.suffix.lower() in SAME:
        return path.name
    stem = path.name.partition(".")[0] if path.exists() and sheet.source else ""
    return f"{stem or sheet.split}.jsonl"


def write_rows(path: Path, rows: Sequence[Any]) -> None:
    """The rows in the format that the suffix names."""
    kind = path.suffix.lower()
    with path.open("x", encoding="utf-8", newline="") as file:
        if kind in (".csv", ".tsv"):
            columns = list(dict.fromkeys(name for row in rows for name in row))
            writer = csv.writer(file, delimiter="," if kind == ".csv" else "\t", lineterminator="\n")
            writer.writerows([columns, *([_cell(row.get(name)) for name in columns] for row in rows)])
        elif kind == ".json":
            file.write("[\n" + ",\n".join(map(_json, rows)) + "\n]\n")
        else:
            file.writelines((row["text"] if kind == ".txt" else _json(row)) + "\n" for row in rows)


def _json(row: Any) -> str:
    text = json.dumps(row, ensure_ascii=False, default=_plain)
    return (
        text if text.isprintable() else json.dumps(row, default=_plain)
    )  # lone surrogates cannot be written as they are


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False, default=_plain) if isinstance(value, (list, dict)) else value


def summary(
    before: Case, after: Case, names: Sequence[str], changes: Sequence[Change], limit: int | None
) -> dict[str, Any]:
    """What fixes.json says: each file's rows before and after, and by remedy the rows that it changed."""
    files = []
    for old, new, name in zip(before.sheets, after.sheets, names, strict=True):
        own = [one for one in changes if (one.sheet, one.split) == (old.name, old.split)]
        fixes = [
            {"check": one.check, "remedy": one.remedy, "count": len(one.numbers), "rows": list(one.numbers)}
            for one in own
        ]
        place = {"split": old.split, "source": old.source, "file": name, "unit": old.unit}
        files.append({**place, "rows_before": len(old.raw), "rows_after": len(new.raw), "fixes": fixes})
    return {"numbers": "rows and lines are numbered as in the source", "limit": limit, "files": files}
