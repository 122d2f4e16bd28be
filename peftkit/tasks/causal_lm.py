"""Plain text: every token is learnt from those before it, and so is the end of the text."""

from __future__ import annotations

from typing import Any, ClassVar

from peftkit.tasks.base import IGNORED, Batch, Features, Row, RowError
from peftkit.tasks.next_token import NextToken


class CausalLM(NextToken, name="causal_lm"):
    """Learn plain text (column `text`), every token of it, ended by the tokenizer's end-of-text token."""

    columns: ClassVar[dict[str, tuple[str, ...]]] = {"text": ("text", "content", "document", "body")}
    predicts: ClassVar[bool] = False
    generates: ClassVar[bool] = False
    needs: ClassVar[tuple[tuple[str, ...], ...]] = (("text",),)

    def encode(self, row: Row, processor: Any, max_length: int) -> Features:
        ids = ended(processor(text_of(row, "text"), verbose=False)["input_ids"], processor.eos_token_id)
        ids = ids[-max_length:] if processor.truncation_side == "left" else ids[:max_length]
        if len(ids) < 2:
            raise RowError(f"no target: {len(ids)} token left, and the first one is not predicted")
        return {"input_ids": ids, "labels": [IGNORED, *ids[1:]]}

    def prompts(self, batch: Batch, processor: Any) -> None:
        """None: every token is a target, so nothing stands before them."""

    def expected(self, batch: Batch) -> None:
        """None, for the same reason."""


def text_of(row: Row, column: str) -> str:
    """The column's text; RowError if it is missing, empty or no text."""
    text = row.get(column)
    if text is None or text == "":
        raise RowError(f"no {column!r}")
    if not isinstance(text, str):
        raise RowError(f"{column!r} is no text but {type(text).__name__}")
    return text


def ended(ids: list[int], end: int | None) -> list[int]:
    """The ids with the end-of-text token behind them, once."""
    return ids if end is None or ids[-1:] == [end] else [*ids, end]
