"""Words of a text and the tokens that they are made of, told by characters, which every fast tokenizer knows."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

from peftkit.errors import ModelError
from peftkit.tasks.base import RowError

Span = tuple[int, int]

# A run of letters and digits, one sign of a script that is written without spaces, or one mark.
UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WORD = re.compile(f"[{UNSPACED}]|[^\\W{UNSPACED}]+|[^\\w\\s]")


@dataclass(frozen=True)
class Words:
    """A text, and where its words stand in it."""

    text: str
    spans: list[Span]

    def __len__(self) -> int:
        return len(self.spans)

    @classmethod
    def given(cls, tokens: Sequence[str]) -> Words:
        """Words that are known, with a space between them."""
        spans, at = [], 0
        for token in tokens:
            spans.append((at, at + len(token)))
            at += len(token) + 1
        return cls(" ".join(tokens), spans)

    @classmethod
    def found(cls, text: str) -> Words:
        return cls(text, [match.span() for match in WORD.finditer(text)])

    def of(self, start: int, end: int) -> Span:
        """The words of a piece of the text, as first and behind the last. RowError if it does not begin and end with words."""
        inside = [number for number, (first, last) in enumerate(self.spans) if first < end and last > start]
        if not inside or self.spans[inside[0]][0] != start or self.spans[inside[-1]][1] != end:
            raise RowError("an entity does not begin and end with a word")
        return inside[0], inside[-1] + 1

    def word_at(self, start: int, end: int) -> int | None:
        """The word that a token's characters belong to, None if to no word.

        The space before a word is the word's, as it is for the tokenizers that put it into a token.
        """
        if start == end:
            return None
        at = bisect_right(self._ends, start)
        while at < len(self) and self.spans[at][0] == self.spans[at][1]:
            at += 1
        return at if at < len(self) and self.spans[at][0] <= end else None

    @cached_property
    def _ends(self) -> list[int]:
        return [end for _, end in self.spans]


@dataclass(frozen=True)
class Window:
    """Tokens of a part of the text."""

    features: dict[str, list[int]]
    words: list[int | None]
    """The word of each token."""
    places: list[int]
    """Where each token stands in the whole text, counted in tokens; -1 for those that the model wants around it."""


def windows_of(words: Words, processor: Any, max_length: int, stride: int | None) -> list[Window]:
    """The text in windows that share `stride` tokens (left out: a quarter)."""
    if not getattr(processor, "is_fast", False):
        raise ModelError(
            "--task token_classification needs a fast tokenizer: this model's does not say where its tokens stand"
        )
    room = max_length - processor.num_special_tokens_to_add()
    if room < 1:
        raise RowError(f"no room for a word in {max_length} tokens")
    shared = min(max_length // 4 if stride is None else stride, room - 1)
    side, processor.truncation_side = processor.truncation_side, "right"  # nothing is lost on either side
    encoded = processor(
        words.text, truncation=True, max_length=max_length, stride=shared, return_overflowing_tokens=True,
        return_offsets_mapping=True, return_special_tokens_mask=True, return_attention_mask=False, verbose=False,
    )  # fmt: skip
    processor.truncation_side = side
    return [_window(words, encoded, number, number * (room - shared)) for number in range(len(encoded["input_ids"]))]


def _window(words: Words, encoded: Any, number: int, start: int) -> Window:
    features = {name: encoded[name][number] for name in ("input_ids", "token_type_ids") if name in encoded}
    special = encoded["special_tokens_mask"][number]
    before = accumulate((1 - around for around in special), initial=start)
    places = [-1 if around else place for around, place in zip(special, before, strict=False)]
    return Window(features, [words.word_at(*span) for span in encoded["offset_mapping"][number]], places)


def owners(windows: Sequence[Window]) -> dict[int, int]:
    """Word -> the window whose poorer side of the word's first token is longest; of equals the first."""
    first: dict[int, int] = {}
    for window in windows:
        for word, place in zip(window.words, window.places, strict=True):
            if word is not None:
                first[word] = min(place, first.get(word, place))
    best: dict[int, tuple[int, int]] = {}
    for number, window in enumerate(windows):
        for at, (word, place) in enumerate(zip(window.words, window.places, strict=True)):
            context = min(at, len(window.words) - 1 - at)
            if word is not None and place == first[word] and (word not in best or context > best[word][0]):
                best[word] = (context, number)
    return {word: number for word, (_, number) in best.items()}
