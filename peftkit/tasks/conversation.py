"""Where a conversation's answers stand among the tokens that its chat template renders.

A template with `{% generation %}` blocks says so itself. For any other one the beginnings of the conversation are
rendered and compared: what the template puts in front of an answer (with its generation prompt) ends where the answer
begins, and the conversation up to the answer ends where the answer ends.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

from peftkit.tasks.base import RowError

Message = dict[str, Any]
Span = tuple[int, int]

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
SPLIT = "\ufdd0"
"""Put into the special tokens that a message spells out, so that they stay words. A code point no text may contain."""


@dataclass(frozen=True)
class Special:
    """What a tokenizer has for all conversations alike: its special tokens, and whether its template marks the answers."""

    tokenizer: Any

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """Every token that is never part of a text: named ones (bos, eos, ...) and added ones marked as special."""
        added = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        return tuple({*added, *self.tokenizer.all_special_tokens})

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Finds those that can be split, the longest first."""
        long_first = sorted((token for token in self.tokens if len(token) > 1), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, long_first)) or r"(?!)")

    @cached_property
    def beginnings(self) -> tuple[str, ...]:
        """The first two letters of each: a text without any of them has no special token in it, which is seen fast."""
        return tuple({token[:2] for token in self.tokens if len(token) > 1})

    @cached_property
    def marked(self) -> bool:
        """Whether the template itself marks the answers."""
        return GENERATION.search(self.tokenizer.chat_template) is not None

    def split(self, value: Any) -> Any:
        """The value with the special tokens in its texts split."""
        if isinstance(value, str):
            if SPLIT not in value:
                for beginning in self.beginnings:
                    if beginning in value:
                        break
                else:
                    return value
            return self.pattern.sub(lambda found: found[0][0] + SPLIT + found[0][1:], value.replace(SPLIT, ""))
        if isinstance(value, dict):
            return {name: self.split(inner) for name, inner in value.items()}
        return [self.split(inner) for inner in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class Conversation:
    """Messages and the tokenizer whose template renders them."""

    messages: list[Message]
    tokenizer: Any
    known: Special | None = None
    """The tokenizer's, where many conversations share it."""
    rendered: dict[tuple[int, bool], str] = field(default_factory=dict)
    """What the template made of so many messages, with or without what stands in front of the next answer."""

    @cached_property
    def special(self) -> Special:
        return self.known or Special(self.tokenizer)

    @cached_property
    def safe_messages(self) -> list[Message]:
        """The messages with the special tokens that they spell out split, so that no message can end its own turn."""
        return [self.special.split(message) for message in self.messages]

    @cached_property
    def text(self) -> str:
        """The whole conversation as the template renders it (with SPLIT where it stands in the messages).

        A template that puts nothing behind the last answer would teach the model never to stop: it gets the end-of-text
        token.
        """
        text = self.render(len(self.messages))
        open_ended = self.messages[-1]["role"] == "assistant" and not self.ends_turn(text)
        return text + (self.tokenizer.eos_token or "") if open_ended and not self.marked else text

    def render(self, count: int, prompt: bool = False) -> str:
        """The first `count` messages; `prompt` adds what stands in front of the next answer."""
        if (count, prompt) in self.rendered:
            return self.rendered[count, prompt]
        try:
            rendered: str = self.tokenizer.apply_chat_template(
                self.safe_messages[:count], tokenize=False, add_generation_prompt=prompt
            )
        except Exception as problem:  # a template is a program: it raises what it likes
            raise RowError(f"the chat template refuses it ({type(problem).__name__}: {_first_line(problem)})") from None
        return rendered

    def answers(self) -> list[Span]:
        """First and last+1 character of each answer in `text`, its end-of-turn token included."""
        if self.marked:
            return self._marked_answers()
        return [self._trimmed(self._start(turn), self._end(turn)) for turn in self.turns]

    @cached_property
    def turns(self) -> list[int]:
        """The numbers of the messages that are answers."""
        return [number for number, message in enumerate(self.messages) if message["role"] == "assistant"]

    @property
    def marked(self) -> bool:
        """Whether the template itself marks the answers."""
        return self.special.marked

    def renderings(self, prompt: bool) -> list[int]:
        """How many messages `text` and `answers` will ask the template to render."""
        if prompt:
            return [turn for turn in self.turns if turn]
        last = len(self.messages)
        return list(dict.fromkeys([last, *(turn + 1 for turn in self.turns)]))

    def ends_turn(self, text: str) -> bool:
        """Whether the last thing in `text` but blanks is a special token."""
        return text.rstrip().endswith(self.special.tokens)

    def _marked_answers(self) -> list[Span]:
        from transformers.utils.chat_template_utils import render_jinja_template

        _, spans = render_jinja_template(
            conversations=[self.safe_messages],
            chat_template=self.tokenizer.chat_template,
            return_assistant_tokens_mask=True,
            **self.tokenizer.special_tokens_map,
        )
        return [(start, end) for start, end in spans[0]]

    def _start(self, turn: int) -> int:
        before = self.render(turn, prompt=True) if turn else ""
        if not self.text.startswith(before):
            raise RowError(
                f"the chat template renders what stands before message {turn + 1} differently once the answer follows, so"
                " the answer's first token is unknown; mark the answers in the template with {% generation %} and give"
                " it with --model.chat_template FILE"
            )
        return len(before)

    def _end(self, turn: int) -> int:
        """Where the answer's turn ends; a template that shortens earlier answers (their reasoning) is allowed to."""
        if turn + 1 == len(self.messages):
            return len(self.text)
        upto = self.render(turn + 1)
        if self.text.startswith(upto):
            return len(upto)
        words = str(self.safe_messages[turn].get("content", "")).strip().rpartition("</think>")[2].strip()
        tail = upto.rpartition(words)[2] if words else ""
        found = self.text.find(words + tail, self._start(turn)) if words else -1
        if found < 0:
            raise RowError(
                f"the chat template renders message {turn + 1} differently once others follow, so the answer's end is"
                " unknown; mark the answers in the template with {% generation %} and give it with"
                " --model.chat_template FILE"
            )
        return found + len(words + tail)

    def _trimmed(self, start: int, end: int) -> Span:
        """Without the blanks that a template puts between the end-of-turn token and the next turn: nobody generates them."""
        answer = self.text[start:end]
        return start, start + len(answer.rstrip()) if self.ends_turn(answer) else end


def tokens(conversation: Conversation) -> tuple[list[int], list[bool]]:
    """The conversation's token ids, and for each whether it is part of an answer.

    The template writes the special tokens itself, so none are added. Where a token would reach across the beginning of
    an answer the text is cut there, as it is when the answer is generated.
    """
    text, spans, tokenizer = conversation.text, conversation.answers(), conversation.tokenizer
    found = _encode(tokenizer, text, [] if tokenizer.is_fast else [edge for span in spans for edge in span])
    across = [start for start, _ in spans if any(left < start < right for _, left, right in found)]
    if across:
        found = _encode(tokenizer, text, across)
    return [token for token, _, _ in found], [_overlaps(left, right, spans) for _, left, right in found]


def _encode(tokenizer: Any, text: str, cuts: list[int]) -> list[tuple[int, int, int]]:
    """Each token with its first and last+1 character in `text`, which is cut at `cuts` and at every SPLIT.

    A tokenizer that does not tell the characters gives every token those of its whole piece.
    """
    marks = [match.start() for match in re.finditer(SPLIT, text)]
    found = []
    for left, right in pairwise(sorted({0, len(text), *cuts, *marks})):
        piece = text[left:right].removeprefix(SPLIT)
        shift = right - len(piece)
        encoded = tokenizer(piece, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast, verbose=False)
        offsets = encoded["offset_mapping"] if tokenizer.is_fast else [(0, len(piece))] * len(encoded["input_ids"])
        found += [(token, a + shift, b + shift) for token, (a, b) in zip(encoded["input_ids"], offsets, strict=True)]
    return found


def _overlaps(left: int, right: int, spans: list[Span]) -> bool:
    return any(left < end and start < right for start, end in spans)


def _first_line(problem: Exception) -> str:
    return (str(problem).splitlines() or [""])[0]
