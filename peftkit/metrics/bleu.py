"""BLEU (Papineni et al., 2002) and chrF (Popovic, 2015) of whole texts, from 0 to 100, as sacrebleu computes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

from pydantic import NonNegativeInt

from peftkit.metrics.texts import OfTexts


class Bleu(OfTexts, name="bleu"):
    """Runs of one to four words that are shared with the references, over the whole split; 100 is best."""

    tokenize: Literal["13a", "intl", "char", "zh", "none"] = "13a"
    """What a word is: 13a as usual; intl splits at any punctuation; zh and char for text without spaces; none at spaces."""
    lowercase: bool = False
    """Compare without case."""

    def compare(self, text: str, references: list[str]) -> Mapping[Any, float]:
        found = self._bleu.corpus_score([text], [[reference] for reference in references])
        orders = {("right", at): right for at, right in enumerate(found.counts)}
        orders |= {("all", at): total for at, total in enumerate(found.totals)}
        return {"texts": 1, "length": found.sys_len, "reference": found.ref_len, **orders}

    def of(self, sums: Mapping[Any, float]) -> dict[str, float]:
        if not sums.get("texts"):
            return {self.name: math.nan}
        right, total = ([int(sums.get((kind, at), 0)) for at in range(4)] for kind in ("right", "all"))
        lengths = int(sums.get("length", 0)), int(sums.get("reference", 0))
        # Its defaults are not those of a BLEU object: without smoothing a short split that shares no four words has 0.
        smooth = self._bleu.smooth_method, self._bleu.smooth_value
        return {self.name: float(self._bleu.compute_bleu(right, total, *lengths, *smooth).score)}

    @cached_property
    def _bleu(self) -> Any:
        from sacrebleu.metrics.bleu import BLEU

        return BLEU(tokenize=self.tokenize, lowercase=self.lowercase)


class ChrF(OfTexts, name="chrf"):
    """Runs of one to six letters that are shared with the references; 100 is best. Needs no words, so for any language."""

    word_order: NonNegativeInt = 0
    """Runs of words that count as well; 2 is chrF++."""
    lowercase: bool = False
    """Compare without case."""

    def compare(self, text: str, references: list[str]) -> Mapping[Any, float]:
        # sacrebleu has no public name for a text's counts; the tests hold the whole against its corpus_score.
        counts = self._chrf._extract_corpus_statistics([text], [[reference] for reference in references])[0]
        return {"texts": 1, **dict(enumerate(counts))}

    def of(self, sums: Mapping[Any, float]) -> dict[str, float]:
        if not sums.get("texts"):
            return {self.name: math.nan}
        counts = [sums.get(at, 0) for at in range(3 * self._chrf.order)]
        return {self.name: float(self._chrf._compute_f_score(counts))}

    @cached_property
    def _chrf(self) -> Any:
        from sacrebleu.metrics.chrf import CHRF

        return CHRF(word_order=self.word_order, lowercase=self.lowercase)
