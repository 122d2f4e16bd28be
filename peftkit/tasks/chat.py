"""Conversations, rendered by the tokenizer's own chat template; only the assistant's answers are learnt."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, ClassVar

from peftkit.errors import DataError
from peftkit.tasks.base import IGNORED, Features, Known, Row, RowError
from peftkit.tasks.conversation import Conversation, Message, tokens
from peftkit.tasks.conversations import Tokens, conversations
from peftkit.tasks.many import takes_many
from peftkit.tasks.next_token import NextToken

ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "observation": "tool"}
PLACE, ASKED = ".", "unlabelled"
"""What stands in the place of an answer that is to be written, and the column that says so."""
KNOWN_ROLES = ("system", "developer", "user", "assistant", "tool")


class Chat(NextToken, name="chat"):
    """Learn an assistant's answers, each with its end-of-turn token, from conversations of any number of turns.

    A conversation that is too long loses its end, or with `--data.truncate left` whole turns: the oldest ones, but not
    the system's message.
    """

    columns: ClassVar[dict[str, tuple[str, ...]]] = {
        "messages": ("messages", "conversations", "conversation"),
        "prompt": ("prompt", "instruction", "question"),
        "response": ("response", "completion", "output", "answer"),
        "input": ("input", "context"),
        "system": ("system", "system_prompt"),
    }
    needs: ClassVar[tuple[tuple[str, ...], ...]] = (("messages",), ("prompt", "response"))
    given: ClassVar[tuple[str, ...]] = ("response",)

    @property
    def keeps(self) -> tuple[str, ...]:
        return "reference", "generated"

    def encode(self, row: Row, processor: Any, max_length: int) -> Features:
        if not processor.chat_template:
            raise DataError(
                "the tokenizer has no chat template; give one with --model.chat_template FILE, or learn plain text with"
                " --task causal_lm"
            )
        by_turns = processor.truncation_side == "left"
        ids, answers = (newest_turns if by_turns else whole)(messages_of(row), processor, max_length)
        if row.get(ASKED) and len(ids) > max_length:
            raise RowError(f"no room for an answer: the conversation is longer than {max_length} tokens")
        labels = [token if answer else IGNORED for token, answer in zip(ids, answers, strict=True)]
        ids, labels = ids[:max_length], [IGNORED, *labels[1:max_length]]
        if all(label == IGNORED for label in labels):
            raise _no_target(max_length)
        return {"input_ids": ids, "labels": labels}

    def encode_many(self, rows: Sequence[Row], processor: Any, max_length: int) -> list[Known | RowError | None]:
        found: list[Known | RowError | None] = [None] * len(rows)
        if not processor.chat_template or processor.truncation_side == "left" or not takes_many(processor):
            return found
        talks: dict[int, list[Message]] = {}
        for number, row in enumerate(rows):
            try:
                talks[number] = messages_of(row)
            except RowError as problem:
                found[number] = problem
        encoded = conversations(processor).encode(list(talks.values()))
        for number, one in zip(talks, encoded, strict=True):
            if isinstance(one, RowError):
                found[number] = one
            elif one is not None and not rows[number].get(ASKED):
                found[number] = _learnt(one, max_length)
        return found

    def loses(self, row: Row, features: Features, processor: Any, max_length: int) -> bool:
        """Whether whole turns are left out."""
        return (
            processor.truncation_side == "left" and len(whole(messages_of(row), processor, max_length)[0]) > max_length
        )

    def unlabelled(self, row: Row) -> Row:
        """With a last answer that only marks where the model's own begins; an answer that is there is written anew."""
        messages = row.get("messages")
        if not isinstance(messages, list):
            return {**row, "response": row.get("response") or PLACE, ASKED: True}
        last = messages[-1] if messages and isinstance(messages[-1], dict) else {}
        role = last.get("role", last.get("from"))
        answered = ROLES.get(str(role), role) == "assistant"
        added = [] if answered else [{"role": "assistant", "content": PLACE}]
        return {**row, "messages": [*messages, *added], ASKED: True}


def _learnt(found: Tokens, max_length: int) -> Known | RowError:
    ids, answers = found
    labels = ids[:max_length].copy()
    labels[~answers[:max_length]] = IGNORED
    labels[:1] = IGNORED
    if not (labels != IGNORED).any():
        return _no_target(max_length)
    return {"input_ids": ids[:max_length], "labels": labels}, len(ids) > max_length


def _no_target(max_length: int) -> RowError:
    return RowError(f"no target: no answer begins within the first {max_length} tokens")


def whole(messages: list[Message], processor: Any, max_length: int) -> tuple[list[int], list[bool]]:
    """The tokens of all messages, and for each whether it is part of an answer."""
    return tokens(Conversation(messages, processor))


def newest_turns(messages: list[Message], processor: Any, max_length: int) -> tuple[list[int], list[bool]]:
    """The same of as many turns as fit, the newest ones, behind what stands before the first; at least the last turn."""
    starts = [number for number, message in enumerate(messages) if message["role"] == "user"] or [0]
    head = messages[: starts[0]]

    def from_turn(turn: int) -> tuple[list[int], list[bool]]:
        return whole([*head, *messages[starts[turn] :]], processor, max_length)

    answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    starts = [start for start in starts if start < answers[-1]] or starts[:1]  # one answer at least stays
    first = bisect_left(range(len(starts) - 1), True, key=lambda turn: len(from_turn(turn)[0]) <= max_length)
    return from_turn(first)


def messages_of(row: Row) -> list[Message]:
    """The row's messages, whichever of the usual shapes it has (OpenAI, ShareGPT, prompt/response, Alpaca)."""
    if row.get("messages") is not None:
        messages = _listed(row["messages"], "messages")
    else:
        messages = _listed(_question(row), "user") + _listed(row.get("response"), "assistant")
    if row.get("system") and messages and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": row["system"]}, *messages]
    if not any(message["role"] == "assistant" for message in messages):
        raise RowError("no answer: no message is the assistant's")
    return messages


def _question(row: Row) -> Any:
    prompt, extra = row.get("prompt"), row.get("input")
    return f"{prompt}\n\n{extra}" if extra and isinstance(prompt, str) else prompt


def _listed(value: Any, kind: str) -> list[Message]:
    """Messages as they are, or a text as the one message of a role."""
    column = {"user": "prompt", "assistant": "response"}.get(kind, kind)
    if not value:
        raise RowError(f"no {column!r}")
    if isinstance(value, str) and kind != "messages":
        value = [{"role": kind, "content": value}]
    if not isinstance(value, list):
        raise RowError(f"{column!r} is no list of messages")
    return [_message(message, number) for number, message in enumerate(value, start=1)]


def _message(message: Any, number: int) -> Message:
    if not isinstance(message, dict):
        raise RowError(f"message {number} is no object with a role and a content")
    read = {name: value for name, value in message.items() if value is not None}
    if "from" in read and "value" in read:  # ShareGPT's names
        read = {"role": read.pop("from"), "content": read.pop("value"), **read}
    role = read.get("role")
    if role not in (*KNOWN_ROLES, *ROLES):
        raise RowError(f"message {number} has no role among {', '.join((*KNOWN_ROLES, *ROLES))}")
    if not read.get("content") and not read.get("tool_calls"):
        raise RowError(f"message {number} is empty")
    return {**read, "role": ROLES.get(str(role), role)}
