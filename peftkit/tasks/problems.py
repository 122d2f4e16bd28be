"""The three things a classification head can learn: one label of a row, several, or numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

from peftkit.tasks.base import IGNORED, LabelError, Record
from peftkit.tasks.labels import (
    by_number,
    is_missing,
    is_multi_hot,
    is_number,
    label_name,
    label_names,
    numbers_of,
    separator_of,
)
from peftkit.tasks.losses import balanced, balanced_several, summed, summed_distance, summed_several
from peftkit.tasks.thresholds import HALF, best_threshold

if TYPE_CHECKING:
    from torch import Tensor

    from peftkit.tasks.classification import Classification


OTHERS = "--task.labels names all labels"
"""Where labels outside the set may be right."""


@dataclass(frozen=True)
class Problem:
    """What a head learns, with the settings of its task."""

    task: Classification
    metrics: ClassVar[tuple[str, ...]] = ()
    kind: ClassVar[str]
    """What transformers calls it (`problem_type`)."""

    def fit(self, labels: Sequence[Any]) -> dict[str, Any]:
        """Settings that the training rows' labels decide."""
        raise NotImplementedError

    def encode(self, label: Any) -> Any:
        """A label as a number or a list of them. LabelError if it is none."""
        raise NotImplementedError

    def unknown(self) -> Any:
        """What stands for the label of a row that has none."""
        raise NotImplementedError

    def targets(self, labels: Tensor) -> int:
        return int((labels != IGNORED).sum())

    def blank(self, labels: Tensor) -> Tensor:
        return labels.new_full(labels.shape, IGNORED)

    def loss(self, logits: Tensor, labels: Tensor, plain: bool = False) -> Tensor:
        """The summed loss; a plain one knows no smoothing, weights or gamma."""
        raise NotImplementedError

    def record(self, logits: Tensor, labels: Tensor) -> Record:
        """Of one row: what the model gives, and what is true."""
        raise NotImplementedError

    def decide(self, record: Record) -> Record:
        """The record with its prediction as the thresholds have it."""
        return record

    def tune(self, records: Sequence[Record]) -> dict[str, float] | None:
        """The best threshold of each label that is decided by one."""
        return None

    def words(self, labels: Any) -> str:
        """Encoded labels, to be read."""
        raise NotImplementedError

    def _names(self, size: int) -> list[str]:
        return self.task.labels or [str(number) for number in range(size)]

    def _costs(self, plain: bool) -> dict[str, Any]:
        task = self.task
        given = task.class_weights if isinstance(task.class_weights, dict) else None
        weights = None if given is None else [given.get(name, 1.0) for name in task.labels or []]
        return {} if plain else {"smoothing": task.label_smoothing, "weights": weights, "focal": task.focal}


