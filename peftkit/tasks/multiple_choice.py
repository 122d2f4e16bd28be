"""One of several answers, each read together with the question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from peftkit.tasks.base import IGNORED, Batch, Features, LabelError, Record, Row, RowError, Task
from peftkit.tasks.causal_lm import text_of
from peftkit.tasks.labels import is_missing, label_name
from peftkit.tasks.next_token import padding_id

if TYPE_CHECKING:
    from torch import Tensor

LETTERS = "ABCDEFGH"
NUMBERED = tuple(f"choice{number}" for number in range(len(LETTERS)))
UNKNOWN = ...
"""Stands for the label of a row that is to be predicted."""


class MultipleChoice(Task, name="multiple_choice"):
    """Learn which of the `choices` (a list, or columns choice0, choice1, ...) goes with a `context`, a `question`, or both."""

    metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy")
    columns: ClassVar[dict[str, tuple[str, ...]]] = {
        "context": ("context", "sent1", "premise", "passage", "article", "ctx", "sentence", "startphrase"),
        "question": ("question", "sent2", "query"),
        "choices": ("choices", "options", "endings", "answers"),
        **{name: (name, f"ending{number}", f"option{number}", LETTERS[number]) for number, name in enumerate(NUMBERED)},
        "label": ("label", "labels", "answer", "answerKey", "answer_key", "correct"),
    }
    needs: ClassVar[tuple[tuple[str, ...], ...]] = tuple(
        (text, choices, "label") for choices in ("choices", "choice1") for text in ("context", "question")
    )
    given: ClassVar[tuple[str, ...]] = ("label",)
    texts: ClassVar[tuple[str, ...]] = ("context", "question")

    count_from: Literal[0, 1] = 0
    """The number of the first choice in `label`; letters and the choices' own names need none."""

    @property
    def keeps(self) -> tuple[str, ...]:
        return "label", "prediction", "probabilities"

    @property
    def varies(self) -> str:
        return "reads several texts for a row"

    def model_class(self) -> Any:
        from transformers import AutoModelForMultipleChoice

        return AutoModelForMultipleChoice

    def encode(self, row: Row, processor: Any, max_length: int) -> Features:
        names, texts = choices_of(row)
        label = row.get("label")
        number = IGNORED if label is UNKNOWN else self._number(label, names, len(texts))
        pairs = [self._encoded(row, text, processor, max_length) for text in texts]
        # All choices behind one another: a store keeps rows of numbers.
        joined = {name: [value for pair in pairs for value in pair[name]] for name in pairs[0]}
        return {**joined, "choice_lengths": [len(pair["input_ids"]) for pair in pairs], "labels": number}

    def _encoded(self, row: Row, choice: str, processor: Any, max_length: int) -> dict[str, list[int]]:
        """Context, question and choice as two texts; of the first there may be less, the choice is always whole."""
        question, context = (row.get(name) for name in ("question", "context"))
        if not question and not context:
            raise RowError("no 'context' and no 'question'")
        first = text_of(row, "context" if context else "question")
        second = f"{text_of(row, 'question')} {choice}" if context and question else choice
        room = max_length - len(processor(second, add_special_tokens=False, verbose=False)["input_ids"])
        if room <= processor.num_special_tokens_to_add(pair=True):
            raise RowError(f"a choice fills {max_length} tokens by itself")
        encoded = processor(
            first, second, truncation="only_first", max_length=max_length, return_attention_mask=False, verbose=False
        )
        return {name: encoded[name] for name in ("input_ids", "token_type_ids") if name in encoded}

    def _number(self, label: Any, names: Sequence[str], choices: int) -> int:
        """The right choice's place, from its name, its letter or its number."""
        name = label_name(None if isinstance(label, (list, tuple, dict)) or is_missing(label) else label)
        if name is None:
            raise LabelError("no 'label'")
        if name in names:
            return names.index(name)
        letter = LETTERS.find(name.upper()) if len(name) == 1 else -1
        number = int(name) - self.count_from if name.isdecimal() else letter
        if not 0 <= number < choices:
            raise LabelError(
                "'label' is the number, the letter or the name of no choice (numbers begin at --task.count_from)"
            )
        return number

    def unlabelled(self, row: Row) -> Row:
        return {**row, "label": UNKNOWN}

    def collate(self, features: Sequence[Features], processor: Any) -> Batch:
        """(rows, choices, positions); a row with fewer choices than another has some without a token."""
        import torch

        choices = max(len(row["choice_lengths"]) for row in features)
        shape = (len(features), choices, max(max(row["choice_lengths"]) for row in features))
        batch = {"attention_mask": torch.zeros(shape, dtype=torch.long)}
        for name in ("input_ids", "token_type_ids"):
            if name in features[0]:
                batch[name] = torch.full(shape, padding_id(processor) if name == "input_ids" else 0)
        for at, row in enumerate(features):
            _lay_out(row, {name: value[at] for name, value in batch.items()})
        there = torch.tensor([[at < len(row["choice_lengths"]) for at in range(choices)] for row in features])
        # What is no choice shows the model one token, or some attention divides by zero; its logit is left out.
        batch["attention_mask"][..., 0] |= (~there).long()
        labels = torch.tensor([row["labels"] for row in features])
        return {**batch, "labels": labels, "there": there}

    def inputs(self, batch: Batch) -> dict[str, Any]:
        return {name: value for name, value in batch.items() if name not in ("labels", "there")}

    def targets(self, batch: Batch) -> int:
        return int((batch["labels"] != IGNORED).sum())

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        return _summed(outputs.logits, batch["labels"], batch["there"])

    def score(self, outputs: Any, batch: Batch) -> list[Record]:
        rows = zip(outputs.logits.detach(), batch["labels"], batch["there"], strict=True)
        return [_record(*row) for row in rows]

    def pieces(self, features: Features, processor: Any) -> list[tuple[str, bool]]:
        found, start = [], 0
        for number, length in enumerate(features["choice_lengths"]):
            text = processor.decode(features["input_ids"][start : start + length])
            found.append((f"{number}: {text}\n", number == features["labels"]))
            start += length
        return found


