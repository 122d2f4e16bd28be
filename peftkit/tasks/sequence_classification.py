"""One label for a text or a pair of texts, several labels, or a number; and the relation between two marked words."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, ClassVar

from pydantic import field_validator

from peftkit.tasks.base import Batch, Features, Known, Row, RowError
from peftkit.tasks.causal_lm import text_of
from peftkit.tasks.classification import Classification
from peftkit.tasks.labels import label_name
from peftkit.tasks.many import encode_many, ids_of, is_plain, takes_many
from peftkit.tasks.markers import marked, span_of
from peftkit.tasks.next_token import stack

__all__ = ["SequenceClassification", "label_name"]


class SequenceClassification(Classification, name="sequence_classification"):
    """Learn a label, several labels or a number of each `text` (or pair of `text` and `text_pair`)."""

    columns: ClassVar[dict[str, tuple[str, ...]]] = {
        "text": ("text", "sentence", "sentence1", "premise", "review", "content"),
        "text_pair": ("text_pair", "sentence2", "hypothesis"),
        "label": ("label", "labels", "class", "category", "target", "score", "relation"),
        "head": ("head", "e1"),
        "tail": ("tail", "e2"),
    }
    needs: ClassVar[tuple[tuple[str, ...], ...]] = (("text", "label"),)
    texts: ClassVar[tuple[str, ...]] = ("text", "text_pair")
    anchors: ClassVar[tuple[str, ...]] = ("head", "tail")

    markers: tuple[str, str, str, str] = ("<e1>", "</e1>", "<e2>", "</e2>")
    """What is put around the head and the tail of a relation, in rows with columns `head` and `tail` ([start, end] in characters).
    A text that has them already is taken as it is. They are ordinary words to the model, unless you add them to its vocabulary:
    `--model.add_tokens '<e1> </e1> <e2> </e2>'`."""

    @field_validator("markers", mode="before")
    @classmethod
    def _read_markers(cls, markers: Any) -> Any:
        return markers.split() if isinstance(markers, str) else markers

    def model_class(self) -> Any:
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification

    def encode(self, row: Row, processor: Any, max_length: int) -> Features:
        label = self.encoded_label(row)
        texts = [self.text(row)] + ([text_of(row, "text_pair")] if row.get("text_pair") is not None else [])
        encoded = processor(*texts, truncation=True, max_length=max_length, return_attention_mask=False, verbose=False)
        if not encoded["input_ids"]:
            raise RowError("no token in its text")
        if len(encoded["input_ids"]) == max_length and getattr(processor, "is_fast", False):
            self._check_kept(texts[0], encoded)
        return {**encoded, "labels": label}

    def encode_many(self, rows: Sequence[Row], processor: Any, max_length: int) -> list[Known | RowError | None]:
        import numpy as np

        found: list[Known | RowError | None] = [None] * len(rows)
        if not takes_many(processor):
            return found
        texts, labels = {}, {}
        for number, row in enumerate(rows):
            with suppress(RowError):  # told when the row is encoded by itself
                labels[number] = self.encoded_label(row)
                read = [self.text(row)] + ([text_of(row, "text_pair")] if row.get("text_pair") is not None else [])
                if all(map(is_plain, read)) and not all(mark in read[0] for mark in self.markers):
                    texts[number] = read[0] if len(read) == 1 else (read[0], read[1])
        encodings = encode_many(processor, list(texts.values()), max_length=max_length)
        ids, starts = ids_of(encodings)
        types = ids_of(encodings, "type_ids")[0] if "token_type_ids" in processor.model_input_names else None
        full = [number for number, count in zip(texts, np.diff(starts), strict=True) if count == max_length]
        longer = encode_many(processor, [texts[number] for number in full], max_length=max_length + 1)
        cut = {number for number, one in zip(full, longer, strict=True) if len(one.ids) > max_length}
        for number, left, right in zip(texts, starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            if left < right:
                typed = {} if types is None else {"token_type_ids": types[left:right]}
                found[number] = {"input_ids": ids[left:right], **typed, "labels": labels[number]}, number in cut
        return found

    def text(self, row: Row) -> str:
        """The row's text, with markers in it if the row has a head and a tail."""
        text, head, tail = text_of(row, "text"), row.get("head"), row.get("tail")
        if head is None and tail is None:
            return text
        return marked(text, span_of(head, "head", text), span_of(tail, "tail", text), self.markers)

    def _check_kept(self, text: str, encoded: Any) -> None:
        """RowError if a mark of a relation was cut away."""
        places = [text.find(mark) for mark in self.markers]
        if min(places) >= 0 and any(encoded.char_to_token(place) is None for place in places):
            raise RowError("its head or its tail was cut off (--data.max_length)")

    def collate(self, features: Sequence[Features], processor: Any) -> Batch:
        return stack(features, processor)

    def pieces(self, features: Features, processor: Any) -> list[tuple[str, bool]]:
        text = processor.decode(features["input_ids"])
        return [(text, False), (" -> ", False), (self.label_words(features["labels"]), True)]
