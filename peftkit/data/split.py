"""Rows held out of the training rows: at random, label by label, by whole groups, or the latest; a share, or one of k folds.

All of it follows from the rows, the settings and the seed: no process, world or order of evaluation is in it.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

from peftkit.config.sections import Data
from peftkit.data.sources import Table
from peftkit.errors import DataError

Labels = frozenset[Hashable]
Held = dict[str, list[int]]
"""Split -> the rows that it holds out, sorted."""


def hold_out(table: Table, wanted: Mapping[str, float], data: Data, label: str, seed: int) -> Held:
    """`wanted` is split -> share (`test` is held out before `validation`, and folds are made of the rest).

    `label` is the column whose shares a stratified split keeps, if `split_by` names none. At least one row is held out for
    each split, and one is left. DataError where that cannot be, or a row has no value to split by.
    """
    rest, found = list(range(len(table.rows))), Held()
    values = _values(table, data, label) if wanted else []
    for split in sorted(wanted):
        if len(rest) < 2:
            raise DataError(_too_few(table, split))
        count = min(len(rest) - 1, max(1, round(wanted[split] * len(table.rows))))
        folds = split == "validation" and data.folds is not None
        if folds and len(rest) < (data.folds or 0):
            raise DataError(f"{table.name} has {len(rest)} rows, too few for --data.folds {data.folds}")
        held = (_fold if folds else _share)(rest, values, count, data, f"{split} {seed}", table)
        found[split] = sorted(held)
        out = set(held)
        rest = [row for row in rest if row not in out]
    return {"train": rest, **found}


def _share(rest: list[int], values: list[Any], count: int, data: Data, seed: str, table: Table) -> list[int]:
    kinds: dict[str, Callable[..., list[int]]] = {
        "random": _at_random,
        "stratified": _stratified,
        "group": partial(_whole_groups, table=table),
        "time": _latest,
    }
    return kinds[data.split](rest, values, count, seed)


def _fold(rest: list[int], values: list[Any], count: int, data: Data, seed: str, table: Table) -> list[int]:
    folds = data.folds or 2
    if data.split == "stratified":
        parts = stratify([values[row] for row in rest], [1 / folds] * folds, seed)
        return [row for row, part in zip(rest, parts, strict=True) if part == data.fold]
    if data.split == "group":
        return _fold_of_groups(rest, values, folds, data.fold, table)
    return _shuffled(rest, seed)[data.fold :: folds]


def _at_random(rest: list[int], values: list[Any], count: int, seed: str) -> list[int]:
    return _shuffled(rest, seed)[:count]


def _stratified(rest: list[int], values: list[Any], count: int, seed: str) -> list[int]:
    share = count / len(rest)
    parts = stratify([values[row] for row in rest], [share, 1 - share], seed)
    return [row for row, part in zip(rest, parts, strict=True) if part == 0]


def _whole_groups(rest: list[int], values: list[Any], count: int, seed: str, table: Table) -> list[int]:
    """Groups in a drawn order, each that brings the number of rows nearer to `count`."""
    groups = _groups(rest, values, table)
    names = list(groups)
    random.Random(seed).shuffle(names)
    held: list[int] = []
    for name in names:
        if abs(len(held) + len(groups[name]) - count) < abs(len(held) - count):
            held += groups[name]
    return held or min(groups.values(), key=len)


def _fold_of_groups(rest: list[int], values: list[Any], folds: int, fold: int, table: Table) -> list[int]:
    from sklearn.model_selection import GroupKFold

    if len(groups := _groups(rest, values, table)) < folds:
        raise DataError(f"{table.name} has {len(groups)} groups, too few for --data.folds {folds}")
    numbers = {row: number for number, rows in enumerate(groups.values()) for row in rows}
    splits = GroupKFold(folds).split(rest, groups=[numbers[row] for row in rest])
    return [rest[at] for at in list(splits)[fold][1]]


def _groups(rest: list[int], values: list[Any], table: Table) -> dict[Hashable, list[int]]:
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for row in rest:
        groups[values[row]].append(row)
    if len(groups) < 2:
        raise DataError(f"{table.name} has {len(groups)} group by --data.split_by, so none can be held out whole")
    return groups


def _latest(rest: list[int], values: list[Any], count: int, seed: str) -> list[int]:
    return sorted(rest, key=lambda row: (values[row], row))[-count:]


def stratify(labels: Sequence[Labels], shares: Sequence[float], seed: str) -> list[int]:
    """The part of each row, so that every label is shared out as the rows are (Sechidis et al., 2011, for several a row).

    The rarest label's rows are dealt first, each to the part that lacks most of that label. Where no part lacks a whole row
    of it, the part that is emptiest for its size takes the row: rare labels would all go to the largest part else.
    """
    order = _shuffled(range(len(labels)), f"stratify {seed}")
    holders: dict[Hashable, list[int]] = defaultdict(list)
    for row in order:
        for label in labels[row]:
            holders[label].append(row)
    lacking = {label: [share * len(rows) for share in shares] for label, rows in holders.items()}
    left = {label: len(rows) for label, rows in holders.items()}
    room = [share * len(labels) for share in shares]
    parts = [-1] * len(labels)

    def put(row: int, part: int) -> None:
        parts[row] = part
        room[part] -= 1
        for label in labels[row]:
            lacking[label][part] -= 1
            left[label] -= 1

    while left:
        rarest = min(left, key=lambda label: (left[label], str(label)))
        for row in holders[rarest]:
            if parts[row] < 0:
                put(row, _neediest(lacking[rarest], room, shares))
        del left[rarest]
        left = {label: count for label, count in left.items() if count}
    for row in order:
        if parts[row] < 0:
            put(row, _neediest([], room, shares))
    return _without_empty(parts, len(shares), order)


def _neediest(lacking: Sequence[float], room: Sequence[float], shares: Sequence[float]) -> int:
    parts = range(len(shares))
    if lacking and max(lacking) >= 1:
        return max(parts, key=lambda part: (round(lacking[part], 6), room[part] / shares[part], -part))
    some = [part for part in parts if not lacking or lacking[part] > 0] or list(parts)
    return max(some, key=lambda part: (round(room[part] / shares[part], 6), -part))


def _without_empty(parts: list[int], count: int, order: Sequence[int]) -> list[int]:
    """A part that got none takes a row of the fullest one."""
    for part in range(count):
        if part not in parts:
            fullest = max(range(count), key=parts.count)
            parts[next(row for row in order if parts[row] == fullest)] = part
    return parts


def _values(table: Table, data: Data, label: str) -> list[Any]:
    """What each row is split by."""
    readers: dict[str, Callable[[Any], Any]] = {"stratified": labels_of, "group": _group_of, "time": time_of}
    if data.split == "random":
        return []
    column = data.split_by or label
    values = []
    for index, row in enumerate(table.rows):
        try:
            values.append(readers[data.split](row.get(column)))
        except ValueError as problem:
            raise DataError(f"{table.place(index)}: --data.split {data.split} by {column!r}: {problem}") from None
    return values


def labels_of(value: Any) -> Labels:
    """The labels of a row: one, those of a list or of a text `a|b`, or what is 1 in a list or object of 0 and 1."""
    if isinstance(value, dict):
        return frozenset(name for name, one in value.items() if one)
    if isinstance(value, (list, tuple)):
        hot = len(value) > 1 and all(one in (0, 1) for one in value)
        return frozenset(at for at, one in enumerate(value) if one) if hot else frozenset(map(str, value))
    if isinstance(value, float) and not value.is_integer():
        raise ValueError("it is a number that no rows share; name a column of classes with --data.split_by")
    return frozenset(str(value).split("|")) if value is not None and value != "" else frozenset()


def _group_of(value: Any) -> Hashable:
    if value is None or value == "":
        raise ValueError("the row has none")
    return str(value)


def time_of(value: Any) -> float:
    """Seconds of a date or time in ISO 8601 (UTC, where it names no zone), or a number as it is."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            moment = _moment(value)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not isinstance(value, (int, float)) or math.isnan(value):
        raise ValueError("the row has no date, time or number")
    return float(value)


def _moment(value: str) -> datetime:
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        raise ValueError("the row has no date, time or number as in 2024-05-31, 2024-05-31T12:30 or 17.5") from None


def _shuffled(rows: Sequence[int], seed: str) -> list[int]:
    shuffled = list(rows)
    random.Random(seed).shuffle(shuffled)
    return shuffled


def _too_few(table: Table, split: str) -> str:
    few = "one row" if len(table.rows) == 1 else f"{len(table.rows)} rows"
    setting = "holdout" if split == "validation" else "test_holdout"
    return f"{table.name} has {few}, so none can be held out; give --data.{split}, or --data.{setting} 0"
