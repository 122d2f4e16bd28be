"""What is asked of a model: a text to be written, or rows to be answered; and what the asker is told of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from peftkit.serving.text import Text
from peftkit.tasks.base import Row

Reason = Literal["stop", "length"]


@dataclass(frozen=True)
class Piece:
    """More of a text that is being written."""

    text: str


@dataclass(frozen=True)
class Written:
    """The end of a text: why it ended, all of it, and how many tokens it took, one that ends it included."""

    reason: Reason
    text: str
    tokens: int


@dataclass(frozen=True)
class Answered:
    """Answers of rows, in their order."""

    answers: list[Row]


@dataclass(frozen=True)
class Failed:
    """Nothing comes any more: the model cannot compute this."""

    problem: Exception


Told = Piece | Written | Answered | Failed


@dataclass(eq=False)
class Job:
    """Something to be computed; `tell` is called from the thread that computes."""

    tell: Callable[[Told], None]
    cancelled: bool = False
    """Nobody waits for it any more; its place is free at the next step."""
    since: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Manner:
    """How a text is written: the likeliest token each time (temperature 0), or drawn."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stops: tuple[str, ...] = ()


@dataclass(eq=False)
class Writing(Job):
    """A text to be written."""

    ids: Sequence[int] = ()
    """The prompt."""
    ends: frozenset[int] = frozenset()
    """The tokens that end it."""
    words: Mapping[str, Any] = field(default_factory=dict)
    """What else `generate` must be told, the same for all texts of a model."""
    manner: Manner = Manner(1)
    text: Text = field(default_factory=lambda: Text(str))
    streams: bool = False
    """Whether pieces are told as they come."""
    made: list[int] = field(default_factory=list)
    generator: Any = None
    """torch's, for this text alone: what others ask for changes none of its draws."""
    finished: bool = False

    def take(self, token: int) -> None:
        """The next token; ends the text if it is the last one."""
        self.made.append(token)
        if token in self.ends:
            return self.finish("stop", self.made[:-1])
        stopped = False
        if self.streams or self.manner.stops:
            stopped = self._more(self.made)
        if stopped or len(self.made) >= self.manner.max_new_tokens:
            self.finish("stop" if stopped else "length", self.made, stopped)
        return None

    def finish(self, reason: Reason, ids: Sequence[int], told: bool = False) -> None:
        if not told and self._more(ids, last=True):
            reason = "stop"
        self.finished = True
        self.tell(Written(reason, self.text.told, len(self.made)))

    def fail(self, problem: Exception) -> None:
        self.finished = True
        self.tell(Failed(problem))

    def _more(self, ids: Sequence[int], last: bool = False) -> bool:
        piece, stopped = self.text.more(ids, last)
        if piece and self.streams:
            self.tell(Piece(piece))
        return stopped


@dataclass(eq=False)
class Rows(Job):
    """Rows to be answered, some at a time."""

    rows: Sequence[Row] = ()
    answers: list[Row] = field(default_factory=list)

    @property
    def left(self) -> int:
        return len(self.rows) - len(self.answers)
