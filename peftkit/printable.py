"""Text without control characters: what comes from a file, or from a model, must not steer the terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """The same with every sign that is not seen spelt out, but for ends of lines and tabs.

    >>> printable("a\\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    return "".join(sign if sign in "\n\t" or sign.isprintable() else repr(sign)[1:-1] for sign in text)
