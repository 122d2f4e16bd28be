"""Whether probabilities mean what they say: log loss, Brier score and expected calibration error.

Where rows have several labels, each row and label is one yes-or-no question, and all of them count alike.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import PositiveInt

from peftkit.metrics.base import Record
from peftkit.metrics.labels import Ordered, is_several
from peftkit.metrics.tally import Tally, share

SMALLEST = 2.0**-52
"""A probability of 0 counts as this much, as in scikit-learn: one sure mistake must not make the whole number infinite."""


class OfProbabilities(Ordered, Tally):
    """A mean over the rows of something that their probabilities cost."""

    higher_is_better: ClassVar[bool] = False

    def count(self, record: Record) -> Mapping[Any, float]:
        if record["label"] is None:
            return {}
        costs = self.costs(record["probabilities"], self.hits(record), is_several(record["label"]))
        return {"cost": math.fsum(costs), "costs": len(costs)}

    def of(self, sums: Mapping[Any, float]) -> dict[str, float]:
        return {self.name: share(sums.get("cost", 0), sums.get("costs", 0))}

    def costs(self, probabilities: list[float], truth: list[bool], several: bool) -> list[float]:
        """What this row costs: one number, or one a label."""
        raise NotImplementedError


class LogLoss(OfProbabilities, name="log_loss"):
    """Mean of -log of the probability that the truth was given."""

    def costs(self, probabilities: list[float], truth: list[bool], several: bool) -> list[float]:
        pairs = list(zip(probabilities, truth, strict=True))
        given = [p if true else 1 - p for p, true in pairs] if several else [p for p, true in pairs if true]
        return [p if math.isnan(p) else -math.log(min(max(p, SMALLEST), 1 - SMALLEST)) for p in given]


class Brier(OfProbabilities, name="brier"):
    """Mean squared distance of the probabilities from the truth (Brier, 1950); 0 is best.

    Over all labels of a row; of two labels, which say the same twice, over one.
    """

    def costs(self, probabilities: list[float], truth: list[bool], several: bool) -> list[float]:
        squares = [(p - true) ** 2 for p, true in zip(probabilities, truth, strict=True)]
        return squares if several else [sum(squares) / (2 if len(squares) == 2 else 1)]


class CalibrationError(Ordered, Tally, name="ece"):
    """Expected calibration error (Naeini et al., 2015): how far the probability of the likeliest label is from the share right.

    Probabilities are sorted into `bins`; each bin's distance counts by its rows.
    """

    higher_is_better: ClassVar[bool] = False

    bins: PositiveInt = 15
    """Bins of equal width from 0 to 1."""

    def count(self, record: Record) -> Mapping[Any, float]:
        if record["label"] is None:
            return {}
        said, truth = record["probabilities"], self.hits(record)
        best = [max(range(len(said)), key=said.__getitem__)]
        sums: dict[Any, float] = {}
        for at in range(len(said)) if is_several(record["label"]) else best:
            place = bisect_left([edge / self.bins for edge in range(1, self.bins)], said[at])
            for key, value in (("questions", 1), (("gap", place), said[at] - truth[at])):
                sums[key] = sums.get(key, 0) + value
        return sums

    def of(self, sums: Mapping[Any, float]) -> dict[str, float]:
        gaps = [abs(value) for key, value in sums.items() if key != "questions"]
        return {self.name: share(math.fsum(gaps), sums.get("questions", 0))}
