"""Words on the command line -> flags with their values; what a value means is decided where its setting is known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

LAUNCHER = ("local_rank", "local-rank")
"""DeepSpeed's launcher appends this one for each process; the environment says the same."""


@dataclass(frozen=True)
class Said:
    """The words behind a flag, as they were typed."""

    words: tuple[str, ...] = ()
    negated: bool = False
    """Whether it was `--no-<name>`."""

    def __str__(self) -> str:
        return " ".join(self.words)


@dataclass
class Spoken:
    """A command line, split but not yet understood."""

    flags: list[tuple[str, Said]] = field(default_factory=list)
    """Names without dashes, in order."""
    configs: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def split(words: Sequence[str]) -> Spoken:
    """Flags and the words that follow each; `--a value`, `--a=value`, `--a b c`, `--a`, `--no-a`.

    >>> split(["--batch", "8", "--no-eval.before"]).flags
    [('batch', Said(words=('8',), negated=False)), ('eval.before', Said(words=(), negated=True))]
    """
    spoken = Spoken()
    before = list(takewhile(lambda word: not is_flag(word), words))
    if before:
        spoken.problems.append(f"{' '.join(before)!r} stands before any flag: settings are --name value")
    for name, values in _flags(words[len(before) :]):
        if name == "config":
            spoken.configs += values
            if not values:
                spoken.problems.append("--config needs the path of a YAML file")
        elif name.startswith("no-"):
            spoken.flags.append((name[3:], Said(values, negated=True)))
        elif name not in LAUNCHER:
            spoken.flags.append((name, Said(values)))
    return spoken


def is_flag(word: str) -> bool:
    """Whether the word names a setting: two dashes, or one that is not a negative number's."""
    return word.startswith("--") or (word.startswith("-") and word[1:2].isalpha())


def _flags(words: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    starts = [at for at, word in enumerate(words) if is_flag(word)]
    for start, end in zip(starts, [*starts, len(words)][1:], strict=True):
        # With one dash the name keeps it, so that it is refused and the nearest is suggested.
        name, equals, value = words[start].removeprefix("--").partition("=")
        yield name, ((value,) if equals else ()) + tuple(words[start + 1 : end])
