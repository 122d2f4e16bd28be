"""Schedules against transformers' and torch's own, and against their closed forms.

The one difference to transformers is stated in `theirs`: our warm-up of w steps is its warm-up of w + 1 without the first
step, whose rate is 0 and from which nothing is learnt.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau as TorchPlateau
from transformers import optimization

from peftkit.config.run import Run
from peftkit.engine.schedule import Schedule

STEPS = 40
WARMUPS = (0, 1, 7, STEPS)
ORACLES: dict[str, tuple[dict[str, Any], Callable[..., Any], Callable[[int], dict[str, Any]]]] = {
    "constant": ({}, optimization.get_constant_schedule_with_warmup, lambda steps: {}),
    "linear": ({}, optimization.get_linear_schedule_with_warmup, lambda steps: {"num_training_steps": steps}),
    "cosine": ({}, optimization.get_cosine_schedule_with_warmup, lambda steps: {"num_training_steps": steps}),
    "cosine to a floor": (
        {"name": "cosine", "floor": 0.1},
        optimization.get_cosine_with_min_lr_schedule_with_warmup,
        lambda steps: {"num_training_steps": steps, "min_lr_rate": 0.1},
    ),
    "cosine_restarts": (
        {"cycles": 3},
        optimization.get_cosine_with_hard_restarts_schedule_with_warmup,
        lambda steps: {"num_training_steps": steps, "num_cycles": 3},
    ),
    "polynomial": (
        {"power": 3.0, "floor": 0.05},
        optimization.get_polynomial_decay_schedule_with_warmup,
        lambda steps: {"num_training_steps": steps, "power": 3.0, "lr_end": 0.05},
    ),
    "inverse_sqrt": ({"timescale": 9}, optimization.get_inverse_sqrt_schedule, lambda steps: {"timescale": 9}),
}
EVERY = [Schedule.model_validate(name) for name in Schedule.registry]


def schedule(name: str, **settings: Any) -> Schedule:
    made: Schedule = Schedule.model_validate({"name": name, **settings})
    return made


def theirs(make: Callable[..., Any], warmup: int, **words: Any) -> Callable[[int], float]:
    """transformers' share of the peak rate (here 1) at a step of ours."""
    weight = torch.nn.Parameter(torch.zeros(1))
    made = make(torch.optim.SGD([weight], lr=1.0), num_warmup_steps=warmup + 1, **words)
    share = made.lr_lambdas[0]
    return lambda step: float(share(step + 1))


@pytest.mark.parametrize("warmup", WARMUPS)
@pytest.mark.parametrize("name", ORACLES)
def test_it_is_transformers_schedule(name: str, warmup: int) -> None:
    settings, make, words = ORACLES[name]
    ours = schedule(**{"name": name, "warmup": warmup, **settings})
    expected = theirs(make, warmup, **words(STEPS + 1))
    found = [ours.factor(step, STEPS) for step in range(STEPS)]
    assert found == pytest.approx([expected(step) for step in range(STEPS)], abs=1e-12)


def test_warmup_stable_decay_is_transformers_schedule() -> None:
    """Its decay is said there by a number of steps, here by their share: 12 of the 32 after a warm-up of 8."""
    ours = schedule("warmup_stable_decay", warmup=8, decay=12 / 32, floor=0.25)
    expected = theirs(
        optimization.get_wsd_schedule,
        8,
        num_decay_steps=12,
        num_stable_steps=20,
        decay_type="linear",
        min_lr_ratio=0.25,
    )
    found = [ours.factor(step, STEPS) for step in range(8, STEPS + 1)]
    assert found == pytest.approx([expected(step) for step in range(8, STEPS + 1)], abs=1e-12)


@pytest.mark.parametrize("floor", [0.0, 0.3])
@pytest.mark.parametrize("patience", [1, 2, 4])
def test_reduce_on_plateau_is_torchs(patience: int, floor: float) -> None:
    noise = torch.Generator().manual_seed(patience)
    losses = [1 / (1 + step / 4) + 0.3 * float(torch.rand((), generator=noise)) for step in range(60)]
    losses[20] = math.nan
    ours = schedule("reduce_on_plateau", patience=patience, cut=0.7, floor=floor, warmup=0)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    torchs = TorchPlateau(optimizer, factor=0.7, patience=patience, threshold=0.0, min_lr=floor, eps=0.0)
    found, expected = [], []
    for number, loss in enumerate(losses):
        found.append(ours.factor(number, 100, losses[: number + 1]))
        torchs.step(loss)
        expected.append(optimizer.param_groups[0]["lr"])
    assert found == pytest.approx(expected, rel=1e-12)
    assert len(set(found)) > 2


def test_exponential_multiplies_by_the_same_factor_and_ends_at_its_end() -> None:
    factors = [schedule("exponential", warmup=0, end=0.01).factor(step, STEPS) for step in range(STEPS + 1)]
    assert factors[0] == 1
    assert factors[-1] == pytest.approx(0.01)
    ratios = [after / before for before, after in pairwise(factors)]
    assert ratios == pytest.approx([0.01 ** (1 / STEPS)] * STEPS)


def test_restarts_start_at_the_peak_again() -> None:
    factors = [schedule("cosine_restarts", warmup=0, cycles=4).factor(step, STEPS) for step in range(STEPS)]
    assert [step for step, factor in enumerate(factors) if factor == 1] == [0, 10, 20, 30]


def test_reduce_on_plateau_needs_to_know_how_often_to_look() -> None:
    settings = {"model": "m", "schedule": "reduce_on_plateau"}
    (problem,) = Run.model_validate(settings).problems()
    assert "--schedule reduce_on_plateau" in problem and "--eval.every" in problem
    assert not list(Run.model_validate(settings | {"eval": {"every": 5}}).problems())


@pytest.mark.parametrize(
    ("asked", "got"), [(0, 0), (0.03, 3), (0.031, 4), (0.07, 7), (0.5, 50), (1, 1), (12, 12), (500, 100)]
)
def test_warm_up_is_a_share_below_one_and_a_number_from_one_on(asked: float, got: int) -> None:
    made = schedule("constant", warmup=asked)
    assert made.warmup_steps(100) == got
    ramp = [made.factor(step, 100) for step in range(got)]
    assert ramp == pytest.approx([(step + 1) / (got + 1) for step in range(got)])
    assert got == 100 or made.factor(got, 100) == 1


@pytest.mark.parametrize("made", EVERY, ids=lambda made: str(made.name))
def test_no_rate_is_above_the_peak_or_below_nothing(made: Schedule) -> None:
    losses = [3.0, 2.0, 2.5, 2.6, 2.7, 2.8, 2.9, 3.0, 3.1]
    for warmup in (0, 0.03, 0.5, 0.999, 1, 3, 100):
        for steps in (1, 2, 3, 10, 57):
            asked = made.model_copy(update={"warmup": warmup})
            factors = [asked.factor(step, steps, losses) for step in range(steps + 5)]
            assert all(0 <= factor <= 1 for factor in factors), (warmup, steps)
            assert factors[0] > 0, "the first step learns"


@pytest.mark.parametrize("made", EVERY, ids=lambda made: str(made.name))
def test_a_resumed_run_asks_for_one_step_and_gets_the_same_rate(made: Schedule) -> None:
    """It has no state: asked for any step alone, or after others, it says the same."""
    forwards = [made.factor(step, STEPS, [1.0, 2.0]) for step in range(STEPS)]
    assert [made.factor(step, STEPS, [1.0, 2.0]) for step in reversed(range(STEPS))] == forwards[::-1]
