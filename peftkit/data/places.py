"""Where each prepared row was read: `chat.jsonl line 7`, kept beside the rows so that a message late in a run can say it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from peftkit.data.sources import Table
from peftkit.data.store import PLACES

NAMES = "rows.places.json"
SHOWN = 8
"""So many rows are named."""


def write_places(folder: Path, table: Table) -> None:
    """Lay the places of a table's rows out in the existing `folder`: each name once, sixteen bytes a row."""
    names: dict[str, int] = {}
    places = np.empty((len(table.rows), 2), dtype=np.int64)
    for row in range(len(table.rows)):
        place = table.place(row)
        name, _, number = place.rpartition(" ")
        numbered = number.isdecimal()
        places[row] = names.setdefault(name if numbered else place, len(names)), int(number) if numbered else -1
    (folder / NAMES).write_text(json.dumps(list(names)), encoding="utf-8")
    np.save(folder / PLACES, places, allow_pickle=False)


def places_of(folder: Path, rows: Sequence[int]) -> str:
    """`chat.jsonl line 3, 17, other.jsonl line 2 and 4 more`: where the rows of these numbers stand, each once."""
    names = json.loads((folder / NAMES).read_text(encoding="utf-8"))
    places = np.load(folder / PLACES, mmap_mode="r", allow_pickle=False)
    found = sorted({(int(places[row][0]), int(places[row][1])) for row in rows})
    told: dict[int, list[str]] = {}
    for name, number in found[:SHOWN]:
        told.setdefault(name, []).extend([str(number)] if number >= 0 else [])
    said = ", ".join(" ".join(filter(None, [names[name], ", ".join(numbers)])) for name, numbers in told.items())
    return f"{said} and {len(found) - SHOWN} more" if len(found) > SHOWN else said
