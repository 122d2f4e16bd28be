"""What holds of all metrics, and of those of the loss."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftkit.metrics import Confusion, Loss, Metric, Perplexity, TokenAccuracy

token_rows = st.lists(st.tuples(st.floats(0, 1e6), st.integers(1, 50), st.integers(0, 50)), min_size=1, max_size=40)
NAMES = [name for name in Metric.registry if name != "evaluate"]


@given(token_rows, st.randoms())
def test_token_metrics_are_exact_in_any_order(rows, chance: random.Random):
    records = [{"loss": loss, "targets": n, "correct": min(n, right)} for loss, n, right in rows]
    shuffled = chance.sample(records, len(records))
    for metric in (Loss(), Perplexity(), TokenAccuracy()):
        assert metric.compute(shuffled) == metric.compute(records)


def test_token_metrics_weigh_rows_by_their_targets():
    records = [{"loss": 2.0, "targets": 1, "correct": 1}, {"loss": 2.0, "targets": 3, "correct": 0}]
    assert Loss().compute(records) == {"loss": 1.0}
    assert Perplexity().compute(records) == {"perplexity": math.e}
    assert TokenAccuracy().compute(records) == {"token_accuracy": 0.25}


def test_a_perplexity_beyond_all_numbers_is_infinite():
    assert Perplexity().compute([{"loss": 1e6, "targets": 1}]) == {"perplexity": math.inf}


@pytest.mark.parametrize(("loss", "expected"), [(math.nan, math.nan), (math.inf, math.inf)])
def test_a_diverged_loss_is_not_hidden(loss, expected):
    records = [{"loss": 1.0, "targets": 1}, {"loss": loss, "targets": 1}]
    for metric in (Loss(), Perplexity()):
        assert metric.compute(records)[metric.name] == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_split_without_records_has_no_number(name):
    numbers = Metric.model_validate(name).compute([])
    assert all(math.isnan(value) for value in numbers.values())
    assert name == Confusion.name or next(iter(numbers)) == name


@pytest.mark.parametrize("name", NAMES)
def test_every_number_is_called_by_its_metric(name):
    metric = Metric.model_validate(name)
    assert metric.called == name
    assert all(number == name or number.startswith(f"{name}/") for number in metric.compute([]))