class OneLabel(Problem):
    """One label of several that exclude each other."""

    metrics = ("loss", "accuracy", "f1")
    kind = "single_label_classification"

    def fit(self, labels: Sequence[Any]) -> dict[str, Any]:
        counts = Counter(chain.from_iterable(known_names(label) for label in labels))
        names = self.task.labels or sorted(counts, key=by_number)
        if len(names) < 2:
            raise LabelError(f"the training rows have {len(names)} label; a classification needs two or more")
        fitted: dict[str, Any] = {"labels": names}
        if self.task.class_weights == "balanced":
            named = [label for label in labels if known_names(label)]
            known = Counter(names[self._number(label, names)] for label in named if self._is_known(label, names))
            fitted["class_weights"] = balanced({name: known[name] for name in names})
        return fitted

    def encode(self, label: Any) -> int:
        names = self.task.labels or []
        if label_name(label) is None:
            raise LabelError("no 'label'")
        if not self._is_known(label, names):
            raise LabelError(f"'label' is none of {listed(names)} ({OTHERS})")
        return self._number(label, names)

    def unknown(self) -> int:
        return IGNORED

    def loss(self, logits: Tensor, labels: Tensor, plain: bool = False) -> Tensor:
        return summed(logits, labels, **self._costs(plain))

    def record(self, logits: Tensor, labels: Tensor) -> Record:
        names, known = self._names(len(logits)), int(labels) != IGNORED
        return {
            "loss": float(self.loss(logits[None], labels[None], plain=True)),
            "targets": int(known),
            "label": names[int(labels)] if known else None,
            "prediction": names[int(logits.argmax())],
            "probabilities": logits.float().softmax(-1).tolist(),
        }

    def decide(self, record: Record) -> Record:
        if not isinstance(self.task.thresholds, (dict, float)) or not self.task.labels:
            return record
        positive = self.task.positive_label
        said = record["probabilities"][self.task.labels.index(positive)] >= self.task.threshold(positive)
        other = next(name for name in self.task.labels if name != positive)
        return {**record, "prediction": positive if said else other}

    def tune(self, records: Sequence[Record]) -> dict[str, float]:
        positive = self.task.positive_label
        at = (self.task.labels or []).index(positive)
        known = [record for record in records if record["label"] is not None]
        said = [record["probabilities"][at] for record in known]
        return {positive: best_threshold(said, [record["label"] == positive for record in known])}

    def words(self, labels: Any) -> str:
        return "?" if labels == IGNORED else self._names(labels + 1)[labels]

    def _is_known(self, label: Any, names: Sequence[str]) -> bool:
        return label_name(label) in names or self._is_index(label, names)

    def _number(self, label: Any, names: Sequence[str]) -> int:
        name = label_name(label)
        return names.index(name) if name in names else int(label)

    def _is_index(self, label: Any, names: Sequence[str]) -> bool:
        """Where the names are no numbers, a number names by place."""
        return isinstance(label, int) and 0 <= label < len(names) and not any(map(is_number, names))


class SeveralLabels(Problem):
    """Any number of labels, each of them a yes or no by itself."""

    metrics = ("loss", "f1", "accuracy", "hamming")
    kind = "multi_label_classification"

    def fit(self, labels: Sequence[Any]) -> dict[str, Any]:
        task = self.task
        hot = is_multi_hot(labels) if task.multi_hot is None else task.multi_hot
        fitted: dict[str, Any] = {"multi_hot": hot, "separator": task.separator or separator_of(labels)}
        width = max((len(label) for label in labels if isinstance(label, (list, tuple))), default=0)
        given = [] if hot else [known_names(label, fitted["separator"], several=True) for label in labels]
        found = map(str, range(width)) if hot else {name for names in given for name in names}
        fitted["labels"] = task.labels or sorted(found, key=by_number)
        if len(fitted["labels"]) < 2:
            raise LabelError(f"the training rows have {len(fitted['labels'])} label; several labels are two or more")
        if task.class_weights == "balanced":
            rows = SeveralLabels(task.model_copy(update={**fitted, "class_weights": None}))
            known = [rows.encode(label) for label in labels if not is_missing(label)]
            sums = {name: sum(row[at] for row in known) for at, name in enumerate(fitted["labels"])}
            fitted["class_weights"] = balanced_several(sums, len(known))
        return fitted

    def encode(self, label: Any) -> list[int]:
        names = self.task.labels or []
        if self.task.multi_hot and isinstance(label, (list, tuple)):
            return self._checked(label, names)
        one = OneLabel(self.task)
        given = label_names(label, self.task.separator or separator_of([label]))
        parts = label if isinstance(label, (list, tuple)) else given  # numbers stay numbers, and may name by place
        found = {one.encode(part) for part in parts if label_name(part) is not None}
        return [int(at in found) for at in range(len(names))]

    def unknown(self) -> list[int]:
        return [IGNORED] * len(self.task.labels or [])

    def loss(self, logits: Tensor, labels: Tensor, plain: bool = False) -> Tensor:
        return summed_several(logits, labels, **self._costs(plain))

    def record(self, logits: Tensor, labels: Tensor) -> Record:
        names, known = self._names(len(logits)), bool((labels != IGNORED).all())
        probabilities = logits.float().sigmoid().tolist()
        return {
            "loss": float(self.loss(logits[None], labels[None], plain=True)),
            "targets": self.targets(labels),
            "label": [name for name, has in zip(names, labels.tolist(), strict=True) if has] if known else None,
            "prediction": [name for name, p in zip(names, probabilities, strict=True) if p >= HALF],
            "probabilities": probabilities,
        }

    def decide(self, record: Record) -> Record:
        pairs = zip(self._names(len(record["probabilities"])), record["probabilities"], strict=True)
        return {**record, "prediction": [name for name, p in pairs if p >= self.task.threshold(name)]}

    def tune(self, records: Sequence[Record]) -> dict[str, float]:
        known = [record for record in records if record["label"] is not None]
        return {
            name: best_threshold(
                [record["probabilities"][at] for record in known], [name in record["label"] for record in known]
            )
            for at, name in enumerate(self.task.labels or [])
        }

    def words(self, labels: Any) -> str:
        names = self._names(len(labels))
        return "?" if IGNORED in labels else ", ".join(n for n, has in zip(names, labels, strict=True) if has) or "none"

    def _checked(self, label: Sequence[Any], names: Sequence[str]) -> list[int]:
        if len(label) != len(names) or any(value not in (0, 1) for value in label):
            raise LabelError(f"'label' is no list of {len(names)} zeros and ones, one for each label")
        return [int(value) for value in label]


