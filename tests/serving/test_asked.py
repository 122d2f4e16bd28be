"""What OpenAI's clients send, read."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from peftkit.serving.asked import ChatAsked, CompletionAsked, in_a_sentence

HELLO = [{"role": "user", "content": "hello"}]


def test_left_out_is_greedy_and_top_p_alone_draws() -> None:
    assert ChatAsked(messages=HELLO).manner(5, 0).temperature == 0
    assert ChatAsked(messages=HELLO, top_p=1).manner(5, 0).temperature == 0
    assert ChatAsked(messages=HELLO, top_p=0.5).manner(5, 0).temperature == 1
    assert ChatAsked(messages=HELLO, top_p=0.5, temperature=0).manner(5, 0).temperature == 0
    assert ChatAsked(messages=HELLO, seed=-3).manner(5, 1).seed >= 0  # torch takes no other
    assert ChatAsked(messages=HELLO, stop="a").manner(5, 0).stops == ("a",)
    assert [ChatAsked(messages=HELLO, seed=3).manner(5, number).seed for number in (0, 1)] == [3, 4]


def test_names_of_the_same_thing() -> None:
    assert ChatAsked(messages=HELLO, max_tokens=3).tokens == 3
    assert ChatAsked(messages=HELLO, max_tokens=3, max_completion_tokens=4).tokens == 4
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    assert ChatAsked(messages=[{"role": "user", "content": parts}]).messages[0].content == "hello"
    assert CompletionAsked(prompt="a").prompts == CompletionAsked(prompt=["a"]).prompts == ["a"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"top_p": 0}, "top_p: Input should be greater than 0"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"echo": True}, "'echo' is not supported; leave it out"),
        ({"wonder": 1}, "'wonder' is not known here"),
    ],
)
def test_mistakes_are_a_sentence_without_what_was_sent(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as problem:
        CompletionAsked.model_validate({"prompt": "what somebody asked", **change})
    told = str(in_a_sentence(list(problem.value.errors())))
    assert told.startswith(said)
    assert "somebody" not in told
