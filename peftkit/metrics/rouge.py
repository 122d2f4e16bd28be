"""ROUGE (Lin, 2004): what a summary shares with its reference, as rouge-score computes it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

from peftkit.metrics.tally import share
from peftkit.metrics.texts import OfTexts

KINDS = {"rougeL": "", "rouge1": "/1", "rouge2": "/2", "rougeLsum": "/Lsum"}
"""rouge-score's names, and what stands behind `rouge` in ours."""


class Rouge(OfTexts, name="rouge"):
    """Mean F1, from 0 to 1, of the longest common run of words (ROUGE-L).

    Also of single words (`rouge/1`), of pairs of words (`rouge/2`), and of the longest runs line by line (`rouge/Lsum`).
    """

    stemmer: bool = False
    """Compare English words without their endings."""
    tokenize: Literal["english", "words", "letters"] = "english"
    """What a word is: english (as published; knows only a-z and digits), words of any script, or single letters."""

    def compare(self, text: str, references: list[str]) -> Mapping[Any, float]:
        found = self._scorer.score_multi(references, text)
        return {"texts": 1, **{kind: found[kind].fmeasure for kind in KINDS}}

    def of(self, sums: Mapping[Any, float]) -> dict[str, float]:
        return {self.name + ending: share(sums.get(kind, 0), sums.get("texts", 0)) for kind, ending in KINDS.items()}

    @cached_property
    def _scorer(self) -> Any:
        from rouge_score.rouge_scorer import RougeScorer

        tokenizer = None if self.tokenize == "english" else Words(r"\w+" if self.tokenize == "words" else r"\w")
        return RougeScorer(list(KINDS), use_stemmer=self.stemmer, tokenizer=tokenizer)


class Words:
    """A tokenizer for rouge-score that knows all scripts."""

    def __init__(self, pattern: str) -> None:
        self._pattern = re.compile(pattern)

    def tokenize(self, text: str) -> list[str]:
        return self._pattern.findall(text.lower())
