"""Paired tests against scipy's own and written-out formulas, on data with a known effect and with none."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from peftkit.evaluation.paired import Difference, differences, holm, mcnemar, permutation
from peftkit.metrics import F1, Accuracy, Bleu, Loss, MeanAbsoluteError, Metric, Pearson, Perplexity

Rows = list[dict[str, Any]]


def labelled(right: Any) -> Rows:
    """Rows of two labels in turns, answered right where it says so."""
    return [
        {"label": "ab"[at % 2], "prediction": "ab"[(at + (not hit)) % 2]} for at, hit in enumerate(np.asarray(right))
    ]


def lossy(losses: Any, targets: Any) -> Rows:
    return [{"loss": float(loss), "targets": int(n)} for loss, n in zip(losses, targets, strict=True)]


def only(found: list[Difference]) -> Difference:
    (one,) = found
    return one


@pytest.mark.parametrize(("fixed", "broken"), [(0, 0), (1, 0), (9, 2), (3, 3), (0, 8), (40, 21)])
def test_mcnemar_is_the_binomial_formula(fixed: int, broken: int) -> None:
    count, few = fixed + broken, min(fixed, broken)
    tail = sum(math.comb(count, hits) for hits in range(few + 1)) / 2**count
    assert mcnemar(fixed, broken) == pytest.approx(min(1.0, 2 * tail))


def test_holm_is_the_written_out_correction() -> None:
    """The example of R's `p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")`."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_accuracy_is_tested_by_its_discordant_rows() -> None:
    before, after = [1] * 20 + [0] * 20 + [1] * 2, [1] * 20 + [0] * 5 + [1] * 15 + [0] * 2
    found = only(differences(labelled(before), labelled(after), [Accuracy()], 200))
    assert (found.test, found.rows) == ("McNemar", (15, 2))
    assert found.p == pytest.approx(stats.binomtest(2, 17, 0.5).pvalue) == found.adjusted
    assert (found.before, found.after) == (22 / 42, 35 / 42)
    assert found.verdict == "better"


def test_few_rows_are_exchanged_in_all_ways() -> None:
    """Of a mean the permutation test is scipy's, and both are the count over all signs."""
    chance = np.random.default_rng(1)
    before, after = chance.normal(size=(2, 9))
    rows = [[{"label": 0.0, "prediction": float(value)} for value in side] for side in (before, after)]
    gaps = np.abs(after) - np.abs(before)
    means = [abs(np.dot(signs, gaps)) for signs in itertools.product((-1, 1), repeat=9)]
    expected = np.mean(np.array(means) >= abs(gaps.sum()) - 1e-12)
    assert permutation(*rows, MeanAbsoluteError(), 2000) == pytest.approx(expected)
    own = stats.permutation_test((gaps,), np.sum, permutation_type="samples", n_resamples=2000)
    assert expected == pytest.approx(own.pvalue)


@pytest.mark.parametrize("metric", [Loss(), Perplexity()], ids=lambda one: one.name)
def test_a_weighted_loss_is_exchanged_by_rows(metric: Metric) -> None:
    """Against a plain loop over all exchanges; the loss of a split is no mean of its rows' losses."""
    chance = np.random.default_rng(2)
    targets = chance.integers(1, 9, 8)
    before, after = lossy(chance.random(8) * targets, targets), lossy(chance.random(8) * targets, targets)

    def gap(exchanged: tuple[int, ...]) -> float:
        pairs = [(b, a) if x else (a, b) for a, b, x in zip(before, after, exchanged, strict=True)]
        one, other = (metric.compute(side)[metric.name] for side in zip(*pairs, strict=True))
        return abs(other - one)

    gaps = [gap(exchanged) for exchanged in itertools.product((0, 1), repeat=8)]
    expected = np.mean([found >= gaps[0] - 1e-12 for found in gaps])
    assert permutation(before, after, metric, 300) == pytest.approx(expected)


