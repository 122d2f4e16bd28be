"""Word and character error rates of what was heard or written, as jiwer counts errors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from peftkit.metrics.tally import share
from peftkit.metrics.texts import OfTexts

NO_LETTER = re.compile(r"[^\w\s']|_")


class WordErrorRate(OfTexts, name="wer"):
    """Words replaced, left out or put in, for each word of the references; may exceed 1.

    Of several references the nearest counts.
    """

    higher_is_better: ClassVar[bool] = False

    normalize: bool = False
    """Compare without case and punctuation."""

    def compare(self, text: str, references: list[str]) -> Mapping[Any, float]:
        found = [self.errors(self._plain(reference), self._plain(text)) for reference in references]
        wrong, length = min(found, key=lambda one: one[0] / max(one[1], 1))
        return {"wrong": wrong, "length": length}

    def of(self, sums: Mapping[Any, float]) -> dict[str, float]:
        """NaN if no reference has a word: what is put in has no rate then."""
        return {self.name: share(sums.get("wrong", 0), sums.get("length", 0))}

    def errors(self, reference: str, text: str) -> tuple[int, int]:
        """How many there are, and how long the reference is."""
        from jiwer import process_words

        return _errors(process_words(reference, text))

    def _plain(self, text: str) -> str:
        return " ".join(NO_LETTER.sub(" ", text.lower()).split()) if self.normalize else text


class CharacterErrorRate(WordErrorRate, name="cer"):
    """Characters replaced, left out or put in, for each character of the references."""

    def errors(self, reference: str, text: str) -> tuple[int, int]:
        from jiwer import process_characters

        return _errors(process_characters(reference, text))


def _errors(found: Any) -> tuple[int, int]:
    changed = found.substitutions + found.deletions
    return changed + found.insertions, changed + found.hits
