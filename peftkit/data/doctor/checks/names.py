"""Names that nearly are one name: other case, other blanks, one letter wrong."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection

from peftkit.config.flags import one_edit_apart

RARE = 10
"""A name one letter off another is a slip if it is at least so many times rarer; else it is a name of its own."""
SHORTEST = 4
MANY = 2000
"""So many names are no label set, and are not compared letter by letter."""


def misspelt(counts: Counter[str], given: Collection[str] = ()) -> dict[str, str]:
    """Each name that is a variant of a more frequent one (or of a given one) -> that one."""
    right: dict[str, str] = {}
    known: dict[str, str] = {}
    for name in sorted(counts, key=lambda one: (one not in given, -counts[one], one)):
        key = plain(name)
        if key not in known or name in given:
            slip = None if name in given else _slip(key, name, counts, known, given)
            if slip is None:
                known.setdefault(key, name)
            else:
                right[name] = slip
        else:
            right[name] = known[key]
    return right


def plain(name: str) -> str:
    """A name without what people write differently: case, blanks, hyphens and underscores."""
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", name)).strip().casefold()


def _slip(key: str, name: str, counts: Counter[str], known: dict[str, str], given: Collection[str]) -> str | None:
    if len(key) < SHORTEST or len(known) > MANY:
        return None
    for other, right in known.items():
        rare = right in given or counts[name] * RARE <= counts[right]
        if rare and len(other) >= SHORTEST and _figures(key) == _figures(other) and one_edit_apart(key, other):
            return right
    return None


def _figures(name: str) -> str:
    """Its digits: `class 1` and `class 2` are one edit apart, and two classes."""
    return re.sub(r"\D", "", name)
