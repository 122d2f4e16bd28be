"""Plain text: every token is learnt from those before it, and so is the end of the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from peftkit.tasks.base import IGNORED, Batch, Features, Known, Row, RowError
from peftkit.tasks.many import encode_many, ids_of, is_plain, takes_many
from peftkit.tasks.next_token import NextToken

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


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

    def encode_many(self, rows: Sequence[Row], processor: Any, max_length: int) -> list[Known | RowError | None]:
        found: list[Known | RowError | None] = [None] * len(rows)
        texts = {number: row["text"] for number, row in enumerate(rows) if is_plain(row.get("text"))}
        if not texts or not takes_many(processor):
            return found
        ids, starts = ids_of(encode_many(processor, list(texts.values())))
        for number, left, right in zip(texts, starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            found[number] = _learnt(ids[left:right], processor, max_length)
        return found

    def prompts(self, batch: Batch, processor: Any) -> None:
        """None: every token is a target, so nothing stands before them."""

    def expected(self, batch: Batch) -> None:
        """None, for the same reason."""


def _learnt(ids: NDArray[np.int32], processor: Any, max_length: int) -> Known | None:
    """The ids with the end of the text behind them, cut; None if there are too few."""
    import numpy as np

    end, cut_left = processor.eos_token_id, processor.truncation_side == "left"
    if end is not None and (not len(ids) or ids[-1] != end):
        ids = np.append(ids, np.int32(end))
    kept = ids[-max_length:] if cut_left else ids[:max_length]
    if len(kept) < 2:
        return None
    labels = kept.copy()
    labels[0] = IGNORED
    return {"input_ids": kept, "labels": labels}, len(ids) > max_length


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