def choices_of(row: Row) -> tuple[list[str], list[str]]:
    """The choices' names, if they have some, and their texts."""
    given = row.get("choices")
    names: Any = []
    if isinstance(given, dict):  # {"label": ["A", ..], "text": [..]}
        names, given = given.get("label") or [], given.get("text")
    if given is None:
        given = [row[name] for name in NUMBERED if row.get(name) not in (None, "")]
    if not isinstance(given, (list, tuple)) or not all(isinstance(text, str) and text for text in given):
        raise RowError("'choices' is no list of texts")
    if len(given) < 2:
        raise RowError(f"{len(given)} choice; there is nothing to choose")
    return [str(name) for name in names], list(given)


def _lay_out(row: Features, tensors: dict[str, Tensor]) -> None:
    """Each choice's numbers into its own line of (choices, positions)."""
    import torch

    start = 0
    for line, length in enumerate(row["choice_lengths"]):
        for name, tensor in tensors.items():
            values = [1] * length if name == "attention_mask" else row[name][start : start + length]
            tensor[line, :length] = torch.tensor(values)
        start += length


def _summed(logits: Tensor, labels: Tensor, there: Tensor) -> Tensor:
    from torch.nn.functional import cross_entropy

    keep = labels != IGNORED
    return cross_entropy(logits[keep].float().masked_fill(~there[keep], float("-inf")), labels[keep], reduction="sum")


def _record(logits: Tensor, label: Tensor, there: Tensor) -> Record:
    known, own = int(label) != IGNORED, logits[there].float()
    return {
        "loss": float(_summed(logits[None], label[None], there[None])),
        "targets": int(known),
        "label": str(int(label)) if known else None,
        "prediction": str(int(own.argmax())),
        "probabilities": own.softmax(-1).tolist(),
    }
