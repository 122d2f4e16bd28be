"""What metrics of written texts have in common: a text and one or more references."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from peftkit.metrics.base import Record
from peftkit.metrics.tally import Tally


class OfTexts(Tally):
    """A metric of what the model wrote."""

    needs: ClassVar[tuple[str, ...]] = ("reference", "generated")

    def count(self, record: Record) -> Mapping[Any, float]:
        reference = record["reference"]
        references = [reference] if isinstance(reference, str) else list(reference or ())
        return self.compare(record["generated"], references) if references else {}

    def compare(self, text: str, references: list[str]) -> Mapping[Any, float]:
        """What this text adds."""
        raise NotImplementedError
