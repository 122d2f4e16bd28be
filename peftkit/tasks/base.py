"""What every task answers: row -> features -> batch -> a summed loss and its count, and a record of every row scored.

A row may make several features (windows of a long text): a step learns windows, an evaluation scores rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from peftkit.config.section import Choice

if TYPE_CHECKING:
    from random import Random

    from torch import Tensor, nn

    from peftkit.tasks.positions import Wanted

Row = dict[str, Any]
"""A row as it was read: column -> value."""
Features = dict[str, Any]
"""A row as the model sees it: `input_ids`, `labels`, ... as lists of numbers (a label may be one number)."""
Batch = dict[str, "Tensor"]
"""Features stacked and padded: tensors whose first axis is the row."""
Record = dict[str, Any]
"""What is kept of a scored row: plain numbers, words and short lists; `loss` (summed over its targets) and `targets`."""

Known = tuple[Features, bool]
"""A row's one window, and whether the row had more to say."""

EMBEDDED = ("prompt", "response")
"""The columns of the rows that come with peftkit (`data.demo`)."""

IGNORED = -100
"""The label of a position that no loss counts (torch's and transformers' own)."""


WINDOWS = "windows"
"""The name under which a batch says which windows are in it, by numbers of all splits together, where a model keeps what it
makes of them. The model's forward gets it, and takes it out; a batch that only keeps the processes in step has none.
"""

ANSWERS = (
    *("prediction", "probabilities", "predicted_tags", "answer", "no_answer", "spans", "generated"),
    *("chosen_reward", "rejected_reward", "margin"),
)
"""Keys of a judged record that are the model's answer."""


class RowError(ValueError):
    """Why a row cannot be learnt from, in a sentence without the row's content; the reader adds file and row number."""


class LabelError(RowError):
    """A label that is not one of the task's: a row to be mended, never one to be left out."""


