"""What a row's columns hold: texts, inputs and targets, by the names that tasks give their columns."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from peftkit.tasks.base import Row

TARGETS = (
    "label",
    "labels",
    "tags",
    "answers",
    "response",
    "completion",
    "target",
    "chosen",
    "rejected",
    "margin",
    "score",
)
"""Columns that are learnt; the others are read."""
LABELS = ("label", "labels", "tags")
"""Columns of names out of a set, or of numbers: no texts."""
NO_TEXT = (*LABELS, "image", "audio", "margin", "score", "system")
"""Columns whose words are not compared: names, files, and a system prompt that all rows share."""
ANSWERER = ("assistant", "gpt", "bot", "model")
MISSPELT = frozenset({"nan", "#n/a", "n/a"})


def is_missing(column: str, value: Any) -> bool:
    """Nothing, not a number, blank, or an empty list where there must be elements (a row may have no label of several)."""
    if value is None or (isinstance(value, float) and value != value):
        return True
    if isinstance(value, str):
        return not value.strip() or (column in LABELS and value.strip().lower() in MISSPELT)
    return isinstance(value, (list, dict)) and not value and column not in ("label", "labels")


def texts(row: Row) -> dict[str, str]:
    """Every column with words in it as one text; a conversation as what is asked and what is answered."""
    found: dict[str, str] = {}
    for column, value in row.items():
        if column in NO_TEXT or value is None:
            continue
        if is_conversation(value):
            found |= _conversation(column, value)
        else:
            found[column] = "\n".join(strings(value))
    return {column: text for column, text in found.items() if text.strip()}


def inputs(row: Row) -> dict[str, str]:
    """The texts that are read and not learnt."""
    found = texts(row)
    asked = {column: text for column, text in found.items() if column.partition(" ")[0] not in TARGETS}
    answered = [column for column in asked if column.endswith(" answers")]
    return {column: text for column, text in asked.items() if column not in answered}


def is_conversation(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def role_of(message: Row) -> Any:
    return message.get("role", message.get("from"))


def content_of(message: Row) -> Any:
    return message.get("content", message.get("value"))


def _conversation(column: str, messages: list[Row]) -> dict[str, str]:
    kept = [message for message in messages if role_of(message) != "system"]
    answers = [one for one in kept if role_of(one) in ANSWERER]
    asked = [one for one in kept if role_of(one) not in ANSWERER]
    parts = {column: asked, f"{column} answers": answers}
    return {name: "\n".join(t for one in part for t in strings(content_of(one) or "")) for name, part in parts.items()}


def strings(value: Any) -> Iterator[str]:
    """Every string inside a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from strings(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from strings(inner)


def mapped(value: Any, change: Callable[[str], str]) -> Any:
    """The value with every string inside it changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {name: mapped(inner, change) for name, inner in value.items()}
    return [mapped(inner, change) for inner in value] if isinstance(value, (list, tuple)) else value


def canonical(values: Row) -> bytes:
    """A digest that is equal exactly where the values are."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False, default=_plain)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def loosened(found: dict[str, str]) -> bytes | None:
    """A digest of texts that does not see case and blanks; None if there are none."""
    plain = {column: " ".join(text.casefold().split()) for column, text in found.items()}
    return canonical(plain) if any(plain.values()) else None


def _plain(value: Any) -> str:
    if isinstance(value, (bytes, bytearray)):
        return hashlib.blake2b(value, digest_size=16).hexdigest()
    return f"{type(value).__name__} {value}"


def label_names(value: Any) -> list[str]:
    """The names in a label (1, 1.0 and "1" are one), a list of labels, or tags; none where it is missing or neither."""
    if isinstance(value, (list, tuple)):
        return [name for one in value for name in label_names(one)]
    if isinstance(value, (str, int, float)) and not is_missing("label", value):
        return [str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)]
    return []


def are_numbers(values: Iterable[Any]) -> bool:
    """Whether a column of labels is one of numbers to predict: fractions in it, or more different numbers than classes."""
    present = [value for value in values if not is_missing("label", value)]
    numbers = [number for value in present if (number := as_number(value)) is not None]
    if not present or len(numbers) < 0.9 * len(present):
        return False
    return any(not number.is_integer() for number in numbers) or len(set(numbers)) > max(50, len(numbers) // 2)


def as_number(value: Any) -> float | None:
    """A finite number, also one that is written as text."""
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else None
    except ValueError:
        return None
    return number if number is not None and abs(number) < float("inf") else None


def answers_of(value: Any) -> list[tuple[Any, Any]] | None:
    """Each answer's text and start, from {"text": [..], "answer_start": [..]} or [{"text": .., "answer_start": ..}]."""
    if isinstance(value, dict) and isinstance(value.get("text"), list) and isinstance(value.get("answer_start"), list):
        both = value["text"], value["answer_start"]
        return list(zip(*both, strict=True)) if len(both[0]) == len(both[1]) else None
    if isinstance(value, list) and all(isinstance(one, dict) and {"text", "answer_start"} <= set(one) for one in value):
        return [(one["text"], one["answer_start"]) for one in value]
    return None


def with_answers(value: Any, answers: list[tuple[Any, Any]]) -> Any:
    """The same shape with other answers in it."""
    if isinstance(value, dict):
        return {**value, "text": [text for text, _ in answers], "answer_start": [start for _, start in answers]}
    return [{**one, "text": text, "answer_start": start} for one, (text, start) in zip(value, answers, strict=True)]
