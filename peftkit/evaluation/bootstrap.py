"""How sure a number is: its 95 % interval, from samples of the rows drawn with replacement (Efron, 1979)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from peftkit.metrics import Metric, Tally

Scorer = Callable[[Any], dict[str, float]]
"""The numbers of the rows that a sample drew."""
Interval = tuple[float, float]


def intervals(
    records: Sequence[dict[str, Any]], metrics: Sequence[Metric], samples: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """For each number of the metrics its 2.5th and 97.5th percentile over `samples` samples of as many rows as there are.

    All metrics see the same samples. A sample in which a number is not known (a label that it holds no row of) does not
    count for that number; NaN where none does.

    >>> intervals([{"label": "a", "prediction": "a"}] * 9, [Metric.model_validate("accuracy")])
    {'accuracy': (1.0, 1.0)}
    """
    estimates = [metric for metric in metrics if metric.estimates]
    names = [list(metric.compute(records)) for metric in estimates]
    scorers = [scorer(metric, records) for metric in estimates]
    found: dict[str, list[float]] = {name: [] for own in names for name in own}
    for rows in drawn(len(records), samples, seed):
        for own, score in zip(names, scorers, strict=True):
            numbers = score(rows)
            for name in own:
                found[name].append(numbers.get(name, math.nan))
    return {name: percentiles(values) for name, values in found.items()}


def ends_of_intervals(
    records: Sequence[dict[str, Any]], metrics: Sequence[Metric], task: Any, samples: int
) -> dict[str, float]:
    """The intervals as numbers beside the others, `accuracy/low` and `accuracy/high`; none without samples or records."""
    if not samples or not records:
        return {}
    found = intervals(records, [metric.fit(task) for metric in metrics], samples)
    return {f"{name}/{end}": pair[at] for name, pair in found.items() for at, end in enumerate(("low", "high"))}


def drawn(rows: int, samples: int, seed: int) -> Iterator[Any]:
    """The rows of each sample."""
    generator = np.random.default_rng(seed)
    for _ in range(samples if rows else 0):
        yield generator.integers(rows, size=rows)


def percentiles(values: Sequence[float]) -> Interval:
    """The middle 95 % of the values that are known."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return math.nan, math.nan
    # Not interpolated: between an infinite perplexity and another there is nothing.
    low, high = np.percentile(known, (2.5, 97.5), method="nearest")
    return float(low), float(high)


def scorer(metric: Metric, records: Sequence[dict[str, Any]]) -> Scorer:
    """How the metric scores a sample: by sums where its rows can be counted once for all samples."""
    if isinstance(metric, Tally):
        return by_sums(metric, records)
    return lambda rows: metric.compute([records[row] for row in rows])


def by_sums(metric: Tally, records: Sequence[dict[str, Any]]) -> Scorer:
    """Every row is counted once; a sample's sums are these counts times how often it drew the row."""
    counts = [(row, key, value) for row, one in enumerate(records) for key, value in metric.count(one).items()]
    keys = list(dict.fromkeys(key for _, key, _ in counts))
    number = {key: at for at, key in enumerate(keys)}
    row_of = np.array([row for row, _, _ in counts], dtype=np.int64)
    key_of = np.array([number[key] for _, key, _ in counts], dtype=np.int64)
    value_of = np.array([value for _, _, value in counts], dtype=np.float64)

    def score(rows: Any) -> dict[str, float]:
        times = np.bincount(rows, minlength=len(records))[row_of]
        # Rows that were not drawn add nothing, even if their loss is infinite or NaN.
        weighed = np.where(times > 0, value_of, 0) * times
        sums = np.bincount(key_of, weights=weighed, minlength=len(keys)).tolist()
        return metric.of({key: total for key, total in zip(keys, sums, strict=True) if total})

    return score
