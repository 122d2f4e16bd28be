"""Marks around two pieces of a text, between which a relation is to be found (Baldini Soares et al., 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peftkit.tasks.base import RowError

Span = tuple[int, int]


def span_of(value: Any, column: str, text: str) -> Span:
    """Start and end in characters, from [start, end] or {"start": .., "end": ..}. RowError if the text has no such piece."""
    if isinstance(value, dict):
        value = [value.get("start"), value.get("end")]
    if not isinstance(value, (list, tuple)) or len(value) != 2 or not all(_is_whole(number) for number in value):
        raise RowError(f"{column!r} is no [start, end] in characters")
    start, end = value
    if not 0 <= start < end <= len(text):
        raise RowError(f"{column!r} lies outside its text")
    return start, end


def marked(text: str, head: Span, tail: Span, markers: Sequence[str]) -> str:
    """`Acme bought Bolt` -> `<e1> Acme </e1> bought <e2> Bolt </e2>`; an inner span is marked inside the outer one's marks."""
    pieces = zip((head, tail), (markers[:2], markers[2:]), strict=True)
    marks: list[tuple[int, int, int, str]] = []
    for (start, end), (opening, closing) in pieces:
        # At one place what ends is closed before another begins, the longer opens first and the shorter closes first.
        marks.append((start, 1, -end, f"{opening} "))
        marks.append((end, 0, -start, f" {closing}"))
    out, at = "", 0
    for place, _, _, mark in sorted(marks):
        out, at = out + text[at:place] + mark, place
    return out + text[at:]


def _is_whole(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)
