"""How tags say where an entity begins and ends: IOB1, IOB2, IOBES."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal

Scheme = Literal["IOB1", "IOB2", "IOBES"]
Entity = tuple[int, int, str]
"""First word, the word behind its last one, and its type."""

SCHEMES: tuple[Scheme, ...] = ("IOB2", "IOB1", "IOBES")
PREFIXES: dict[Scheme, str] = {"IOB1": "IBO", "IOB2": "IBO", "IOBES": "IBESO"}
OUTSIDE = "O"


def parts(tag: str) -> tuple[str, str]:
    """`B-PER` -> `B`, `PER`."""
    prefix, _, kind = tag.partition("-")
    return prefix, kind


def marks_entities(labels: Iterable[str]) -> bool:
    """Whether any of these tags says that a word stands in an entity."""
    return any(prefix in ("B", "I", "E", "S") and kind for prefix, kind in map(parts, labels))


def scheme_of(rows: Sequence[Sequence[str]]) -> Scheme | None:
    """The first scheme that all rows keep; None if there is none, or the tags mark no entities."""
    if not marks_entities(tag for tags in rows for tag in tags):
        return None
    return next((scheme for scheme in SCHEMES if all(is_valid(tags, scheme) for tags in rows)), None)


def is_valid(tags: Sequence[str], scheme: Scheme) -> bool:
    """Whether a row's tags keep the scheme."""
    padded = [OUTSIDE, *tags, OUTSIDE]
    known = all(prefix in PREFIXES[scheme] and bool(kind) == (prefix != OUTSIDE) for prefix, kind in map(parts, padded))
    return known and all(_may_follow(before, tag, scheme) for before, tag in pairwise(padded))


def _may_follow(before: str, tag: str, scheme: Scheme) -> bool:
    (last, last_kind), (prefix, kind) = parts(before), parts(tag)
    same = last != OUTSIDE and last_kind == kind
    if scheme == "IOB1":  # B only where an entity of the same type has just ended
        return prefix != "B" or same
    if scheme == "IOB2":
        return prefix != "I" or same
    opened = last in ("B", "I")
    return (prefix in ("I", "E") and same) if opened else prefix not in ("I", "E")


def written(entities: Iterable[Entity], words: int, scheme: Scheme) -> list[str]:
    """Tags of so many words. Entities must not overlap."""
    tags = [OUTSIDE] * words
    for start, end, kind in sorted(entities):
        inside = [f"I-{kind}"] * (end - start)
        if scheme != "IOB1" or (start and parts(tags[start - 1])[1] == kind):
            inside[0] = f"B-{kind}"
        if scheme == "IOBES":
            inside[-1] = f"S-{kind}" if len(inside) == 1 else f"E-{kind}"
        tags[start:end] = inside
    return tags
