"""What all tasks share that give a whole row its label, its labels or its numbers, whatever the row is made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator

from peftkit.tasks.base import Batch, LabelError, Record, Row, Task
from peftkit.tasks.labels import problem_of
from peftkit.tasks.problems import PROBLEMS, OneLabel, Problem, listed
from peftkit.tasks.thresholds import HALF

if TYPE_CHECKING:
    from torch import Tensor

UNKNOWN = ...
"""Stands for the label of a row that is to be predicted; a row where it is missing is one to be mended."""
Probability = Annotated[float, Field(ge=0, le=1)]


class Labelled(Task):
    """A task whose targets are labels: their names, and what each of them costs."""

    late: ClassVar[tuple[str, ...]] = ("label_smoothing", "focal")

    labels: list[str] | None = None
    """The labels, in the order of the model's outputs; left out: those of the training rows, sorted."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0
    """The share of a target that is spread over all labels (Szegedy et al., 2016)."""
    class_weights: Literal["balanced"] | dict[str, NonNegativeFloat] | None = None
    """What a target of each label counts in the loss: by name (1 where none is given), or `balanced`, so that rare labels count
    as much as frequent ones. The loss is still divided by the number of targets; balanced, their mean weight is 1."""
    focal: NonNegativeFloat = 0
    """Gamma of the focal loss (Lin et al., 2017), by which what is right already counts less; 2 is common."""

    @field_validator("labels", mode="before")
    @classmethod
    def _read_labels(cls, labels: Any) -> Any:
        if not isinstance(labels, (list, tuple)):
            return labels
        names = [str(label) if isinstance(label, int) else label for label in labels]
        if len(set(names)) < max(2, len(names)):
            raise ValueError("at least two labels, each named once")
        return names

    def check_weights(self) -> None:
        """LabelError if a weight is that of no label."""
        weights = self.class_weights if isinstance(self.class_weights, dict) else {}
        strange = [name for name in weights if self.labels is not None and name not in self.labels]
        if strange:
            raise LabelError(
                f"--task.class_weights names {strange[0]!r}, which is no label; the labels are {listed(self.labels or [])}"
            )


