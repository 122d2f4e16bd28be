"""Named choices; an unknown name suggests the nearest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Registry(Generic[T]):
    """A family's choices by name; other packages add theirs through the entry-point group `peftkit.<family>`.

    >>> colours = Registry[type]("colour", group="peftkit.colours")
    >>> colours.add("red", int)
    >>> colours["red"]
    <class 'int'>
    """

    def __init__(self, kind: str, group: str) -> None:
        self.kind = kind
        self.group = group
        self._choices: dict[str, T] = {}
        self._outside_read = False

    def add(self, name: str, choice: T) -> None:
        """Register `choice`; a second one of the same name is a mistake in a plug-in, and a ValueError."""
        if name in self._choices:
            raise ValueError(f"two {self.kind} choices are named {name!r}: {self._choices[name]} and {choice}")
        self._choices[name] = choice

    def __getitem__(self, name: str) -> T:
        self._read_outside()
        if name not in self._choices:
            raise KeyError(f"no {self.kind} is named {name!r}{did_you_mean(name, self)}; there are: {', '.join(self)}")
        return self._choices[name]

    def __iter__(self) -> Iterator[str]:
        self._read_outside()
        return iter(sorted(self._choices))

    def __contains__(self, name: object) -> bool:
        self._read_outside()
        return name in self._choices

    def _read_outside(self) -> None:
        if not self._outside_read:
            self._outside_read = True
            for entry in _entries().select(group=self.group):
                entry.load()  # importing a choice's class registers it


@cache
def _entries() -> Any:
    """All entry points of all packages: reading them takes milliseconds, so once for all families."""
    return entry_points()


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` most likely meant, if any is near."""
    matches = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`" (did you mean 'lora'?)"`, or nothing."""
    match = nearest(word, known)
    return f" (did you mean {match!r}?)" if match else ""
