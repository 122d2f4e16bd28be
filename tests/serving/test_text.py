"""Pieces of a text: one behind the other they are the whole of it, wherever the tokens' borders are."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from peftkit.serving.text import Text
from tests.tiny import tokenizer

WORDS = st.text(alphabet=st.sampled_from("ab \n€😀"), max_size=12)


def decode(ids: Sequence[int]) -> str:
    return bytes(ids).decode(errors="replace")


def told(text: Text, ids: Sequence[int]) -> tuple[list[str], bool]:
    """The pieces, byte by byte, and whether a stop word has come."""
    pieces = []
    for count in range(1, len(ids) + 1):
        piece, stopped = text.more(ids[:count])
        pieces.append(piece)
        if stopped:
            return pieces, True
    piece, stopped = text.more(ids, last=True)
    return [*pieces, piece], stopped


@given(WORDS, st.booleans())
def test_pieces_are_the_whole(words: str, trimmed: bool) -> None:
    pieces, stopped = told(Text(decode, trimmed=trimmed), list(words.encode()))
    assert "".join(pieces) == (words.strip() if trimmed else words)
    assert not stopped
    assert not any("\ufffd" in piece for piece in pieces)


@given(WORDS, st.lists(WORDS.filter(bool), min_size=1, max_size=3))
def test_nothing_behind_a_stop_word_is_told(words: str, stops: list[str]) -> None:
    pieces, stopped = told(Text(decode, tuple(stops)), list(words.encode()))
    assert stopped == any(stop in words for stop in stops)
    # Byte by byte the stop word that ends first has come first.
    ends = [(words.index(stop) + len(stop), words.index(stop)) for stop in stops if stop in words]
    expected = words[: min(at for end, at in ends if end == min(ends)[0])] if ends else words
    assert "".join(pieces) == expected


def test_a_broken_character_at_the_end_is_told_there() -> None:
    pieces, _ = told(Text(decode), "a€".encode()[:-1])
    assert "".join(pieces) == "a\ufffd"


def test_a_real_tokenizer() -> None:
    tokens = tokenizer()
    words = "The quick 😀 fox, naïve"
    pieces, _ = told(Text(tokens.decode), tokens(words)["input_ids"])
    assert "".join(pieces) == words
