"""What every metric answers: one or more numbers from all the records of a split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

from peftkit.config.section import Choice

LabelsAre = Literal["a name", "names", "numbers"]
Record = dict[str, Any]
"""What a task kept of a scored row."""


class Metric(Choice, kind="metric", default="loss"):
    """How a split is scored. It sees every record of the split exactly once, in the split's order, in any world."""

    needs: ClassVar[tuple[str, ...]] = ()
    """The keys that it reads of each record. A row whose true answer is None is left out; with none left a number is NaN."""
    labels_are: ClassVar[tuple[LabelsAre, ...]] = ("a name", "names")
    """What a `label` may be, if it reads one."""
    higher_is_better: ClassVar[bool] = True
    estimates: ClassVar[bool] = True
    """Whether its numbers estimate something, so that an interval around them has a meaning."""

    @classmethod
    def from_word(cls, word: str) -> dict[str, Any]:
        """`hub:NAME` and a path are metrics of the `evaluate` library; any other word is a name."""
        outside = word.startswith("hub:") or word.endswith(".py") or "/" in word
        return {"name": "evaluate", "path": word} if outside else {"name": word}

    @property
    def called(self) -> str:
        """The name of its first number, by which `--eval.best` knows it."""
        return self.name

    def fit(self, task: Any) -> Self:
        """This metric with what it needs to know of the task (the order of its labels); the same object if nothing."""
        return self

    def ready(self) -> None:
        """Fetch what it needs, before anything is trained that it is to score. ConfigError if that cannot be had."""

    def compute(self, records: Sequence[Record]) -> dict[str, float]:
        """Its numbers by name. The first is called as `called` says, others `NAME/WHAT`: `f1`, `f1/macro`."""
        raise NotImplementedError
