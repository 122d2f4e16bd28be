"""A text on its way out: the part of it that can no longer change, and where it stops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

HALF = "\ufffd"
"""What a decoder puts in the place of a character whose last bytes are still to come."""


@dataclass
class Text:
    """The text of tokens that come one by one.

    Its pieces, one behind the other, are the text that all its tokens are decoded to, without what follows a stop word. So
    nothing is told that a later token may change: half a character, the beginning of a stop word, and blanks that may be
    the end of a text that is `trimmed`.
    """

    decode: Callable[[Sequence[int]], str]
    stops: tuple[str, ...] = ()
    trimmed: bool = False
    """Without blanks at its beginning and its end, as `peftkit predict` writes it."""
    told: str = ""

    def more(self, ids: Sequence[int], last: bool = False) -> tuple[str, bool]:
        """What can be told of the tokens `ids` (all so far) beyond what was told, and whether a stop word has come."""
        whole = self.decode(ids)
        at = min((at for stop in self.stops if (at := whole.find(stop)) >= 0), default=None)
        last = last or at is not None
        sure = whole[:at] if last else self._sure(whole)
        if self.trimmed:
            sure = sure.strip()
        piece = sure[len(self.told) :] if sure.startswith(self.told) else ""
        self.told += piece
        return piece, at is not None

    def _sure(self, whole: str) -> str:
        whole = whole.rstrip(HALF)
        longest = max((length for stop in self.stops for length in _begun(whole, stop)), default=0)
        return whole[: len(whole) - longest]


def _begun(whole: str, stop: str) -> list[int]:
    """How many of the stop word's first letters the text ends with."""
    return [length for length in range(1, len(stop)) if whole.endswith(stop[:length])]
