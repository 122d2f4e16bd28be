"""Any metric of the `evaluate` library: `--eval.metrics hub:squad` from the hub, `--eval.metrics ./my_metric.py` your own."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import PrivateAttr

from peftkit.errors import ConfigError
from peftkit.metrics.base import LabelsAre, Metric, Record

PAIRS = (("answer", "answers"), ("generated", "reference"), ("predicted_tags", "tags"), ("prediction", "label"))
"""The keys of a record that are given as predictions and references: the first pair that the task's own metrics read."""


class Evaluate(Metric, name="evaluate"):
    """Any metric of the `evaluate` library: `hub:NAME` or a path. Its Python code is run, so name only what you trust.

    It gets, by task: `answer` and `answers`, `generated` and `reference`, `predicted_tags` and `tags`, or `prediction` and
    `label` (as numbers, where it wants numbers). Its first number is called as the metric was written, without folder and .py.
    """

    path: str
    """`hub:NAME` or `hub:USER/NAME` on the Hugging Face hub, or a script (`./my_metric.py`, or the folder that holds it)."""
    config: str | None = None
    """The metric's configuration, where it has several: `mrpc` of `hub:glue`."""
    predictions: str | None = None
    """The key of the records that is given as predictions; left out: by the task."""
    references: str | None = None
    """The key of the records that is given as references; left out: by the task."""
    options: dict[str, Any] = {}
    """What its `compute` is called with besides: `{average: macro}`."""
    lower_is_better: bool = False
    """Whether a lower number is a better one, for `--eval.best`."""

    _pair: tuple[str, str] | None = PrivateAttr(default=None)
    _labels: tuple[str, ...] = PrivateAttr(default=())

    labels_are: ClassVar[tuple[LabelsAre, ...]] = ("a name", "names", "numbers")

    @property
    def called(self) -> str:
        return self.path if self.on_hub else Path(self.path).stem

    @property
    def on_hub(self) -> bool:
        return self.path.startswith("hub:")

    @property
    def higher_is_better(self) -> bool:  # type: ignore[override]
        return not self.lower_is_better

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        """Known once `fit` has told the task."""
        pair = self._pair or ("", "")
        return tuple(filter(None, (self.predictions or pair[0], self.references or pair[1])))

    def fit(self, task: Any) -> Self:
        read = {key for name in task.metrics for key in Metric.registry[name].needs}
        fitted = self.model_copy()
        fitted._pair = next((pair for pair in PAIRS if read & set(pair)), ("generated", "reference"))
        fitted._labels = tuple(getattr(task, "labels", None) or ())
        return fitted

    def conflicts(self, run: Any) -> Iterator[str]:
        """A script that is not there, or no name."""
        if self.on_hub and not self.path.removeprefix("hub:").strip("/ "):
            yield f"--eval.metrics {self.path} names no metric of the hub; write hub:NAME, as in hub:squad"
        if not self.on_hub and not Path(self.path).exists():
            yield f"--eval.metrics {self.path}: no such file; a metric of the hub is written hub:NAME"

    def ready(self) -> None:
        _ = self._module

    def compute(self, records: Sequence[Record]) -> dict[str, float]:
        predictions, references = self.keys(records)
        known = [record for record in records if record[references] is not None]
        if not known:
            return {self.called: math.nan}
        columns = self._columns(known, predictions, references)
        try:
            found = self._module.compute(**columns, **self.options)
        except (TypeError, ValueError) as problem:
            given = f"predictions={predictions}, references={references}"
            raise ConfigError(f"--eval.metrics {self.path} does not take {given}: {problem}") from problem
        return self._numbers(found or {})

    def keys(self, records: Sequence[Record]) -> tuple[str, str]:
        """Which keys are predictions and references; without a task, the first pair that the records have."""
        there = {key for record in records[:1] for key in record}
        pair = self._pair or next((pair for pair in PAIRS if there >= set(pair)), PAIRS[-1])
        return self.predictions or pair[0], self.references or pair[1]

    def _columns(self, records: Sequence[Record], predictions: str, references: str) -> dict[str, Any]:
        features = self._module.features
        features = features[0] if isinstance(features, list) else features
        wanted = features["predictions"]
        if isinstance(wanted, dict) and "prediction_text" in wanted:
            return _as_squad(records, predictions, references, "no_answer_probability" in wanted)
        keys = {"predictions": predictions, "references": references}
        return {to: [self._as(record[key], features[to]) for record in records] for to, key in keys.items()}

    def _as(self, value: Any, feature: Any) -> Any:
        """A record's value as the metric's feature has it: labels as numbers, one text of a list as a list."""
        inner = getattr(feature, "feature", None)
        dtype = getattr(inner or feature, "dtype", "")
        if isinstance(value, str) and inner is not None:
            value = [value]
        if not dtype.startswith("int"):
            return value
        if isinstance(value, list) and inner is not None and self._labels:
            return [int(name in value) for name in self._labels]
        return self._labels.index(value) if value in self._labels else value

    def _numbers(self, found: dict[str, Any]) -> dict[str, float]:
        """Its single numbers, the first by the metric's own name; lists (a number a label) have no name and are left out."""
        flat = {key: float(value) for key, value in found.items() if _is_number(value)}
        first, *rest = flat or {"": math.nan}
        return {self.called: flat.get(first, math.nan), **{f"{self.called}/{key}": flat[key] for key in rest}}

    @cached_property
    def _module(self) -> Any:
        import evaluate

        way = "give a path to its script instead" if self.on_hub else "give a script of the `evaluate` library"
        try:
            # In memory and under a name of its own: runs beside each other must not share a cache file.
            name = self.path.removeprefix("hub:") if self.on_hub else str(Path(self.path).resolve())
            options = {"keep_in_memory": True, "experiment_id": f"peftkit-{os.getpid()}"}
            return evaluate.load(name, self.config, **options)
        except (OSError, ImportError, TypeError, ValueError) as problem:
            why = (
                "not on the hub, or the hub cannot be reached"
                if isinstance(problem, OSError) and self.on_hub
                else problem
            )
            raise ConfigError(f"--eval.metrics {self.path} cannot be loaded ({why}); {way}") from problem


def _as_squad(records: Sequence[Record], prediction: str, reference: str, v2: bool) -> dict[str, Any]:
    said: list[dict[str, Any]] = [{"id": str(at), "prediction_text": r[prediction]} for at, r in enumerate(records)]
    if v2:
        said = [{**one, "no_answer_probability": float(not one["prediction_text"])} for one in said]
    true = [[one] if isinstance(one, str) else list(one) for one in (record[reference] for record in records)]
    # The metric reads the texts alone, but wants to see a place for each.
    answers = [{"text": texts, "answer_start": [0] * len(texts)} for texts in true]
    return {"predictions": said, "references": [{"id": str(at), "answers": one} for at, one in enumerate(answers)]}


def _is_number(value: Any) -> bool:
    return (
        not isinstance(value, (str, bytes, list, tuple, dict))
        and hasattr(value, "__float__")
        and not getattr(value, "shape", ())
    )