@pytest.mark.parametrize("metric", [F1(), Pearson(), Bleu()], ids=lambda one: one.name)
def test_any_metric_of_a_whole_split_can_be_tested(metric: Metric) -> None:
    """A model that is clearly better is called so; the same answers twice are even, with p = 1."""
    chance = np.random.default_rng(3)
    good, bad = (some_rows(metric, chance, share) for share in (0.95, 0.4))
    found = differences(bad, good, [metric], 99)[0]
    assert found.verdict == "better" and found.p < 0.05
    assert found.intervals and 0 < found.intervals[2][0] <= found.difference <= found.intervals[2][1]
    assert differences(good, bad, [metric], 99)[0].verdict == "worse"
    same = differences(good, good, [metric], 99)[0]
    assert (same.p, same.verdict, same.intervals and same.intervals[2]) == (1.0, "even", (0.0, 0.0))


def some_rows(metric: Metric, chance: Any, share: float) -> Rows:
    rows = []
    for at in range(40):
        hit = chance.random() < share
        if metric.name == "pearson":
            rows.append({"label": float(at), "prediction": at + chance.normal() * (60 if share < 0.5 else 2)})
            continue
        row = labelled([0] * at + [hit])[-1]
        text = "one two three four five"
        rows.append({**row, "reference": text, "generated": text if hit else "one six two seven"})
    return rows


@pytest.mark.parametrize("kind", ["accuracy", "loss", "f1"])
def test_without_an_effect_p_values_are_uniform(kind: str) -> None:
    """At most a share p of the p-values may be under p, by chance not much over it; McNemar's are coarse, and larger."""
    found = []
    for seed in range(300):
        chance = np.random.default_rng(seed)
        if kind == "loss":
            hard, targets = chance.random(25), chance.integers(1, 6, 25)
            before, after = (lossy((hard + chance.random(25)) * targets, targets) for _ in range(2))
            found.append(permutation(before, after, Loss(), 99, seed))
            continue
        before, after = (labelled(chance.random(40) < 0.6) for _ in range(2))
        one = (
            permutation(before, after, F1(), 99, seed)
            if kind == "f1"
            else only(differences(before, after, [Accuracy()], 1)).p
        )
        found.append(one)
    for level in (0.05, 0.2, 0.5):
        assert np.mean(np.array(found) <= level) <= level + 3 * math.sqrt(level * (1 - level) / len(found))
    if kind == "loss":
        assert stats.kstest(found, "uniform").pvalue > 0.01


def test_a_known_effect_is_found_as_often_as_theory_says() -> None:
    """Normal differences of mean 0.5 and spread 1 on 30 rows: the paired t-test finds them with a power of 0.75."""
    hits = []
    for seed in range(200):
        gaps = np.random.default_rng(seed).normal(0.5, 1, 30)
        hits.append(permutation(lossy(np.zeros(30), [1] * 30), lossy(gaps, [1] * 30), Loss(), 199, seed) <= 0.05)
    assert 0.65 < np.mean(hits) < 0.85


def test_intervals_draw_the_same_rows_for_both() -> None:
    """A difference that is the same in every row has no width, however much rows differ."""
    losses = np.random.default_rng(4).random(30) * 100
    found = only(differences(lossy(losses, [1] * 30), lossy(losses - 2, [1] * 30), [Loss()], 300))
    assert found.intervals
    assert found.intervals[2] == pytest.approx((-2, -2))
    assert found.intervals[0][1] - found.intervals[0][0] > 10
    assert (found.verdict, found.rows) == ("better", (30, 0))


def test_several_metrics_correct_each_other() -> None:
    before, after = labelled([0] * 8 + [1] * 20), labelled([1] * 7 + [0] + [1] * 20)
    alone = only(differences(before, after, [Accuracy()], 100))
    both = differences(before, after, [Accuracy(), F1()], 100)
    assert alone.p == alone.adjusted == both[0].p < both[0].adjusted <= 2 * both[0].p


def test_what_is_not_known_is_not_tested() -> None:
    rows = [{"label": None, "prediction": "a"}] * 3
    found = only(differences(rows, rows, [Accuracy()], 50))
    assert math.isnan(found.p) and found.verdict == "unknown"
    endless = lossy([math.inf, 1, 1], [1, 1, 1])
    assert only(differences(endless, lossy([1, 1, 1], [1, 1, 1]), [Loss()], 50)).verdict == "unknown"
