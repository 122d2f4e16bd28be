"""Answers to one prompt that are compared: as texts, as messages, or as whole conversations that begin alike."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from peftkit.tasks.base import IGNORED, LabelError, Row, RowError
from peftkit.tasks.causal_lm import ended
from peftkit.tasks.chat import messages_of
from peftkit.tasks.conversation import Conversation, tokens

COLUMNS = {
    "prompt": ("prompt", "question", "instruction"),
    "chosen": ("chosen", "preferred", "response_chosen"),
    "rejected": ("rejected", "dispreferred", "response_rejected"),
}
"""The columns of a pair -> the names they usually have."""
Answer = tuple[Any, Any]
"""A prompt (a text, messages, or None where the answer is a whole conversation) and an answer (a text or messages)."""
Encoded = tuple[list[int], list[int]]
"""Token ids and labels."""


def pair_of(row: Row) -> list[Answer]:
    """The chosen and the rejected answer, each with its prompt."""
    for side in ("chosen", "rejected"):
        if not row.get(side):
            raise RowError(f"no {side!r}")
        if not isinstance(row[side], (str, list)):
            raise RowError(f"{side!r} is no text and no list of messages")
    if row["chosen"] == row["rejected"]:
        raise RowError("'chosen' and 'rejected' are the same")
    return [(row.get("prompt"), row["chosen"]), (row.get("prompt"), row["rejected"])]


def answers_of(answers: Sequence[Answer], processor: Any, max_length: int) -> list[Encoded]:
    """The answers behind their prompt, with labels on the answers alone.

    What is too long loses the beginning of its prompt, the same part for each of the answers, and then the answer's end.
    """
    split = [split_answer(prompt, answer, processor) for prompt, answer in answers]
    room = max(1, max_length - max(len(answer) for _, answer in split))
    encoded = []
    for prompt, answer in split:
        prompt, answer = prompt[-room:], answer[: max_length - min(room, len(prompt))]
        # The first position is predicted by none.
        labels = [*[IGNORED] * len(prompt), *answer] if prompt else [IGNORED, *answer[1:]]
        if not any(label != IGNORED for label in labels):
            raise RowError("no target: an answer has no token")
        encoded.append((prompt + answer, labels))
    return encoded


def split_answer(prompt: Any, answer: Any, processor: Any) -> tuple[list[int], list[int]]:
    """Token ids of the prompt and of the answer, as the chat template puts them, or as plain text without one."""
    if not answer:
        raise RowError("an answer is empty")
    if not getattr(processor, "chat_template", None) or (prompt is None and isinstance(answer, str)):
        return plain(prompt, answer, processor)
    messages = messages_of({"messages": answer} if prompt is None else {"prompt": prompt, "response": answer})
    if messages[-1]["role"] != "assistant":
        raise RowError("the last message is not the assistant's")
    ids, marks = tokens(Conversation(messages, processor))
    # Only the last answer is compared: what was said before it is the prompt of both.
    runs = [(mark, len(list(run))) for mark, run in groupby(marks)]
    after = 0 if runs[-1][0] else runs[-1][1]
    end = len(ids) - after
    start = end - next(size for mark, size in reversed(runs) if mark)
    return ids[:start], ids[start:end]


def plain(prompt: Any, answer: Any, processor: Any) -> tuple[list[int], list[int]]:
    for what in (prompt, answer):
        if what is not None and not isinstance(what, str):
            raise RowError("messages need a chat template; give one with --model.chat_template FILE")
    before = processor(prompt, verbose=False)["input_ids"] if prompt else []
    if before[-1:] == [processor.eos_token_id]:  # T5's and others' tokenizers end every text
        before = before[:-1]
    after = processor(answer, add_special_tokens=not prompt, verbose=False)["input_ids"]
    return before, ended(after, processor.eos_token_id)


def desired(label: Any) -> bool:
    """Whether an answer is wanted: true and false as files spell them."""
    words = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False, "-1": False}
    known = words.get(str(label).strip().lower())
    if known is None:
        raise LabelError("'label' is neither true nor false")
    return known


def pieces_of(ids: Sequence[int], labels: Sequence[int], processor: Any) -> list[tuple[str, bool]]:
    """The text in pieces, and whether each is learnt."""
    runs = groupby(zip(ids, labels, strict=True), key=lambda position: position[1] != IGNORED)
    return [(processor.decode([token for token, _ in run]), target) for target, run in runs]
