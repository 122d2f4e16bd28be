"""A sign of life: how often this process has come a little further. A watching thread reads it."""

from __future__ import annotations

_count = 0


def beat() -> None:
    """The process has come a little further: a forward pass, a step, a word with the others."""
    global _count
    _count += 1


def beats() -> int:
    """How often, since the process began."""
    return _count
