"""The running average and the pull to the first weights are those of plain torch, at every stage, and resume to the bit."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peftkit.engine.average import averaged, follow
from peftkit.engine.checkpoint import Progress, newest, read_result, read_trained, resume
from peftkit.engine.open import Engine
from peftkit.engine.optim import parameter_groups
from peftkit.engine.pull import pull_back
from peftkit.engine.saver import save
from peftkit.engine.state import State, capture, load_weights, restore
from peftkit.engine.world import World
from peftkit.errors import CheckpointError
from peftkit.run_folder import RunFolder
from tests.conftest import Together
from tests.engine.odd import Odd, furthest, opened, optimizer, rows_of, train
from tests.engine.test_precision import a_device_with_fp16, scaling

BASE = {"source": "here", "fingerprint": "abc"}
STAGES = ("zero0", "zero1", "zero2", "zero3")
DECAY, PULL, STEPS = 0.3, 7.0, 6
"""The average's own warm-up passes this decay in its third step; the rate is 1e-2, so a pull of 7 moves much."""


def regularized(model: nn.Module, zero: str, world: World, optim: str = "adamw", precision: str = "fp32") -> Engine:
    engine = opened(model, zero, world, optimizer(optim), precision)
    pull_back(engine, PULL)
    follow(engine, DECAY)
    return engine


