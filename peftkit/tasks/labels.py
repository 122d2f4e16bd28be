"""Labels as they stand in files of every kind: one name, several, or numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from peftkit.tasks.base import LabelError

Problem = Literal["single_label", "multi_label", "regression"]


def problem_of(labels: Iterable[Any]) -> Problem:
    """What rows ask for: several labels where they are listed, a number where one is not whole, else one label."""
    kind: Problem = "single_label"
    for label in _of_one_kind(labels):
        if isinstance(label, (list, tuple)) and any(_is_fraction(value) for value in label):
            return "regression"
        if isinstance(label, (list, tuple, dict)) or (isinstance(label, str) and "|" in label):
            kind = "multi_label"
        elif _is_fraction(label):
            kind = "regression"
        elif kind == "regression" and number(label) is None:
            return "single_label"  # names among the numbers: they are names all of them
    return kind


def _of_one_kind(labels: Iterable[Any]) -> Iterator[Any]:
    """Those that are there. LabelError where some are lists of names and others are names: one of the two is a mistake."""
    kinds: set[bool] = set()
    for label in labels:
        if is_missing(label) or label == "":
            continue
        is_list = isinstance(label, (list, tuple, dict))
        if is_list or not (isinstance(label, str) and "|" in label):
            kinds.add(is_list)
        if len(kinds) > 1:
            raise LabelError(
                "some labels are lists or objects and others are not; say what is meant with --task.problem, and the rows"
                " that are otherwise are named"
            )
        yield label


def is_missing(label: Any) -> bool:
    """Nothing, or NaN, a missing number's mark, which differs from itself."""
    return label is None or (isinstance(label, float) and math.isnan(label))


def label_name(label: Any) -> str | None:
    """A label's name as it stands in files of every kind: 1, 1.0 and "1" are the same; missing is None."""
    if is_missing(label) or label == "":
        return None
    if not isinstance(label, (str, int, float)):
        raise LabelError(f"'label' is no single label but {type(label).__name__}")
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


def label_names(label: Any, separator: str | None) -> list[str]:
    """The names of a list, of a text that lists them, or of what is 1 or true in an object; an empty one has none."""
    if is_missing(label):
        raise LabelError("no 'label'")
    if isinstance(label, dict):
        label = [name for name, value in label.items() if value]
    if isinstance(label, str):
        label = label.split(separator) if separator else [label]
    parts = label if isinstance(label, (list, tuple)) else [label]
    names = [label_name(part.strip() if isinstance(part, str) else part) for part in parts]
    return list(dict.fromkeys(name for name in names if name is not None))


def separator_of(labels: Iterable[Any]) -> str:
    """What stands between the labels of a text: `|` if any of them has one, else a comma."""
    return "|" if any(isinstance(label, str) and "|" in label for label in labels) else ","


def is_multi_hot(labels: Iterable[Any]) -> bool:
    """Whether lists say 0 or 1 of each label: all are as long and nothing but that, and one of them repeats itself."""
    lists = [label for label in labels if isinstance(label, (list, tuple))]
    same = len({len(label) for label in lists}) == 1
    return same and all(v in (0, 1) for one in lists for v in one) and any(len(set(one)) < len(one) for one in lists)


def numbers_of(label: Any) -> list[float]:
    """The number, or the several numbers, of a row; one that is not known is NaN."""
    parts: Sequence[Any] = label if isinstance(label, (list, tuple)) else [label]
    values = [math.nan if is_missing(part) or part == "" else number(part) for part in parts]
    if any(value is None for value in values):
        raise LabelError("'label' is no number")
    found = [value for value in values if value is not None]
    if all(map(math.isnan, found)):
        raise LabelError("no 'label'")
    return found


def number(value: Any) -> float | None:
    """A finite number, also one that is written as text."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def _is_fraction(value: Any) -> bool:
    found = None if isinstance(value, bool) else number(value)
    return found is not None and not found.is_integer()


def is_number(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


def by_number(name: str) -> tuple[bool, int, str]:
    """Sorts 2 before 10, and numbers before words."""
    return (not is_number(name), int(name) if is_number(name) else 0, name)
