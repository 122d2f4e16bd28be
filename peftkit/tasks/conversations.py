"""Many conversations at once: token for token what `conversation.tokens` gives each, rendered and encoded together."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from peftkit.tasks.base import RowError
from peftkit.tasks.conversation import SPLIT, Conversation, Message, Special
from peftkit.tasks.many import TokenBytes, encode_many, ids_of, token_bytes, utf8

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Spans = list[tuple[int, int]]
Tokens = tuple["NDArray[np.int32]", "NDArray[np.bool_]"]
"""A conversation's ids, and which of them are answers'."""

SIMPLE = {"role", "content"}
"""What a message has whose every value reaches a template as it is."""


def conversations(tokenizer: Any) -> Conversations:
    """The tokenizer's, made once: and again when it has changed."""
    named = (tokenizer.chat_template, tokenizer.special_tokens_map, tokenizer.all_special_tokens)
    return _made(tokenizer, tokenizer.backend_tokenizer.get_vocab_size(), str(named))


@lru_cache(maxsize=1)
def _made(tokenizer: Any, *state: Any) -> Conversations:
    return Conversations(tokenizer)


class Template:
    """A tokenizer's chat template, rendered as `apply_chat_template` does it for messages of a role and a text.

    The template's context is made once, and not for every rendering, which would take most of its time.
    """

    def __init__(self, tokenizer: Any) -> None:
        from transformers.utils.chat_template_utils import _compile_jinja_template

        self.compiled = _compile_jinja_template(tokenizer.get_chat_template())
        words: dict[str, Any] = {"messages": [], "tools": None, "documents": None, "add_generation_prompt": False}
        self.context = self.compiled.new_context(words | tokenizer.special_tokens_map)

    def render(self, messages: list[Message], prompt: bool) -> str:
        self.context.vars.clear()  # what the last rendering has set
        self.context.exported_vars.clear()
        self.context.parent.update(messages=messages, add_generation_prompt=prompt)
        return "".join(self.compiled.root_render_func(self.context))


class Conversations:
    """Encodes lists of messages with one tokenizer: what is the same for all of them is found out once."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.special = Special(tokenizer)
        self.bytes = token_bytes(tokenizer)
        self.template = Template(tokenizer)

    def encode(self, all_messages: Sequence[list[Message]]) -> list[Tokens | RowError | None]:
        """Of each conversation its ids and which of them are answers', or why there are none.

        None for one that is to be encoded by itself: special tokens are spelt out in it, or an answer's first token would
        reach back before it.
        """
        found: list[Tokens | RowError | None] = [None] * len(all_messages)
        if self.special.marked:
            return found
        whole: dict[int, tuple[str, Spans]] = {}
        for number, messages in enumerate(all_messages):
            talk = self._rendered(messages)
            try:
                text, spans = talk.text, talk.answers()
            except RowError as problem:
                found[number] = problem
                continue
            if text and SPLIT not in text and utf8(text) and (self.bytes is None or self.bytes.exact(text)):
                whole[number] = text, spans
        if whole:
            tokens = self._tokens([text for text, _ in whole.values()], [own for _, own in whole.values()])
            for number, one in zip(whole, tokens, strict=True):
                found[number] = one
        return found

    def _tokens(self, texts: list[str], spans: list[Spans]) -> list[Tokens | None]:
        if self.bytes is None:
            return by_offsets(self.tokenizer, texts, spans)
        return by_bytes(self.tokenizer, texts, spans, self.bytes)

    def _rendered(self, messages: list[Message]) -> Conversation:
        """With what it will ask the template for. What the template refuses it asks by itself, and is told so."""
        safe = [self.special.split(message) for message in messages]
        talk = Conversation(messages, self.tokenizer, self.special)
        vars(talk).update(special=self.special, safe_messages=safe)  # as its cached properties, which are slow to fill
        if all(message.keys() == SIMPLE and type(message["content"]) is str for message in safe):
            with suppress(Exception):
                for prompt in (False, True):
                    for count in talk.renderings(prompt):
                        talk.rendered[count, prompt] = self.template.render(safe[:count], prompt)
        return talk


def by_bytes(tokenizer: Any, texts: Sequence[str], spans: Sequence[Spans], table: TokenBytes) -> list[Tokens | None]:
    """Where the tokens lie follows from how many bytes each has; a text whose bytes do not add up is left."""
    import numpy as np

    ids, starts = ids_of(encode_many(tokenizer, texts, special=False))
    sizes = np.array([len(text) if text.isascii() else len(text.encode()) for text in texts])
    ends = np.cumsum(table.size[ids])
    fits = np.diff(np.concatenate([[0], ends])[starts]) == sizes
    if not fits.all():
        good = [number for number, one in enumerate(fits) if one]
        rest = by_bytes(tokenizer, [texts[at] for at in good], [spans[at] for at in good], table) if good else []
        known = dict(zip(good, rest, strict=True))
        return [known.get(number) for number in range(len(texts))]
    left, right = table.places(ids, starts, ends)
    begins, stops = _edges(texts, spans, sizes)
    inside = np.zeros(len(ids) + 1, dtype=np.int64)
    first, last = np.searchsorted(right, begins, "right"), np.searchsorted(left, stops, "left")
    some = first < last
    np.add.at(inside, first[some], 1)
    np.add.at(inside, last[some], -1)
    answer = np.cumsum(inside[:-1]) > 0
    before = np.searchsorted(left, begins, "left") - 1
    owners = np.repeat(np.arange(len(texts)), [len(own) for own in spans])
    across = set(owners[(before >= 0) & (right[before] > begins)].tolist())
    return [
        None if number in across else (ids[one:other], answer[one:other])
        for number, (one, other) in enumerate(pairwise(starts.tolist()))
    ]


def _edges(texts: Sequence[str], spans: Sequence[Spans], sizes: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    """The spans' first and last+1 byte, in all texts one behind the other."""
    import numpy as np

    base, edges = 0, []
    for text, own, size in zip(texts, spans, sizes.tolist(), strict=True):
        edges += [(base + _byte(text, start), base + _byte(text, end)) for start, end in own]
        base += size
    begins, stops = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    return begins, stops


def _byte(text: str, character: int) -> int:
    return character if text.isascii() else len(text[:character].encode())


def by_offsets(tokenizer: Any, texts: Sequence[str], spans: Sequence[Spans]) -> list[Tokens | None]:
    """The same by the characters that the tokenizer says each token to stand for."""
    import numpy as np

    found: list[Tokens | None] = []
    for encoding, own in zip(encode_many(tokenizer, texts, special=False, offsets=True), spans, strict=True):
        left, right = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2).T
        answer = np.zeros(len(left), dtype=bool)
        across = False
        for start, end in own:
            answer |= (left < end) & (start < right)
            across |= bool(((left < start) & (start < right)).any())
        found.append(None if across else (np.array(encoding.ids, dtype=np.int32), answer))
    return found
