"""Exact match and F1 of answers to questions, by SQuAD's definition (Rajpurkar et al., 2016 and 2018).

Answers are compared without case, punctuation and the articles a, an, the; the best of several true answers counts.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from peftkit.metrics.base import Record
from peftkit.metrics.tally import Tally, share

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


class ExactMatch(Tally, name="exact_match"):
    """Share of the questions that were answered with a true answer, word for word.

    Where some questions have no answer, `NAME/has_answer` and `NAME/no_answer` are the shares of each kind.
    """

    needs: ClassVar[tuple[str, ...]] = ("answers", "answer")

    def count(self, record: Record) -> Mapping[Any, float]:
        truth, said = (record[name] for name in self.needs)
        if truth is None:
            return {}
        answers = [truth] if isinstance(truth, str) else truth
        answers = [answer for answer in answers if normal(answer)]
        kind = "has_answer" if answers else "no_answer"
        return {kind: 1, ("score", kind): max(self.of_pair(answer, said) for answer in answers or [""])}

    def of(self, sums: Mapping[Any, float]) -> dict[str, float]:
        kinds = ("has_answer", "no_answer")
        rows, scores = [sums.get(kind, 0) for kind in kinds], [sums.get(("score", kind), 0) for kind in kinds]
        numbers = {self.name: share(sum(scores), sum(rows))}
        if not rows[1]:
            return numbers
        return numbers | {f"{self.name}/{kind}": share(scores[at], rows[at]) for at, kind in enumerate(kinds)}

    def of_pair(self, answer: str, said: str) -> float:
        """How well what was said fits one true answer."""
        return float(normal(answer) == normal(said))


class AnswerF1(ExactMatch, name="qa_f1"):
    """Mean F1 of the words in the answer given and in the true one; where there is none, only silence is right."""

    def of_pair(self, answer: str, said: str) -> float:
        return word_f1(normal(answer).split(), normal(said).split())


class TextExactMatch(ExactMatch, name="text_exact_match"):
    """As exact_match, of texts that the model wrote."""

    needs: ClassVar[tuple[str, ...]] = ("reference", "generated")


class TextF1(AnswerF1, name="text_f1"):
    """As qa_f1, of texts that the model wrote."""

    needs: ClassVar[tuple[str, ...]] = ("reference", "generated")


def normal(text: str) -> str:
    """Without case, punctuation, articles and extra space."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def word_f1(true: Sequence[str], said: Sequence[str]) -> float:
    """2 x common words / all words; 1 if both have none."""
    if not true or not said:
        return float(not true and not said)
    common = (Counter(true) & Counter(said)).total()
    return 2 * common / (len(true) + len(said))
