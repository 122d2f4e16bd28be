"""Intervals are the percentiles of a plain loop over samples, and as wide as theory has them."""

from __future__ import annotations

import math
import random
import time
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from peftkit.evaluation.bootstrap import intervals
from peftkit.metrics import F1, Accuracy, Bleu, Confusion, Loss, RocAuc, Spearman

CHANCE = random.Random(0)
ROWS = [
    {
        "label": (label := CHANCE.choice("aab")),
        "prediction": label if CHANCE.random() < 0.8 else "b",
        "probabilities": [CHANCE.random(), CHANCE.random()],
        "loss": CHANCE.random(),
        "targets": CHANCE.randint(0, 3),
        "reference": "a b c d e",
        "generated": " ".join(CHANCE.choices("abcde", k=6)),
    }
    for _ in range(60)
]


def plain_loop(metric, records, samples, seed):
    generator = np.random.default_rng(seed)
    drawn = [generator.integers(len(records), size=len(records)) for _ in range(samples)]
    found = [metric.compute([records[row] for row in rows]) for rows in drawn]
    return {
        name: tuple(np.nanpercentile([one.get(name, math.nan) for one in found], (2.5, 97.5), method="nearest"))
        for name in metric.compute(records)
    }


@pytest.mark.parametrize(
    "metric", [Accuracy(), F1(detail=True), Loss(), Bleu(), RocAuc().fit(SimpleNamespace(labels=["a", "b"]))]
)
def test_as_a_plain_loop(metric):
    found = intervals(ROWS, [metric], samples=50, seed=3)
    expected = plain_loop(metric, ROWS, 50, 3)
    assert list(found) == list(expected)
    for name, limits in expected.items():
        assert found[name] == pytest.approx(limits), name


def test_all_metrics_see_the_same_samples():
    both = intervals(ROWS, [Accuracy(), Loss()], samples=50, seed=3)
    assert both == {**intervals(ROWS, [Accuracy()], 50, 3), **intervals(ROWS, [Loss()], 50, 3)}
    assert both != intervals(ROWS, [Accuracy(), Loss()], samples=50, seed=4)


def test_accuracy_has_the_binomial_s_interval():
    rows = [{"label": "a", "prediction": "a" if number % 10 < 8 else "b"} for number in range(2000)]
    begun = time.process_time()
    low, high = intervals(rows, [Accuracy()], samples=1000, seed=0)["accuracy"]
    assert time.process_time() - begun < 5
    expected = stats.binom.interval(0.95, 2000, 0.8)
    assert (low, high) == pytest.approx((expected[0] / 2000, expected[1] / 2000), abs=0.003)


def test_a_diverged_row_spoils_only_the_samples_that_drew_it():
    rows = [{"loss": math.nan if number == 0 else 1.0, "targets": 1} for number in range(30)]
    assert intervals(rows, [Loss()], samples=50) == {"loss": (1, 1)}


def test_what_is_not_known_has_no_interval():
    unknown = [{"label": None, "prediction": "a"}] * 3
    for rows in (unknown, []):
        assert [math.isnan(limit) for limit in intervals(rows, [Accuracy()], 5)["accuracy"]] == [True, True]


def test_counts_have_no_interval():
    assert intervals(ROWS, [Confusion()], 5) == {}


def test_a_metric_that_is_no_sum_is_sampled_too():
    rows = [{"label": float(n), "prediction": float(n % 7)} for n in range(20)]
    found = intervals(rows, [Spearman()], samples=20, seed=1)
    assert found["spearman"] == pytest.approx(plain_loop(Spearman(), rows, 20, 1)["spearman"])
