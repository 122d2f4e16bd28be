"""Labels outside the set, and names that nearly are one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from peftkit.data.doctor.check import check
from peftkit.data.doctor.checks.names import misspelt
from peftkit.data.doctor.finding import Finding, Remedy, drop
from peftkit.data.doctor.sheet import TRAIN, Case, Sheet
from peftkit.data.doctor.values import are_numbers, label_names
from peftkit.tasks.base import Row

PREFIXED = ("B-", "I-", "E-", "S-", "L-", "U-")
SHOWN = 8
LONGEST = 30


def types_of(value: Any) -> list[str]:
    """The types among tags: `PER` of `B-PER`; none of `O`."""
    return [name[2:] for name in label_names(value) if name[:2] in PREFIXED]


COLUMNS: dict[str, Callable[[Any], list[str]]] = {"label": label_names, "labels": label_names, "tags": types_of}


@check("labels", "drop")
def labels(case: Case) -> Iterator[Finding]:
    """Labels that the settings do not name, or where they name none, that no training row has."""
    for sheet, column, names in _labelled(case):
        known = given(sheet, column) or {name for one in case.of(TRAIN) for name in _names(one, column)}
        near = misspelt(_counts(case, column), given(sheet, column))
        outside = [[name for name in found if name not in known and name not in near] for found in names]
        rows = [at for at, found in enumerate(outside) if found and not _is_index(sheet, column, at, known)]
        which = sorted({name for at in rows for name in outside[at]})
        where = "the given set" if given(sheet, column) else "the training rows' labels"
        yield Finding(sheet, "error", rows, f"{_listed(which)}: not among {where}", (drop(rows),))


@check("label_names", "fill")
def near_names(case: Case) -> Iterator[Finding]:
    """Labels that differ from another one by case, blanks or a letter: two classes where one is meant."""
    for sheet, column, names in _labelled(case):
        near = misspelt(_counts(case, column), given(sheet, column))
        rows = [at for at, found in enumerate(names) if any(name in near for name in found)]
        pairs = sorted({f"{shown(name)} for {shown(near[name])}" for at in rows for name in names[at] if name in near})
        fill = Remedy(
            "fill", "write the name that is meant", {at: _renamed(sheet.rows[at], column, near) for at in rows}
        )
        means = f"nearly equal names are different classes: {', '.join(pairs[:SHOWN])}"
        yield Finding(sheet, "error", rows, means, (fill,))


def given(sheet: Sheet, column: str) -> list[str]:
    """The labels that the settings name, of tags their types."""
    named = getattr(sheet.task, "labels", None) or []
    return types_of(named) or list(named) if column == "tags" else [str(name) for name in named]


def _labelled(case: Case) -> Iterator[tuple[Sheet, str, list[list[str]]]]:
    """Every column of labels that is one of names: its sheet, and the names in each row."""
    for sheet in case.sheets:
        for column in COLUMNS:
            if column in sheet.columns and not are_numbers(row.get(column) for row in sheet.rows):
                yield sheet, column, [COLUMNS[column](row.get(column)) for row in sheet.rows]


def _names(sheet: Sheet, column: str) -> Iterator[str]:
    return (name for row in sheet.rows for name in COLUMNS[column](row.get(column)))


def _counts(case: Case, column: str) -> Counter[str]:
    return Counter(name for sheet in case.sheets for name in _names(sheet, column))


def _is_index(sheet: Sheet, column: str, at: int, known: Any) -> bool:
    """A class's number where the classes have names that are no numbers."""
    value = sheet.rows[at].get(column)
    named = not any(name.removeprefix("-").isdigit() for name in known)
    return isinstance(value, int) and named and bool(given(sheet, column)) and 0 <= value < len(known)


def _renamed(row: Row, column: str, near: dict[str, str]) -> Row:
    value = row[column]
    if column == "tags":
        return {column: [tag[:2] + near.get(tag[2:], tag[2:]) if str(tag)[:2] in PREFIXED else tag for tag in value]}
    if isinstance(value, list):
        return {column: list(dict.fromkeys(near.get(name, name) for name in label_names(value)))}
    return {column: near[label_names(value)[0]]}


def shown(name: str) -> str:
    """A label's name in quotes; only the beginning of a long one, which may be a text in the wrong column."""
    return repr(name if len(name) <= LONGEST else name[:LONGEST] + "...")


def _listed(names: list[str]) -> str:
    return ", ".join(map(shown, names[:SHOWN])) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
