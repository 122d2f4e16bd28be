"""One label for a text, or for a pair of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import field_validator

from peftkit.tasks.base import IGNORED, Batch, Features, LabelError, Record, Row, RowError, Task
from peftkit.tasks.causal_lm import text_of
from peftkit.tasks.next_token import stack, summed_loss

if TYPE_CHECKING:
    from torch import Tensor


class SequenceClassification(Task, name="sequence_classification"):
    """Learn one label for each `text` (or pair of `text` and `text_pair`)."""

    metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "f1")
    columns: ClassVar[dict[str, tuple[str, ...]]] = {
        "text": ("text", "sentence", "sentence1", "premise", "review", "content"),
        "text_pair": ("text_pair", "sentence2", "hypothesis"),
        "label": ("label", "labels", "class", "category", "target"),
    }
    needs: ClassVar[tuple[tuple[str, ...], ...]] = (("text", "label"),)

    labels: list[str] | None = None
    """The labels, in the order of the model's outputs; left out: those of the training rows, sorted."""

    @field_validator("labels", mode="before")
    @classmethod
    def _read_labels(cls, labels: Any) -> Any:
        if not isinstance(labels, (list, tuple)):
            return labels
        names = [str(label) if isinstance(label, int) else label for label in labels]
        if len(set(names)) < max(2, len(names)):
            raise ValueError("at least two labels, each named once")
        return names

    def model_class(self) -> Any:
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification

    def model_options(self) -> dict[str, Any]:
        """Sizes and names the head; nothing until the labels are known."""
        if self.labels is None:
            return {}
        names = dict(enumerate(self.labels))
        numbers = {name: number for number, name in names.items()}
        kind = "single_label_classification"
        return {"num_labels": len(names), "id2label": names, "label2id": numbers, "problem_type": kind}

    def fit(self, rows: Sequence[Row]) -> Self:
        if self.labels is not None:
            return self
        names = {name for row in rows if (name := label_name(row.get("label"))) is not None}
        if len(names) < 2:
            raise LabelError(f"the training rows have {len(names)} label; a classification needs two or more")
        return self.model_copy(update={"labels": sorted(names, key=by_number)})

    def encode(self, row: Row, processor: Any, max_length: int) -> Features:
        label = self.label_id(row.get("label"))
        texts = [text_of(row, "text")] + ([text_of(row, "text_pair")] if row.get("text_pair") is not None else [])
        encoded = processor(*texts, truncation=True, max_length=max_length, return_attention_mask=False, verbose=False)
        if not encoded["input_ids"]:
            raise RowError("no token in its text")
        return {**encoded, "labels": label}

    def label_id(self, label: Any) -> int:
        """The label's class, from its name or, where the names are no numbers, from its number."""
        names = self.labels or []
        name = label_name(label)
        if name is None:
            raise LabelError("no 'label'")
        if name in names:
            return names.index(name)
        if isinstance(label, int) and 0 <= label < len(names) and not any(map(is_number, names)):
            return label
        raise LabelError(f"'label' is none of {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}")

    def collate(self, features: Sequence[Features], processor: Any) -> Batch:
        return stack(features, processor)

    def targets(self, batch: Batch) -> int:
        return int((batch["labels"] != IGNORED).sum())

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        keep = batch["labels"] != IGNORED
        return summed_loss(outputs.logits[keep], batch["labels"][keep])

    def score(self, outputs: Any, batch: Batch) -> list[Record]:
        return [self._record(*row) for row in zip(outputs.logits.detach(), batch["labels"], strict=True)]

    def _record(self, logits: Tensor, label: Tensor) -> Record:
        names = self.labels or [str(number) for number in range(len(logits))]
        known = int(label) != IGNORED
        return {
            "loss": float(summed_loss(logits[None], label[None])),
            "targets": int(known),
            "label": names[int(label)] if known else None,
            "prediction": names[int(logits.argmax())],
            "probabilities": logits.float().softmax(-1).tolist(),
        }

    def pieces(self, features: Features, processor: Any) -> list[tuple[str, bool]]:
        text = processor.decode(features["input_ids"])
        names = self.labels or []
        return [(text, False), (" -> ", False), (names[features["labels"]], True)]


def label_name(label: Any) -> str | None:
    """A label's name as it stands in files of every kind: 1, 1.0 and "1" are the same; missing is None."""
    if label is None or label == "" or label != label:  # NaN, a missing number's mark, differs from itself
        return None
    if not isinstance(label, (str, int, float)):
        raise LabelError(f"'label' is no single label but {type(label).__name__}")
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


def is_number(name: str) -> bool:
    return name.removeprefix("-").isdigit()


def by_number(name: str) -> tuple[bool, int, str]:
    """Sorts 2 before 10, and numbers before words."""
    return (not is_number(name), int(name) if is_number(name) else 0, name)
