"""What a training has become is the same at every ZeRO stage and on any number of processes, and goes back in whole."""

from __future__ import annotations

from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from peftkit.engine.open import Engine
from peftkit.engine.state import State, capture, full_weight, gathered, load_weights, restore
from peftkit.engine.world import World
from peftkit.errors import CheckpointError
from tests.conftest import Together
from tests.engine.odd import Odd, furthest, opened, optimizer, train

STAGES = ("zero0", "zero1", "zero2", "zero3")
STATEFUL: dict[str, dict[str, Any]] = {
    "adamw": {},
    "adagrad": {},
    "lion": {},
    "sgd": {"momentum": 0.9},
    "adafactor": {"weight_decay": 0.0},
}
"""Adafactor keeps other state of a matrix than of a vector; without decay both are in one group."""


def trained(zero: str, world: World, optim: str = "adamw", precision: str = "fp32", steps: int = 3) -> Engine:
    engine = opened(Odd(), zero, world, optimizer(optim, **STATEFUL[optim]), precision)
    train(engine, range(steps), world)
    return engine


def reopened(zero: str, world: World, state: State, optim: str = "adamw", precision: str = "fp32") -> Engine:
    model = Odd(seed=7)
    load_weights(model, state.weights)
    engine = opened(model, zero, world, optimizer(optim, **STATEFUL[optim]), precision)
    restore(engine, state)
    return engine


def captured_and_restored(world: World, folder: Path, zero: str, optim: str, precision: str = "fp32") -> None:
    """The same to the last bit, there and after two more steps; groups are several, one of a single parameter."""
    engine = trained(zero, world, optim, precision)
    state = capture(engine)
    assert len(engine.groups) == (2 if optim == "adafactor" else 4)
    train(engine, [3, 4], world)
    expected = capture(engine)
    engine.close()
    again = reopened(zero, world, state, optim, precision)
    same(capture(again), state)
    train(again, [3, 4], world)
    same(capture(again), expected)
    assert furthest(expected.weights, state.weights) > 1e-3, "it moved"
    again.close()


def same(found: State, expected: State) -> None:
    for kind in ("weights", "optimizer", "counters", "local"):
        assert furthest(getattr(found, kind), getattr(expected, kind)) == 0, kind


def moved_to_another_stage(world: World, folder: Path, before: str, after: str, precision: str = "fp32") -> None:
    """The next steps are those that the stage before would have taken."""
    engine = trained(before, world, precision=precision)
    state = capture(engine)
    train(engine, [3, 4], world)
    expected = capture(engine)
    engine.close()
    again = reopened(after, world, state, precision=precision)
    train(again, [3, 4], world)
    found = capture(again)
    again.close()
    assert furthest(found.weights, expected.weights) < 1e-6
    assert furthest(found.optimizer, expected.optimizer) < 1e-6


def only_what_is_mine(world: World, folder: Path, zero: str) -> None:
    """Every parameter is captured on the process that asked for it, whole, and the parts make the whole."""
    engine = trained(zero, world)
    whole = capture(engine)
    part = capture(engine, lambda index: index % 2 == world.process)
    assert list(part.weights) == list(whole.weights)[world.process :: 2]
    assert all(torch.equal(part.weights[name], whole.weights[name]) for name in part.weights)
    assert {name.split("|")[0] for name in part.optimizer} == set(part.weights)
    shapes = {name: weight.shape for name, weight in Odd().named_parameters()}
    assert {name: value.shape for name, value in whole.weights.items()} == shapes
    assert all(value.shape == shapes[name.split("|")[0]] for name, value in whole.optimizer.items())
    engine.close()


def nothing_before_the_first_step(world: World, folder: Path, zero: str) -> None:
    """A state without optimizer state goes in as well: the next stage of unfreezing may come before a step."""
    engine = opened(Odd(), zero, world)
    state = capture(engine)
    assert state.optimizer == {} and state.counters == {}
    engine.close()
    again = reopened(zero, world, state)
    train(again, [0], world)
    found = capture(again).weights
    again.close()
    engine = trained(zero, world, steps=1)
    assert furthest(found, capture(engine).weights) == 0
    engine.close()


