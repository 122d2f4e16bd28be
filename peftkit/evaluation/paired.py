"""Whether two models differ on the same rows: tests of paired rows, and how large the difference is.

A row is hard or easy for both models, so what each row's two answers say of each other is worth far more than two numbers:
every test here exchanges or draws rows as pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy.stats import binomtest, permutation_test

from peftkit.evaluation.bootstrap import Interval, drawn, percentiles, scorer
from peftkit.metrics import Metric, Tally
from peftkit.tasks.base import Record

LEVEL = 0.05
"""A difference is called one if chance alone would show one as large less often."""
AT_ONCE = 64
"""Exchanges that are laid out in memory together."""

Verdict = Literal["better", "worse", "even", "unknown"]


@dataclass(frozen=True)
class Difference:
    """One number of both models, on the same rows."""

    name: str
    before: float
    after: float
    higher_is_better: bool
    intervals: tuple[Interval, Interval, Interval] | None = None
    """95 %: of the one, of the other, of the difference; None where the number estimates nothing."""
    test: str = ""
    """`McNemar`, `permutation`; empty where none was made (a metric's further numbers)."""
    p: float = math.nan
    """How often chance alone would show a difference as large."""
    adjusted: float = math.nan
    """The same, corrected for the other numbers that were tested beside it."""
    rows: tuple[int, int] | None = None
    """On how many rows the second is better, and worse; None where a row by itself has no such number."""

    @property
    def difference(self) -> float:
        return self.after - self.before if self.after != self.before else 0.0

    @property
    def verdict(self) -> Verdict:
        """Of the second model, by the corrected p."""
        if math.isnan(self.adjusted):
            return "unknown"
        if self.adjusted >= LEVEL or not self.difference:
            return "even"
        return "better" if (self.difference > 0) == self.higher_is_better else "worse"


def differences(
    before: Sequence[Record], after: Sequence[Record], metrics: Sequence[Metric], samples: int = 2000, seed: int = 0
) -> list[Difference]:
    """Every number of the metrics, of both models' records of the same rows in the same order.

    Each metric's first number is tested, and the p-values are corrected by Holm's method; `samples` are drawn for the
    intervals, and as many exchanges made for a test by permutation.
    """
    made = [one for metric in metrics for one in of_metric(before, after, metric, samples, seed)]
    tested = [at for at, one in enumerate(made) if not math.isnan(one.p)]
    for at, adjusted in zip(tested, holm([made[at].p for at in tested]), strict=True):
        made[at] = replace(made[at], adjusted=adjusted)
    return made


def of_metric(
    before: Sequence[Record], after: Sequence[Record], metric: Metric, samples: int, seed: int
) -> list[Difference]:
    """The metric's numbers, the first of them tested."""
    one, other = metric.compute(before), metric.compute(after)
    made = [
        Difference(name, one[name], other[name], metric.higher_is_better)
        for name in one
        if name in other and isinstance(one[name], (int, float))
    ]
    if not metric.estimates or not before:
        return made
    found = intervals_of_both(before, after, metric, [each.name for each in made], samples, seed)
    made = [replace(each, intervals=found[each.name]) for each in made]
    return [
        replace(each, **tested(before, after, metric, samples, seed)) if each.name == metric.called else each
        for each in made
    ]


def tested(
    before: Sequence[Record], after: Sequence[Record], metric: Metric, samples: int, seed: int
) -> dict[str, Any]:
    """The test that fits: McNemar's where a row is right or wrong, else by exchanging the models' answers."""
    pairs = row_values(before, after, metric)
    if pairs is None:
        return {"test": "permutation", "p": permutation(before, after, metric, samples, seed)}
    sign = 1 if metric.higher_is_better else -1
    gains = sign * (pairs[1] - pairs[0])
    rows = int((gains > 0).sum()), int((gains < 0).sum())
    if is_right_or_wrong(pairs, metric, before, after):
        return {"test": "McNemar", "p": mcnemar(*rows), "rows": rows}
    return {"test": "permutation", "p": permutation(before, after, metric, samples, seed), "rows": rows}


def mcnemar(fixed: int, broken: int) -> float:
    """The exact test (McNemar, 1947) of rows that one model has right and the other wrong: are both kinds as frequent?

    Rows that both have right, or wrong, say nothing of which is better.
    """
    return float(binomtest(fixed, fixed + broken, 0.5).pvalue) if fixed + broken else 1.0


def permutation(
    before: Sequence[Record], after: Sequence[Record], metric: Metric, samples: int = 2000, seed: int = 0
) -> float:
    """Two-sided, by exchanging the models' answers row by row (approximate randomisation: Noreen, 1989; Yeh, 2000).

    If neither model were better, any exchange would be as likely as what was seen. That holds for any number of a whole
    split (F1, BLEU, perplexity) as for a mean, where a bootstrap's p-value is too small for corpus metrics (Riezler and
    Maxwell, 2005). All exchanges are made where there are no more than `samples`. NaN where a number is not known.
    """
    score, rows, name = scorer(metric, [*before, *after]), len(before), metric.called

    def difference(one: Any, other: Any) -> float:
        return score(other).get(name, math.nan) - score(one).get(name, math.nan)

    numbers = np.arange(rows)
    if not math.isfinite(difference(numbers, numbers + rows)):
        return math.nan
    if rows < 2:
        return 1.0  # of one pair any difference is as likely as its opposite
    with np.errstate(invalid="ignore"):
        found = permutation_test(
            (numbers, numbers + rows),
            difference,
            permutation_type="samples",
            vectorized=False,
            n_resamples=samples,
            batch=AT_ONCE,
            rng=np.random.default_rng(seed),
        )
    return float(found.pvalue)


def intervals_of_both(
    before: Sequence[Record], after: Sequence[Record], metric: Metric, names: Sequence[str], samples: int, seed: int
) -> dict[str, tuple[Interval, Interval, Interval]]:
    """For each number the 95 % intervals of both and of their difference: the same rows are drawn for both (Koehn, 2004)."""
    score, rows = scorer(metric, [*before, *after]), len(before)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for numbers in drawn(rows, samples, seed):
        one, other = score(numbers), score(numbers + rows)
        for name in names:
            found[name].append((one.get(name, math.nan), other.get(name, math.nan)))
    return {
        name: (
            percentiles([one for one, _ in pairs]),
            percentiles([other for _, other in pairs]),
            percentiles([other - one for one, other in pairs]),
        )
        for name, pairs in found.items()
    }


def row_values(before: Sequence[Record], after: Sequence[Record], metric: Metric) -> Any | None:
    """(2, rows): what each row by itself scores with both models; rows without a number are left out.

    None for a metric that is not made of its rows' counts.
    """
    if not isinstance(metric, Tally):
        return None
    values = np.array(
        [
            [metric.of({key: value for key, value in metric.count(one).items() if value}).get(metric.called, math.nan)
             for one in side]
            for side in (before, after)
        ]
    )  # fmt: skip
    return values[:, ~np.isnan(values).any(0)]


def is_right_or_wrong(pairs: Any, metric: Metric, before: Sequence[Record], after: Sequence[Record]) -> bool:
    """Whether each row is simply right or wrong, and the number is the share of those that are right."""
    if not pairs.size or not np.isin(pairs, (0, 1)).all():
        return False
    numbers = [metric.compute(side)[metric.called] for side in (before, after)]
    return bool(np.allclose(pairs.mean(1), numbers, rtol=0, atol=1e-9))


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected so that of all together one in twenty is too small by chance, not of each (Holm, 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, highest = [1.0] * len(values), 0.0
    for rank, at in enumerate(sorted(range(len(values)), key=lambda at: values[at])):
        highest = max(highest, min(1.0, (len(values) - rank) * values[at]))
        adjusted[at] = highest
    return adjusted