class Task(Choice, kind="task", default="chat"):
    """What is learnt. The loss is a sum and a count, never a mean: the loop divides by the count of the whole step."""

    metrics: ClassVar[tuple[str, ...]] = ("loss",)
    """The names of the metrics that score it by default."""
    columns: ClassVar[dict[str, tuple[str, ...]]] = {}
    """The columns that it reads -> the names they usually have. `--data.columns` names others."""
    needs: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """Sets of its columns, of which rows must have one: `(("messages",), ("prompt", "response"))`."""
    given: ClassVar[tuple[str, ...]] = ()
    """The columns among them that are learnt; rows without them can still be predicted."""
    texts: ClassVar[tuple[str, ...]] = ()
    """The columns whose words augmentation may change: those whose meaning does not hang on a position or a word."""
    anchors: ClassVar[tuple[str, ...]] = ()
    """The columns that count characters in them: a row that has one keeps its words."""
    late: ClassVar[tuple[str, ...]] = ()
    """Settings that no encoded row depends on: how what was encoded is learnt, changed on the way, scored."""
    predicts: ClassVar[bool] = True
    """Whether there is an answer to be had for a row, besides its scores."""
    reads: ClassVar[Literal["text", "image", "audio"]] = "text"
    """What the model takes: it says which of its processors is loaded."""
    lengths: ClassVar[tuple[str, ...]] = ("max_length", "truncate")
    """The settings of the rows' lengths that it goes by: `max_length`, `truncate`, and `stride` where it reads windows."""
    splits_rows: ClassVar[bool] = False
    """Whether a row's loss is a sum over its places, so that each may be learnt by another process."""
    generates: ClassVar[bool] = False
    """Whether the model can be asked to write for it (`prompts`)."""

    @property
    def varies(self) -> str:
        """What it does that a row is not, each time it is seen, the same one sequence to the model: `masks other tokens each
        time`. Empty where a row is that.
        """
        return "" if type(self).vary is Task.vary else "shows the model another one each time"

    @property
    def keeps(self) -> tuple[str, ...]:
        """Keys of its records that a metric may read, besides those that its default metrics do."""
        return ()

    @property
    def labels_are(self) -> tuple[str, ...]:
        """What a record's `label` is (`a name`, `names`, `numbers`), or may be until the rows have been seen."""
        return ("a name",)

    def model_class(self) -> Any:
        """The transformers class to load, `AutoModelForCausalLM` or a sibling."""
        raise NotImplementedError

    def model_options(self) -> dict[str, Any]:
        """What the task adds to the model's configuration (`num_labels`, `id2label`, ...)."""
        return {}

    def default_metrics(self) -> tuple[str, ...]:
        """The names of the metrics that score it by default, where they hang on its settings."""
        return self.metrics

    def fit(self, rows: Sequence[Row]) -> Self:
        """This task with what its settings leave open read from the training rows (a label set); the same object if nothing."""
        return self

    def bind(self, config: Any) -> Self:
        """This task with what it must know of the model's configuration (a decoder's first token); the same object if nothing."""
        return self

    def ready(self, model: nn.Module) -> None:
        """Set up a model that was just loaded for this task; most need nothing."""

    def encode(self, row: Row, processor: Any, max_length: int) -> Features:
        """A row, its columns under the task's own names, as features of at most `max_length` positions.

        `processor` is the tokenizer (for images and audio, the processor). Raises RowError if the row is unusable or
        keeps no target.
        """
        raise NotImplementedError

    def windows(self, row: Row, processor: Any, max_length: int, stride: int | None) -> list[Features]:
        """All features of a row, at least one: windows that share `stride` positions, where the task reads long rows so."""
        return [self.encode(row, processor, max_length)]

    def encode_many(self, rows: Sequence[Row], processor: Any, max_length: int) -> list[Known | RowError | None]:
        """For each row what `windows` makes of it, where that is one window and is had faster for many rows together.

        None for a row that is to be encoded by itself. What is found is the same to the bit; lists may be arrays of int32.
        """
        return [None] * len(rows)

    def loses(self, row: Row, features: Features, processor: Any, max_length: int) -> bool:
        """Whether the row had more to say though its features are shorter than `max_length`: turns, the end of a target."""
        return False

    def vary(self, features: Features, processor: Any, draw: Random) -> Features:
        """What is drawn anew each time that a row is seen: masks, flips. `draw` is seeded by the row and the step."""
        return features

    def learning(self) -> Self:
        """The task that makes the batches of a training, where `vary` does more there than in an evaluation (flips)."""
        return self

    def collate(self, features: Sequence[Features], processor: Any) -> Batch:
        """Stack and pad to the longest of `features`."""
        raise NotImplementedError

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """What the model's forward is called with: all of the batch but the labels, so that it computes no loss of its own."""
        return {name: value for name, value in batch.items() if name != "labels"}

    def blank(self, batch: Batch) -> Batch:
        """The same batch with no target in it: what a process runs when it has no rows left but the others have."""
        return {**batch, "labels": batch["labels"].new_full(batch["labels"].shape, IGNORED)}

    def targets(self, batch: Batch) -> int:
        """How many labels the loss of this batch counts."""
        raise NotImplementedError

    def wanted(self, batch: Batch) -> Wanted | None:
        """Which positions of the logits are read, where it is not all of them; None: all.

        The outputs that `loss`, `score`, `ahead` and `reference_values` are given may then be TokenLosses or TokenLogits.
        """
        return None

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """The loss summed over `targets(batch)`, an fp32 scalar with a graph (zero, still with a graph, if there are none)."""
        raise NotImplementedError

    def score(self, outputs: Any, batch: Batch) -> list[Record]:
        """One record a window, in order, each from this window alone: what the metrics need of it, and no logits."""
        raise NotImplementedError

    def judge(self, row: Row, records: Sequence[Record], processor: Any) -> Record:
        """The row's one record, from those of its windows and from the row as it was read: here predictions are decided."""
        return records[0]

    def unlabelled(self, row: Row) -> Row:
        """The row without what is learnt, or with anything in its place that `windows` takes: for a prediction."""
        return row

    def answer(self, record: Record) -> Row:
        """The columns of a prediction: what its judged record says of the answer."""
        return {name: record[name] for name in ANSWERS if record.get(name) is not None}

    def tune(self, records: Sequence[Record]) -> Self:
        """The task with its thresholds set by a validation's records; the same object where it has none to set."""
        return self

    def prompts(self, batch: Batch, processor: Any) -> dict[str, Any] | None:
        """What `model.generate` is called with for these rows, padded as it wants it; None: the task writes no text.

        The new tokens of a row stand in its record as `generated_ids` when `judge` is asked.
        """
        return None

    def expected(self, batch: Batch) -> list[list[int]] | None:
        """The tokens that should follow these prompts, where `judge` cannot know them from the row: its `reference_ids`."""
        return None

    @property
    def reference(self) -> tuple[str, ...]:
        """Names of the numbers that the loss needs of the model as it was before the first step."""
        return ()

    def reference_values(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Those numbers, one a row, fp32; they come back as features of these names."""
        raise NotImplementedError

    @property
    def looks_ahead(self) -> bool:
        """Whether the loss needs a mean over the whole step, which costs another forward pass."""
        return False

    def ahead(self, outputs: Any, batch: Batch) -> tuple[Tensor, int]:
        """A sum over this batch and the count it is divided by; the step's mean stands in every batch as `ahead`."""
        raise NotImplementedError

    def pieces(self, features: Features, processor: Any) -> list[tuple[str, bool]]:
        """The row in words, as the model sees it: each piece of text, and whether it is a target."""
        raise NotImplementedError

    def lacks_rows(self, train: str | None) -> Iterator[str]:
        """Without rows of one's own there are the embedded ones, which not every task can learn from."""
        if train is None and self.needs and not any(set(needed) <= set(EMBEDDED) for needed in self.needs):
            needed = " or ".join(" and ".join(f"`{name}`" for name in names) for names in self.needs)
            yield f"--task {self.name} needs --data.train, rows with {needed}"

    def conflicts(self, run: Any) -> Iterator[str]:
        """No rows, or a column that the task does not read."""
        yield from self.lacks_rows(run.data.first)
        for column in run.data.columns:
            if column not in self.columns:
                reads = ", ".join(self.columns)
                yield f"--data.columns names {column!r}, which --task {self.name} does not read; it reads: {reads}"
