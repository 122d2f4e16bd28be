"""F1 of whole entities in tagged words, as seqeval counts them (conlleval's way, or strictly by a scheme)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

from peftkit.errors import ConfigError
from peftkit.metrics.base import Record
from peftkit.metrics.f1 import Average, average, compared, hits
from peftkit.metrics.tally import Tally

Scheme = Literal["IOB1", "IOB2", "IOBES"]


class EntityF1(Tally, name="entity_f1"):
    """F1 over entities: one is right if its first word, its last word and its type are; with precision and recall."""

    needs: ClassVar[tuple[str, ...]] = ("tags", "predicted_tags")

    strict: bool = False
    """Count only entities that are written as the scheme says; otherwise any row of tags of one type is one."""
    scheme: Scheme | None = None
    """How tags are written, for `strict`; left out: as the task says, else IOB2."""
    detail: bool = False
    """Also the means over the types and each type by itself: `entity_f1/macro`, `entity_f1/weighted`, `entity_f1/TYPE`."""

    def fit(self, task: Any) -> Self:
        scheme = getattr(task, "scheme", None)
        return self.model_copy(update={"scheme": scheme}) if scheme and not self.scheme else self

    def count(self, record: Record) -> Mapping[Any, float]:
        if record["tags"] is None:
            return {}
        true, said = (self.entities(record[name]) for name in self.needs)
        sums: dict[Any, float] = {}
        for (kind, (name, *_)), value in compared(true, said).items():
            sums[kind, name] = sums.get((kind, name), 0) + value
        return sums

    def of(self, sums: Mapping[Any, float]) -> dict[str, float]:
        by_type = hits(sums)
        numbers = {self.name: average("f1", by_type, "micro")}
        numbers |= {f"{self.name}/{what}": average(what, by_type, "micro") for what in ("precision", "recall")}
        if self.detail:
            ways: tuple[Average, ...] = ("macro", "weighted")
            numbers |= {f"{self.name}/{how}": average("f1", by_type, how) for how in ways}
            numbers |= {f"{self.name}/{name}": one.f1 for name, one in by_type.items()}
        return numbers

    def entities(self, tags: Sequence[str]) -> set[tuple[str, int, int]]:
        """Type, first and last word of each."""
        from seqeval.metrics.sequence_labeling import get_entities

        if self.strict:
            return self._strict_entities(tags)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a tag without a type is an entity of its own kind, and no news
            return set(get_entities(list(tags)))

    def _strict_entities(self, tags: Sequence[str]) -> set[tuple[str, int, int]]:
        from seqeval import scheme

        name = self.scheme or "IOB2"
        try:
            found = scheme.Entities([list(tags)], getattr(scheme, name)).entities
        except ValueError as problem:
            raise ConfigError(f"--eval.metrics entity_f1: the tags are not written in {name}: {problem}") from problem
        return {(one.tag, one.start, one.end - 1) for one in found[0]}