class Numbers(Problem):
    """One number a row, or several."""

    metrics = ("loss", "mae", "pearson", "spearman")
    kind = "regression"

    def fit(self, labels: Sequence[Any]) -> dict[str, Any]:
        known = [label for label in labels if not is_missing(label)]
        widths = Counter(len(label) if isinstance(label, (list, tuple)) else 1 for label in known)
        if self.task.numbers is None and not widths:
            raise LabelError("the training rows have no label")
        return {"numbers": self.task.numbers or widths.most_common(1)[0][0]}

    def encode(self, label: Any) -> float | list[float]:
        values = numbers_of(label)
        if len(values) != self.size:
            raise LabelError(f"'label' is {len(values)} numbers where {self.size} are learnt (--task.numbers)")
        return values[0] if self.size == 1 else values

    @property
    def size(self) -> int:
        return self.task.numbers or 1

    def unknown(self) -> float | list[float]:
        return float("nan") if self.size == 1 else [float("nan")] * self.size

    def targets(self, labels: Tensor) -> int:
        return int((~labels.isnan()).sum())

    def blank(self, labels: Tensor) -> Tensor:
        return labels.new_full(labels.shape, float("nan"))  # IGNORED is a number, and may be a true one

    def loss(self, logits: Tensor, labels: Tensor, plain: bool = False) -> Tensor:
        return summed_distance(logits.reshape(labels.shape), labels, self.task.distance, self.task.huber_delta)

    def record(self, logits: Tensor, labels: Tensor) -> Record:
        known = not bool(labels.isnan().any())
        values, wanted = logits.float().flatten().tolist(), labels.flatten().tolist()
        return {
            "loss": float(self.loss(logits, labels)),
            "targets": self.targets(labels),
            "label": (wanted if self.size > 1 else wanted[0]) if known else None,
            "prediction": values if self.size > 1 else values[0],
        }

    def words(self, labels: Any) -> str:
        return ", ".join(f"{value:g}" for value in (labels if isinstance(labels, list) else [labels]))


def known_names(label: Any, separator: str | None = None, several: bool = False) -> list[str]:
    """The names of a training row's label; none if it is no such label, which is said where the row is encoded."""
    try:
        if several:
            return label_names(label, separator)
        name = label_name(label)
    except LabelError:
        return []
    return [] if name is None else [name]


def listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"


PROBLEMS: dict[str, type[Problem]] = {
    "auto": OneLabel,
    "single_label": OneLabel,
    "multi_label": SeveralLabels,
    "regression": Numbers,
}
