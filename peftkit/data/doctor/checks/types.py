"""Values of another kind than the column's: a number where text stands, a list where a name does, lists of unequal length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from peftkit.data.doctor.check import check
from peftkit.data.doctor.finding import Finding, Remedy, drop
from peftkit.data.doctor.sheet import Case, Sheet
from peftkit.data.doctor.values import (
    answers_of,
    are_numbers,
    as_number,
    content_of,
    is_conversation,
    is_missing,
    role_of,
)

LISTS = ("tokens", "tags", "choices", "options", "endings")
CONVERSATIONS = ("messages", "prompt", "response", "chosen", "rejected")
LABEL = ("label", "labels")
FILES = ("image", "audio")


@check("types", "fill", "drop")
def types(case: Case) -> Iterator[Finding]:
    """Values that are not of their column's kind. A number in a column of texts is filled in as text."""
    for sheet in case.sheets:
        for column in sheet.columns:
            if column not in FILES:
                yield from _column(sheet, column)


@check("unequal_lists", "drop")
def unequal_lists(case: Case) -> Iterator[Finding]:
    """Rows with more words than tags, or fewer."""
    for sheet in case.sheets:
        if {"tokens", "tags"} <= set(sheet.columns):
            rows = [at for at, row in enumerate(sheet.rows) if _unequal(row.get("tokens"), row.get("tags"))]
            yield Finding(sheet, "error", rows, "`tokens` and `tags` are not as many", (drop(rows),))


def _unequal(words: Any, tags: Any) -> bool:
    both = isinstance(words, list) and isinstance(tags, list)
    return both and bool(words) and bool(tags) and len(words) != len(tags)


def _column(sheet: Sheet, column: str) -> Iterator[Finding]:
    values = [row.get(column) for row in sheet.rows]
    present = [(at, value) for at, value in enumerate(values) if not is_missing(column, value)]
    fits = _kind(column, [value for _, value in present])
    wrong = [at for at, value in present if not fits(value)]
    if not wrong:
        return
    scalar = column not in (*LISTS, *LABEL, "answers", "messages")
    texts = {at: {column: str(values[at])} for at in wrong if scalar and isinstance(values[at], (int, float))}
    rest = [at for at in wrong if at not in texts]
    remedies = [*([Remedy("fill", "write numbers as text", texts)] if texts else []), *([drop(rest)] if rest else [])]
    severity = "error" if column in (*LABEL, *LISTS) else "warning"
    means = f"`{column}` is not of the kind that the task, or the column's other rows, have"
    yield Finding(sheet, "error" if severity == "error" else "warning", wrong, means, tuple(remedies))


def _kind(column: str, values: list[Any]) -> Callable[[Any], bool]:
    """What the values of this column should be. Lists may also stand as text (in CSV), if all do."""
    if column in LABEL:
        return _label_kind(values)
    if column == "messages":
        return _are_messages
    if column in (*LISTS, "answers"):
        inner = _are_answers if column == "answers" else _is_flat_list
        as_text = sum(isinstance(value, str) for value in values) > len(values) / 2
        return _is_text if as_text else inner
    return _is_text_or_messages if column in CONVERSATIONS else _as_most(values)


def _as_most(values: list[Any]) -> Callable[[Any], bool]:
    """The type of most values; text, if there is none."""
    kinds = Counter(type(value) for value in values)
    kind = str if kinds[str] * 2 >= len(values) else kinds.most_common(1)[0][0]
    return lambda value: isinstance(value, kind)


def _label_kind(values: list[Any]) -> Callable[[Any], bool]:
    """Numbers, lists or names, as most of the column."""
    if are_numbers(values):
        return lambda value: as_number(value) is not None
    kinds = Counter("list" if isinstance(value, list) else "name" for value in values)
    if kinds["list"] > kinds["name"]:
        return _is_flat_list
    return lambda value: isinstance(value, (str, int, float))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_text_or_messages(value: Any) -> bool:
    return isinstance(value, str) or _are_messages(value)


def _is_flat_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, (str, int, float)) for one in value)


def _are_answers(value: Any) -> bool:
    answers = answers_of(value)
    return answers is not None and all(
        isinstance(text, str) and isinstance(start, int) and not isinstance(start, bool) for text, start in answers
    )


def _are_messages(value: Any) -> bool:
    return is_conversation(value) and all(
        isinstance(role_of(one), str) and isinstance(content_of(one), (str, list, type(None))) for one in value
    )