class Classification(Labelled):
    """One label a row, several, or numbers. A task of its own adds its model, `encode` and `collate`.

    features["labels"] = self.encoded_label(row)
    """

    metrics: ClassVar[tuple[str, ...]] = OneLabel.metrics
    given: ClassVar[tuple[str, ...]] = ("label",)
    late: ClassVar[tuple[str, ...]] = (*Labelled.late, "distance", "huber_delta")

    problem: Literal["auto", "single_label", "multi_label", "regression"] = "auto"
    """What is learnt of a row; auto: what the training rows have. Lists and names divided by `|` are several labels, numbers
    that are not whole are regression; whole numbers are labels."""
    separator: str | None = None
    """multi_label: what divides the labels of a text; left out: `|` where the training rows have one, else a comma."""
    multi_hot: bool | None = None
    """multi_label: lists say 0 or 1 of every label, and do not name some; left out: if the training rows look like it."""
    numbers: PositiveInt | None = None
    """regression: how many numbers a row has; left out: as many as the training rows."""
    distance: Literal["mse", "mae", "huber"] = "mse"
    """regression: what it costs to be off: the square, the difference, or up to `huber_delta` the square, then the difference."""
    huber_delta: PositiveFloat = 1.0
    """regression: where Huber's loss goes over from one to the other."""
    thresholds: Literal["tune"] | Probability | dict[str, Probability] | None = None
    """From which probability on a label is said: one for all, by name, or `tune`: those with the best F1 on the validation rows,
    set anew at each evaluation and carried into the export. multi_label has a half; of two labels it is that of `positive`,
    left out: the likelier one is said."""
    positive: str | None = None
    """single_label with two labels: the one that the threshold is for; left out: the second."""

    @property
    def keeps(self) -> tuple[str, ...]:
        return ("label", "prediction", *(() if self.problem == "regression" else ("probabilities",)))

    @property
    def labels_are(self) -> tuple[str, ...]:
        kinds = {"single_label": "a name", "multi_label": "names", "regression": "numbers"}
        return (kinds[self.problem],) if self.problem in kinds else tuple(kinds.values())

    @property
    def _problem(self) -> Problem:
        return PROBLEMS[self.problem](self)

    def default_metrics(self) -> tuple[str, ...]:
        return self._problem.metrics

    def model_options(self) -> dict[str, Any]:
        """Sizes and names the head, and says how it decides; nothing until that is known."""
        if self.problem == "regression":
            known = {} if self.numbers is None else named(numbered(self.numbers))
            return {**known, "problem_type": "regression", "thresholds": None} if known else {}
        if self.labels is None:
            return {}
        # None takes away those of a base that was trained before.
        return {**named(self.labels), "problem_type": self._problem.kind, "thresholds": self.decided or None}

    def fit(self, rows: Sequence[Row]) -> Self:
        labels = [row.get("label") for row in rows]
        problem = problem_of(labels) if self.problem == "auto" else self.problem
        fitted = self.model_copy(update={"problem": problem})
        if idle := list(fitted._idle_settings()):
            raise LabelError(idle[0])
        fitted = fitted.model_copy(update=fitted._problem.fit(labels))
        fitted.check_weights()
        fitted.check_thresholds()
        return self if fitted == self else fitted

    def encoded_label(self, row: Row) -> Any:
        """The row's label as its features have it; of a row that is to be predicted, what no loss counts."""
        label = row.get("label")
        return self._problem.unknown() if label is UNKNOWN else self._problem.encode(label)

    def unlabelled(self, row: Row) -> Row:
        return {**row, "label": UNKNOWN}

    def answer(self, record: Record) -> Row:
        """The prediction, and each label's probability by its name."""
        answer, names = super().answer(record), self.labels or []
        if "probabilities" in answer:
            answer["probabilities"] = dict(zip(names, answer["probabilities"], strict=True))
        return answer

    def blank(self, batch: Batch) -> Batch:
        return {**batch, "labels": self._problem.blank(batch["labels"])}

    def targets(self, batch: Batch) -> int:
        return self._problem.targets(batch["labels"])

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        return self._problem.loss(outputs.logits, batch["labels"])

    def score(self, outputs: Any, batch: Batch) -> list[Record]:
        rows = zip(outputs.logits.detach(), batch["labels"], strict=True)
        return [self._problem.record(logits, labels) for logits, labels in rows]

    def judge(self, row: Row, records: Sequence[Record], processor: Any) -> Record:
        return self._problem.decide(records[0])

    def tune(self, records: Sequence[Record]) -> Self:
        if self.thresholds != "tune":
            return self
        found = self._problem.tune(records)
        return self.model_copy(update={"thresholds": found}) if found else self

    def threshold(self, label: str) -> float:
        """From which probability on it is said; a half where nothing else is set (and before anything is tuned)."""
        if isinstance(self.thresholds, dict):
            return self.thresholds.get(label, HALF)
        return self.thresholds if isinstance(self.thresholds, float) else HALF

    @property
    def decided(self) -> dict[str, float]:
        """The thresholds by label, if there are any."""
        if not isinstance(self.thresholds, (dict, float)) or self.labels is None:
            return {}
        names = self.labels if self.problem == "multi_label" else [self.positive_label]
        return {name: self.threshold(name) for name in names}

    @property
    def positive_label(self) -> str:
        names = self.labels or []
        return self.positive if self.positive is not None else names[1]

    def check_thresholds(self) -> None:
        """LabelError if they are not of this problem or not of these labels."""
        names = self.labels or []
        if self.positive is not None and self.positive not in names:
            raise LabelError(f"--task.positive {self.positive} is no label; the labels are {listed(names)}")
        if self.thresholds is None:
            return
        if self.problem == "single_label" and len(names) != 2:
            raise LabelError(
                f"--task.thresholds decides between two labels, or on each of several, and these are {len(names)} that"
                " exclude each other; leave it out"
            )
        own = names if self.problem == "multi_label" else [self.positive_label]
        strange = [name for name in self.thresholds if name not in own] if isinstance(self.thresholds, dict) else []
        if strange:
            raise LabelError(f"--task.thresholds names {strange[0]!r}; there are thresholds for {listed(own)}")

    def label_words(self, labels: Any) -> str:
        """Encoded labels, to be read."""
        return self._problem.words(labels)

    def conflicts(self, run: Any) -> Iterator[str]:
        yield from super().conflicts(run)
        yield from self._idle_settings()
        if self.thresholds == "tune":
            yield from tuned_by("thresholds", run)

    def _idle_settings(self) -> Iterator[str]:
        """Settings that do nothing in this problem."""
        if self.problem == "auto":
            return
        for field, kinds in SPOKEN.items():
            if self.problem not in kinds and getattr(self, field) != type(self).model_fields[field].default:
                yield f"--task.{field} says nothing where --task.problem is {self.problem}, but for {' and '.join(kinds)}"


def tuned_by(field: str, run: Any) -> Iterator[str]:
    """What is missing where thresholds are tuned: rows to tune them by, and weights that those are scored with."""
    if not run.data.validates:
        yield f"--task.{field} tune sets them by validation rows; give --data.validation or --data.holdout"
    if run.checkpoint.final == "average":
        yield (
            f"--task.{field} tune sets them by what a validation scores, and with --checkpoint.final average the mean of the"
            " checkpoints is exported, which none has scored; take best or last"
        )


def named(labels: Sequence[str]) -> dict[str, Any]:
    """What a model's configuration knows of its outputs."""
    names = dict(enumerate(labels))
    return {"num_labels": len(names), "id2label": names, "label2id": {name: number for number, name in names.items()}}


def numbered(size: int) -> list[str]:
    return ["value"] if size == 1 else [f"value_{number}" for number in range(size)]


CLASSES = ("single_label", "multi_label")
SPOKEN = {
    "labels": CLASSES,
    "label_smoothing": CLASSES,
    "class_weights": CLASSES,
    "focal": CLASSES,
    "thresholds": CLASSES,
    "positive": ("single_label",),
    "separator": ("multi_label",),
    "multi_hot": ("multi_label",),
    "numbers": ("regression",),
    "distance": ("regression",),
    "huber_delta": ("regression",),
}
