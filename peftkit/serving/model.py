"""A model that is served: what is asked of it, read as `peftkit predict` reads it, and the lanes that compute it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from peftkit.config.sections import Generate
from peftkit.data.columns import to_answer
from peftkit.data.encode import Encoder, encode_rows
from peftkit.data.sources import Table
from peftkit.errors import DataError
from peftkit.evaluation.generate import ends_of, prompts
from peftkit.exporters.runtime import Runtime
from peftkit.serving.choosing import Chooser, unread
from peftkit.serving.jobs import Manner, Writing
from peftkit.serving.problems import AskedError
from peftkit.serving.rows import RowLane
from peftkit.serving.stepwise import StepLane, why_not
from peftkit.serving.text import Text
from peftkit.serving.uploads import uploaded
from peftkit.serving.whole import WholeLane
from peftkit.tasks import Task
from peftkit.tasks.base import Row
from peftkit.tasks.causal_lm import CausalLM
from peftkit.tasks.chat import Chat
from peftkit.tasks.next_token import padding_id, special_ids
from peftkit.tasks.seq2seq import Seq2Seq

NO_LIMIT = 1 << 24


@dataclass(frozen=True)
class Prompt:
    """What is to be continued."""

    ids: list[int]
    ends: frozenset[int]
    words: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Served:
    """One name under which the service answers."""

    name: str
    model: Any
    processor: Any
    task: Task
    generate: Generate
    context: int | None
    """The longest text that the model takes, in tokens, the answer included."""
    rows: Callable[[Sequence[Row]], list[Row]] | None
    """Answers rows, where the task has answers."""
    columns: dict[str, str]
    """The task's columns that go by another name here."""
    batch: int
    window: float
    chosen: Callable[[], AbstractContextManager[Any]] = nullcontext
    """While it is open the model computes with this one's adapter, where several share a base."""
    reading: threading.Lock = field(default_factory=threading.Lock)
    """A tokenizer is changed while it reads: one reader at a time."""

    @property
    def asks(self) -> str:
        """How it is asked: `chat`, `completion` (a text to be continued, or a source), or `rows`."""
        if isinstance(self.task, Chat):
            return "chat"
        return "completion" if isinstance(self.task, CausalLM | Seq2Seq) else "rows"

    @property
    def tokenizer(self) -> Any:
        return getattr(self.processor, "tokenizer", self.processor)

    @cached_property
    def text_lane(self) -> StepLane | WholeLane | None:
        """What writes texts; None for a model that writes none."""
        if self.asks == "rows":
            return None
        padding = padding_id(self.tokenizer)
        if self._steps:
            lane = StepLane(self.model, Chooser(self.generate), self.batch, self.chosen, padding)
            if not why_not(lane):
                return lane
        batch = 1 if isinstance(self.model, Runtime) else self.batch
        return WholeLane(self.model, self.generate, batch, self.chosen, padding)

    @property
    def _steps(self) -> bool:
        """Whether its texts may be written step by step, if it computes them so."""
        model = self.model
        plain = not (isinstance(model, Runtime) or model.config.is_encoder_decoder)
        return plain and not unread(model.generation_config, self.generate)

    @cached_property
    def row_lane(self) -> RowLane | None:
        """What answers rows; None where the task has nothing to say of a row."""
        if self.rows is None:
            return None
        answers = self.rows

        def answered(rows: Sequence[Row]) -> list[Row]:
            with self.chosen(), self.reading:
                return answers(rows)

        return RowLane(answered, self.batch, self.window)

    def chat(self, messages: list[dict[str, Any]]) -> Prompt:
        """The conversation up to where the answer begins. AskedError for one that cannot be read."""
        if self.asks != "chat":
            raise AskedError(f"the model {self.name!r} holds no conversations; {self._way()}", "model")
        if messages[-1].get("role") == "assistant":
            raise AskedError("the last message is the assistant's: there is nothing to answer", "messages")
        return self._prompt({"messages": messages}, "messages")

    def completion(self, text: str) -> Prompt:
        """The text to be continued, or an encoder-decoder's source."""
        if self.asks == "rows":
            raise AskedError(f"the model {self.name!r} continues no texts; {self._way()}", "model")
        if not text:
            raise AskedError("the prompt is empty", "prompt")
        if isinstance(self.task, Seq2Seq):
            return self._prompt({"source": text}, "prompt")
        with self.reading:
            try:
                ids = self.tokenizer(text, verbose=False)["input_ids"]
            except (TypeError, UnicodeEncodeError):
                raise AskedError("the prompt holds half a character", "prompt") from None
        if not ids:
            raise AskedError("the prompt has no token", "prompt")
        return Prompt(ids, frozenset(ends_of(self.model, self.tokenizer)))

    def writing(self, prompt: Prompt, manner: Manner, tell: Callable[[Any], None], streams: bool) -> Writing:
        """The job of continuing it."""
        text = Text(self.decoded, manner.stops, isinstance(self.task, Chat | Seq2Seq))
        return Writing(
            tell, ids=prompt.ids, ends=prompt.ends, words=prompt.words, manner=manner, text=text, streams=streams
        )

    @property
    def reads(self) -> list[str]:
        """The columns of its rows that an answer needs, and may use."""
        return [name for name in self.task.columns if name not in self.task.given]

    def own_rows(self, rows: list[Row]) -> list[Row]:
        """The rows with their columns under the task's own names. AskedError if they lack one, or name a file."""
        try:
            names = to_answer(Table("the request", rows, range(1, len(rows) + 1)), self.task, self.columns)
        except DataError as problem:
            raise AskedError(str(problem).partition(". If a column")[0]) from None
        own = [{own: row[name] for own, name in names.items() if name in row} for row in rows]
        return [uploaded(row, self.task.reads) for row in own]

    def room(self, prompt: Prompt, asked: int | None, field: str) -> int:
        """How many tokens the answer may have: as many as asked for, else as in training, within the model's context.

        AskedError if that has no room for them.
        """
        used = 0 if self.model.config.is_encoder_decoder else len(prompt.ids)
        if self.context is None:
            return asked or self.generate.max_new_tokens
        what = f"this model's context is {self.context} tokens, and the prompt has {len(prompt.ids)}"
        if len(prompt.ids) + (used > 0) > self.context:
            raise AskedError(what, "messages" if self.asks == "chat" else "prompt", "context_length_exceeded")
        if asked is not None and used + asked > self.context:
            raise AskedError(
                f"{what}: no room for {asked} more; at most {self.context - used}", field, "context_length_exceeded"
            )
        return min(asked or self.generate.max_new_tokens, self.context - used)

    def decoded(self, ids: Sequence[int]) -> str:
        """The text of tokens, as `peftkit predict` decodes it."""
        return str(self._decoder.decode([token for token in ids if token not in self._special]))

    @cached_property
    def _decoder(self) -> Any:
        """A tokenizer of the worker's own."""
        with self.reading:
            return deepcopy(self.tokenizer)

    @cached_property
    def _special(self) -> set[int]:
        return special_ids(self.tokenizer)

    def _prompt(self, row: Row, field: str) -> Prompt:
        with self.reading:
            encoder = Encoder(self.task, self.processor, self._longest)
            encoded = encode_rows(encoder, [self.task.unlabelled(row)])
            if encoded.problems:
                raise AskedError(str(encoded.problems[0]), field)
            batch = self.task.collate(encoded.windows[0], self.processor)
            asked = prompts(self.model, self.task, batch, self.processor)
        if asked is None:
            raise AskedError(f"the model {self.name!r} writes no texts", "model")
        words = {name: value for name, value in asked.words.items() if name not in ("input_ids", "attention_mask")}
        return Prompt(asked.words["input_ids"][0].tolist(), frozenset(asked.ends), words)

    @property
    def _longest(self) -> int:
        """What is encoded of a prompt: one token too many shows that it is too long, where the task cuts it (a source)."""
        return self.context + 1 if isinstance(self.task, Seq2Seq) and self.context else NO_LIMIT

    def _way(self) -> str:
        ways = {"chat": "/v1/chat/completions", "completion": "/v1/completions", "rows": "/predict"}
        return f"ask it at {ways[self.asks]}"