def more_parameters_than_before(world: World, folder: Path, zero: str) -> None:
    """What is unfrozen starts with no state of its own; what trained before keeps its own."""
    model = Odd()
    model.first.requires_grad_(False)
    engine = opened(model, zero, world)
    train(engine, range(3), world)
    state = capture(engine)
    assert not any("first" in name for name in [*state.weights, *state.optimizer])
    engine.close()
    model.first.requires_grad_(True)
    again = opened(model, zero, world, born={"first.weight": 1, "first.bias": 1})
    restore(again, state)
    found = capture(again)
    assert all(torch.equal(found.weights[name], value) for name, value in state.weights.items())
    assert furthest(found.optimizer, state.optimizer) == 0
    train(again, [3], world)
    steps = {name: float(value) for name, value in capture(again).counters.items() if name.endswith("step")}
    assert {count for name, count in steps.items() if "stage=1" in name} == {1}
    assert {count for name, count in steps.items() if "stage=0" in name} == {4}
    again.close()


def weights_under_zero3(world: World, folder: Path) -> None:
    engine = trained("zero3", world)
    weights = capture(engine).weights
    for name, parameter in engine.trained().items():
        assert torch.equal(full_weight(engine, parameter).cpu(), weights[name])
        with gathered(parameter):
            assert torch.equal(parameter.detach().cpu(), weights[name])
    changed = {name: value + 1 for name, value in weights.items()}
    load_weights(engine.model, changed)
    for name, parameter in engine.trained().items():
        with gathered(parameter):
            assert torch.equal(parameter.detach().cpu(), changed[name])
    engine.close()


CHECKS: dict[str, Any] = {
    f"identity-{zero}-{optim}": partial(captured_and_restored, zero=zero, optim=optim)
    for zero in STAGES
    for optim in STATEFUL
    if optim != "adafactor" or zero == "zero0"
}
CHECKS |= {
    f"identity-{zero}": partial(captured_and_restored, zero=zero, optim="adamw")
    for zero in ("zero2_offload", "zero3_offload")
}
CHECKS |= {
    f"identity-{zero}-bf16": partial(captured_and_restored, zero=zero, optim="adamw", precision="bf16")
    for zero in STAGES
}
CHECKS |= {
    f"{before}-to-{after}": partial(moved_to_another_stage, before=before, after=after)
    for before, after in permutations(("zero0", "zero2", "zero3"), 2)
}
CHECKS |= {
    f"{before}-to-{after}-bf16": partial(moved_to_another_stage, before=before, after=after, precision="bf16")
    for before, after in (("zero1", "zero2"), ("zero2", "zero3"), ("zero3", "zero1"))
}
CHECKS |= {f"parts-{zero}": partial(only_what_is_mine, zero=zero) for zero in STAGES}
CHECKS |= {f"before-the-first-step-{zero}": partial(nothing_before_the_first_step, zero=zero) for zero in STAGES}
CHECKS |= {f"unfrozen-{zero}": partial(more_parameters_than_before, zero=zero) for zero in STAGES}
CHECKS |= {"weights-under-zero3": weights_under_zero3}


@pytest.mark.launch
@pytest.mark.parametrize("check", CHECKS)
def test_on_two_processes(check: str, together: Together) -> None:
    assert not together.wrong(__name__, check)


def test_weights_of_another_model_are_refused_by_name() -> None:
    weights: dict[str, Tensor] = dict(Odd().named_parameters())
    with pytest.raises(CheckpointError, match="the checkpoint holds added, which this model lacks"):
        load_weights(Odd(), {**weights, "added": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"last.weight is \(3, 9\) in the checkpoint and \(3, 7\) in the model"):
        load_weights(Odd(), {**weights, "last.weight": torch.zeros(3, 9)})