def by_hand(optim: str, steps: int = STEPS) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and their average in plain torch, all rows at once."""
    model, settings = Odd(), optimizer(optim)
    groups = parameter_groups(model, settings, {}, {})
    made = torch.optim.SGD(groups) if optim == "sgd" else torch.optim.AdamW(groups)
    begun = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    rates = {name: group["lr"] for group in groups for name in group["names"]}
    average: dict[str, Tensor] = {}
    for step in range(steps):
        rows, labels = rows_of(step)
        made.zero_grad()
        nn.functional.cross_entropy(model(rows), labels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        made.step()
        for name, weight in model.named_parameters():
            weight.data -= rates[name] * PULL * (weight.data - begun[name])
            decay = min(DECAY, (1 + step) / (10 + step)) if step else 0.0
            average[name] = decay * average.get(name, 0) + (1 - decay) * weight.detach()
    return {name: weight.detach() for name, weight in model.named_parameters()}, average


def is_that_of_plain_torch(world: World, folder: Path, zero: str, optim: str) -> None:
    weights, average = by_hand(optim)
    engine = regularized(Odd(), zero, world, optim)
    train(engine, range(STEPS), world)
    found = capture(engine)
    engine.close()
    assert furthest(found.weights, weights) < 1e-5
    assert furthest(of_kind(found, "average"), average) < 1e-5
    assert furthest(of_kind(found, "start"), dict(Odd().named_parameters())) == 0
    assert furthest(weights, average) > 1e-4, "they differ"


def of_kind(state: State, kind: str) -> dict[str, Tensor]:
    return {
        name.removesuffix(f"|{kind}"): value for name, value in state.optimizer.items() if name.endswith(f"|{kind}")
    }


def computes_with_it_and_goes_back(world: World, folder: Path, zero: str, precision: str) -> None:
    """Within `averaged` the model is one with the average as its weights; afterwards it is what it was, to the last bit."""
    engine = regularized(Odd(), zero, world, precision=precision)
    train(engine, range(4), world)
    before, rows = capture(engine), rows_of(9)[0].to(next(engine.model.parameters()).dtype)
    with torch.no_grad():
        own = engine.deepspeed(rows)
        with averaged(engine):
            found = engine.deepspeed(rows)
        again = engine.deepspeed(rows)
    assert torch.equal(again, own) and not torch.equal(found, own)
    other = Odd().to(rows.dtype)
    load_weights(other, of_kind(before, "average"))
    torch.testing.assert_close(found, other(rows).detach(), rtol=0, atol=1e-6 if precision == "fp32" else 1e-2)
    same(capture(engine), before)
    train(engine, [4], world)
    expected = capture(engine)
    engine.close()
    never = regularized(Odd(), zero, world, precision=precision)
    train(never, range(5), world)
    same(capture(never), expected)
    never.close()


def same(found: State, expected: State) -> None:
    for kind in ("weights", "optimizer", "counters", "local"):
        assert furthest(getattr(found, kind), getattr(expected, kind)) == 0, kind


def resumed_bit_for_bit(world: World, folder: Path, zero: str, optim: str) -> None:
    wide = optim == "adamw_8bit"
    engine = regularized(Odd(wide), zero, world, optim)
    train(engine, range(3), world)
    saved_in = save(engine, RunFolder(folder), Progress(step=3), world, BASE)
    expected_average = of_kind(capture(engine), "average")
    train(engine, [3, 4], world)
    expected = capture(engine)
    engine.close()
    assert furthest(read_result([saved_in], averaged=True), expected_average) == 0
    assert furthest(read_result([saved_in], averaged=True), read_trained(saved_in)) > 1e-4
    model = Odd(wide, seed=5)
    load_weights(model, read_trained(saved_in))
    again = regularized(model, zero, world, optim)
    saved = newest(RunFolder(folder), world)
    assert saved
    resume(again, saved, world)
    train(again, [3, 4], world)
    same(capture(again), expected)
    again.close()


def goes_on_elsewhere(world: World, folder: Path, before: str, after: str) -> None:
    """Taken over by another stage, the average and the first weights are those that plain torch has after all the steps."""
    engine = regularized(Odd(), before, world)
    train(engine, range(4), world)
    state = capture(engine)
    engine.close()
    model = Odd(seed=7)
    load_weights(model, state.weights)
    again = regularized(model, after, world)
    restore(again, state)
    train(again, range(4, STEPS), world)
    found = capture(again)
    again.close()
    weights, average = by_hand("adamw")
    assert furthest(found.weights, weights) < 1e-5
    assert furthest(of_kind(found, "average"), average) < 1e-5


def what_is_unfrozen_begins_there(world: World, folder: Path, zero: str) -> None:
    """A weight that starts to train at a later stage is averaged from then on; the others keep their count."""
    model = Odd()
    model.first.requires_grad_(False)
    engine = opened(model, zero, world)
    follow(engine, DECAY)
    train(engine, range(3), world)
    state = capture(engine)
    engine.close()
    model.first.requires_grad_(True)
    again = opened(model, zero, world, born={"first.weight": 1, "first.bias": 1})
    follow(again, DECAY)
    restore(again, state)
    with averaged(again):
        pass  # `first` has no average yet
    train(again, [3], world)
    found = capture(again)
    again.close()
    average = of_kind(found, "average")
    assert torch.equal(average["first.weight"], found.weights["first.weight"])
    assert furthest({"last": average["last.weight"]}, {"last": found.weights["last.weight"]}) > 0
    counts = {name: int(value) for name, value in found.counters.items() if name.endswith("averaged")}
    assert {count for name, count in counts.items() if "stage=1" in name} == {1}
    assert {count for name, count in counts.items() if "stage=0" in name} == {4}


CHECKS: dict[str, Any] = {
    f"plain-{zero}-{optim}": partial(is_that_of_plain_torch, zero=zero, optim=optim)
    for zero, optim in (("zero0", "adamw"), ("zero1", "sgd"), ("zero2", "adamw"), ("zero3", "adamw"))
}
CHECKS |= {
    f"there-and-back-{zero}-{precision}": partial(computes_with_it_and_goes_back, zero=zero, precision=precision)
    for zero, precision in (
        *(("zero0", "fp32"), ("zero1", "bf16"), ("zero2", "fp32"), ("zero3", "bf16")),
        *(("zero2_offload", "fp32"), ("zero3_offload", "fp32")),
    )
}
CHECKS |= {
    f"resumed-{zero}-{optim}": partial(resumed_bit_for_bit, zero=zero, optim=optim)
    for zero, optim in (("zero0", "adamw"), ("zero2", "adamw"), ("zero2", "adamw_8bit"), ("zero3", "adamw"))
}
CHECKS |= {
    f"{before}-to-{after}": partial(goes_on_elsewhere, before=before, after=after)
    for before, after in pairwise(("zero0", "zero2", "zero3", "zero0"))
}
CHECKS |= {f"unfrozen-{zero}": partial(what_is_unfrozen_begins_there, zero=zero) for zero in ("zero2", "zero3")}


@pytest.mark.launch
@pytest.mark.parametrize("check", CHECKS)
def test_on_two_processes(check: str, together: Together) -> None:
    assert not together.wrong(__name__, check)


@pytest.mark.launch
@pytest.mark.parametrize("zero", ["zero0", "zero2"])
def test_alone_it_is_that_of_plain_torch(zero: str, alone: World, tmp_path: Path) -> None:
    is_that_of_plain_torch(alone, tmp_path, zero, "adamw")
    resumed_bit_for_bit(alone, tmp_path, zero, "adamw")


@pytest.mark.launch
def test_the_mean_of_checkpoints_is_that_of_their_weights(alone: World, tmp_path: Path) -> None:
    engine = opened(Odd(), "zero0", alone)
    folders, weights = [], []
    for step in range(3):
        train(engine, [step], alone)
        folders.append(save(engine, RunFolder(tmp_path), Progress(step=step + 1), alone, BASE))
        weights.append(capture(engine).weights)
    engine.close()
    mean = {name: (weights[1][name].double() + weights[2][name].double()) / 2 for name in weights[1]}
    assert furthest(read_result(folders[1:]), mean) < 1e-7
    assert furthest(read_result(folders[2:]), weights[2]) == 0
    model = Odd()
    model.first.requires_grad_(False)
    engine = opened(model, "zero0", alone)
    other = save(engine, RunFolder(tmp_path / "other"), Progress(step=1), alone, BASE)
    engine.close()
    with pytest.raises(CheckpointError, match="holds other weights than"):
        read_result([other, folders[0]])


@pytest.mark.launch
@pytest.mark.parametrize("zero", ["zero2", "zero3"])
def test_a_step_that_overflows_is_not_in_it(zero: str, alone: World) -> None:
    """The scale is far too large at first: the average begins with the first step that was taken."""
    with a_device_with_fp16():
        engine = opened(Odd(), zero, alone, optimizer("adamw"), "fp16", **scaling(20, window=100))
        pull_back(engine, PULL)
        follow(engine, DECAY)
        overflows = []
        for step in range(12):
            train(engine, [step], alone)
            overflows.append(engine.overflowed)
        state = capture(engine)
        engine.close()
    taken = overflows.count(False)
    assert 0 < taken < 12 and overflows[0]
    assert {int(value) for name, value in state.counters.items() if name.endswith("|averaged")} == {taken}
    start = {name: weight.half().float() for name, weight in Odd().named_parameters()}
    assert furthest(of_kind(state, "start"), start) == 0
