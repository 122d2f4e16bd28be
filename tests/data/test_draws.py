"""What an epoch takes of each group: its share, nothing twice before everything once, the same for every asker."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftkit.data.batches import order, step_rows, steps_per_epoch
from peftkit.data.draws import balanced, by_share, mixed, share_out

shares = st.lists(st.floats(0.01, 100), min_size=1, max_size=8)


@given(shares, st.integers(8, 500))
def test_shares_are_given_out_to_the_last_one_and_nobody_is_forgotten(some, total):
    counts = share_out(total, some)
    assert sum(counts) == total
    assert min(counts) >= 1
    if min(exact := [total * share / sum(some) for share in some]) >= 1:
        assert all(abs(count - share) < 1 for count, share in zip(counts, exact, strict=True))


@given(st.lists(st.integers(0, 3), min_size=4, max_size=60), st.integers(0, 3))
def test_nothing_comes_twice_before_everything_of_its_group_came(groups, seed):
    groups = np.array([*range(4), *groups])
    draws = by_share(groups, [5, 1, 3, 1])
    taken = [window for epoch in range(6) for window in order(draws.size, seed, epoch, draws)]
    for group in range(4):
        counts = Counter(taken)
        times = [counts[window] for window in np.flatnonzero(groups == group)]
        assert max(times) - min(times) <= 1
        assert sum(times) == 6 * draws.counts[group]


@pytest.mark.parametrize(
    ("weights", "temperature", "expected"),
    [([1, 1], 1, [90, 10]), ([1, 9], 1, [50, 50]), ([1, 1], 2, [75, 25]), ([1, 1], 1e9, [50, 50])],
)
def test_a_mixture_is_weighed_by_size_weight_and_temperature(weights, temperature, expected):
    draws = mixed(np.array([0] * 90 + [1] * 10), weights, temperature)
    assert (list(draws.counts), draws.size) == (expected, 100)
    windows = order(100, 7, 0, draws)
    assert [sum(window < 90 for window in windows), sum(window >= 90 for window in windows)] == expected


def test_sources_as_they_are_make_the_plain_order():
    draws = mixed(np.array([0] * 30 + [1] * 10), [1, 1], 1)
    assert [order(40, 3, epoch, draws) for epoch in range(3)] == [order(40, 3, epoch) for epoch in range(3)]


def test_oversampling_repeats_the_rare_and_leaves_nothing_out():
    labels = np.array([7] * 6 + [2] * 3 + [5])
    taken = Counter(order(18, 0, 0, balanced(labels, grow=True)))
    assert [taken[window] for window in range(10)] == [1] * 6 + [2] * 3 + [6]


def test_weighted_labels_are_as_frequent_in_an_epoch_of_the_same_size():
    labels = np.array([7] * 60 + [2] * 30)
    draws = balanced(labels, grow=False)
    first, second = (order(90, 0, epoch, draws) for epoch in range(2))
    assert Counter(labels[first]) == {7: 45, 2: 45}
    assert len({window for window in first + second if window < 60}) == 60


def test_steps_of_a_drawn_epoch_are_its_order_cut_in_pieces():
    draws = balanced(np.array([0] * 9 + [1] * 2), grow=True)
    steps = [step_rows(step, draws.size, 4, 5, draws) for step in range(2 * steps_per_epoch(draws.size, 4))]
    assert [row for step in steps for row in step] == order(18, 5, 0, draws) + order(18, 5, 1, draws)
