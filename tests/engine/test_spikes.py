"""Sudden losses are found by a pure function of numbers, and ordinary curves have none."""

from __future__ import annotations

import math
from random import Random

import pytest

from peftkit.config.sections import Guard
from peftkit.engine.spikes import ENOUGH, WINDOW, spike


def flagged(losses: list[float], threshold: float = Guard().spike) -> list[int]:
    return [at for at in range(len(losses)) if spike(losses[at], losses[max(0, at - WINDOW) : at], threshold)]


def falling(steps: int, noise: float, seed: int) -> list[float]:
    """A curve as trainings have them: exp decay to a floor, with noise in proportion to the loss."""
    draw = Random(seed)
    return [(0.4 + 3 * math.exp(-step / 60)) * math.exp(draw.gauss(0, noise)) for step in range(steps)]


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.2, 0.5])
@pytest.mark.parametrize("seed", range(10))
def test_a_falling_curve_is_quiet_and_a_jump_in_it_is_not(noise: float, seed: int) -> None:
    losses = falling(300, noise, seed)
    assert flagged(losses) == []
    jump = losses[200] * 3 if noise < 0.2 else losses[200] * 5000
    assert flagged([*losses[:200], jump, *losses[201:]]) == [200]


def test_small_batches_with_a_long_tail_are_quiet() -> None:
    """Nearly all rows are known, and each ninth batch has one that is not."""
    draw = Random(1)
    losses = [draw.uniform(0.5, 3) if draw.random() < 0.15 else draw.uniform(0.001, 0.05) for _ in range(500)]
    assert flagged(losses) == []


def test_one_jump_does_not_hide_the_next() -> None:
    losses = falling(200, 0.02, 0)
    losses[150], losses[151] = 9.0, 12.0
    assert flagged(losses) == [150, 151]


def test_a_new_level_is_what_is_usual_after_a_while() -> None:
    losses = [1.0] * 160 + [2.0] * 160
    found = flagged(losses)
    assert found[0] == 160 and len(found) <= WINDOW // 2


def test_it_says_how_far() -> None:
    last = [1.0 + number / 100 for number in range(40)]
    times = spike(3.0, last, 8)
    by_logarithm = math.log(3.0 / 1.13) / 0.0428  # each lies 0.08 above the median of the fifteen before it
    assert times == pytest.approx(by_logarithm, rel=0.2)
    assert spike(3.0, last, 100) is None


@pytest.mark.parametrize(
    ("last", "threshold"), [([1.0] * (ENOUGH - 1), 8), ([], 8), ([1.0] * 40, 0), ([0.0] * 40, 8), ([-1.0] * 40, 1e9)]
)
def test_nothing_is_said_of_too_few_and_when_it_is_off(last: list[float], threshold: float) -> None:
    assert spike(100.0, last, threshold) is None
