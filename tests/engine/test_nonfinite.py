"""A step whose loss or gradient is no number moves nothing, at any ZeRO stage, whichever process and micro-batch it is in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
from torch import Tensor, nn

from peftkit.engine.average import follow
from peftkit.engine.loop import Step, steps
from peftkit.engine.nonfinite import weights_are_finite
from peftkit.engine.open import Engine
from peftkit.engine.pull import pull_back
from peftkit.engine.state import State, capture
from peftkit.engine.world import World
from tests.conftest import Together
from tests.engine.odd import Odd, furthest, opened, optimizer, rows_of

GOOD, NAN, INFINITE, GRADIENT = "good", "nan", "infinite", "gradient"
WAYS = (NAN, INFINITE, GRADIENT)


class Poisoned:
    """Cross-entropy, in which a batch may spoil the loss, the loss alone (its gradient is right), or the gradient alone."""

    def inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"rows": batch["rows"]}

    def targets(self, batch: dict[str, Any]) -> int:
        return len(batch["labels"])

    def wanted(self, batch: dict[str, Any]) -> None:
        """All that the model puts out."""

    def loss(self, outputs: Tensor, batch: dict[str, Any]) -> Tensor:
        loss = nn.functional.cross_entropy(outputs.float(), batch["labels"], reduction="sum")
        if batch["way"] == NAN:
            return loss * math.nan
        if batch["way"] == INFINITE:
            return loss + math.inf
        # The root of 0 is 0, and its slope there has no number.
        return loss + (outputs.sum() * 0).sqrt() if batch["way"] == GRADIENT else loss


def step_of(number: int, world: World, way: str = GOOD) -> list[dict[str, Any]]:
    """Three micro-batches, of which the last process's second one is spoilt."""
    rows, labels = (part[world.process :: world.processes] for part in rows_of(number))
    here = world.process == world.processes - 1
    return [
        {"rows": some, "labels": own, "way": way if here and index == 1 else GOOD}
        for index, (some, own) in enumerate(zip(rows.chunk(3), labels.chunk(3), strict=True))
    ]


def take(engine: Engine, world: World, *batches: Sequence[dict[str, Any]]) -> list[Step]:
    return list(steps(engine, batches, Poisoned(), world, lambda step: 1.0))


def watched(zero: str, world: World, precision: str, optim: str, more: dict[str, Any]) -> Engine:
    """An engine with everything that a step moves: moments, counters, a running average, a pull."""
    clip = 0.0 if more.get("zero_optimization", {}).get("compute_grad_norm") is False else 0.5
    engine = opened(Odd(), zero, world, optimizer(optim, clip=clip), precision, **more)
    pull_back(engine, 0.1)
    follow(engine, 0.9)
    return engine


def moves_nothing(
    world: World, folder: Path, zero: str, precision: str = "fp32", optim: str = "adamw", **more: Any
) -> None:
    """At the first step and later, twice in a row and before a good one: what follows is as if they had not been."""
    engine = watched(zero, world, precision, optim, more)
    before = capture(engine)
    for way in WAYS:
        said(take(engine, world, step_of(7, world, way)), way, world)
    same(capture(engine), before)
    take(engine, world, step_of(0, world))
    before = capture(engine)
    for way in WAYS:
        said(take(engine, world, step_of(8, world, way)), way, world)
        same(capture(engine), before)
    good = take(engine, world, step_of(1, world))
    found = capture(engine)
    assert weights_are_finite(engine)
    engine.close()

    again = watched(zero, world, precision, optim, more)
    expected = take(again, world, step_of(0, world), step_of(1, world))[-1]
    same(found, capture(again))
    assert (good[0].loss, good[0].grad_norm) == (expected.loss, expected.grad_norm)
    assert furthest(found.weights, before.weights) > 1e-4, "it moved"
    again.close()


def said(taken: list[Step], way: str, world: World) -> None:
    (step,) = taken
    assert step.skipped and step.row()["skipped"] is True
    assert math.isfinite(step.loss) == (way == GRADIENT)
    assert step.grad_norm == math.inf
    here = world.process == world.processes - 1 and way != GRADIENT
    assert step.bad == ((1,) if here else ())


def same(found: State, expected: State) -> None:
    for kind in ("weights", "optimizer", "counters", "local"):
        assert furthest(getattr(found, kind), getattr(expected, kind)) == 0, kind


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(5)
        self.last = nn.Linear(5, 3)

    def forward(self, rows: Tensor) -> Tensor:
        found: Tensor = self.last(self.norm(rows))
        return found


def statistics_are_put_back(world: World, folder: Path) -> None:
    """A row that is no number would stay in BatchNorm's running means for ever."""
    engine = opened(Normed(), "zero2", world)
    take(engine, world, step_of(0, world))
    before = capture(engine)
    spoilt = step_of(1, world)
    spoilt[0]["rows"] = spoilt[0]["rows"] * math.nan
    (step,) = take(engine, world, spoilt)
    assert step.skipped and step.bad == (0,)
    same(capture(engine), before)
    (step,) = take(engine, world, step_of(2, world))
    assert not step.skipped
    assert furthest(capture(engine).weights, before.weights) > 1e-4, "it moved"
    engine.close()


class Counting(World):
    """Counts what the processes add up."""

    sums: ClassVar[int] = 0

    def sum(self, *values: float) -> list[float]:
        type(self).sums += 1
        return super().sum(*values)


def a_good_step_adds_up_twice(world: World, folder: Path) -> None:
    """Its targets before the passes, its loss and the wishes before the update: that the loss is finite costs no third sum."""
    engine = opened(Odd(), "zero2", world)
    counting = Counting(**asdict(world))
    take(engine, counting, *(step_of(number, world) for number in range(3)))
    assert Counting.sums == 6
    engine.close()


def wishes_are_counted(world: World, folder: Path) -> None:
    """Every process learns in the same step that one of them wants to stop."""
    engine = opened(Odd(), "zero2", world)
    batches = [step_of(number, world) for number in range(3)]
    asked = iter([False, world.process == 1, True])
    taken = steps(engine, batches, Poisoned(), world, lambda step: 1.0, wish=lambda: next(asked))
    assert [step.asked for step in taken] == [0, 1, 2]
    engine.close()


def broken_weights_are_found(world: World, folder: Path, zero: str) -> None:
    """On the process that holds the part of them, and on no other."""
    engine = opened(Odd(), zero, world)
    assert weights_are_finite(engine)
    if world.process == 0:
        engine.flats()[0][1][0].data.view(-1)[0] = math.nan
    assert weights_are_finite(engine) == (world.process != 0)
    engine.close()


QUIET = {"bf16": {"enabled": True, "check_grad_overflow": False}}
CHECKS: dict[str, Any] = {
    f"{zero}-{precision}": partial(moves_nothing, zero=zero, precision=precision)
    for zero in ("zero0", "zero1", "zero2", "zero3")
    for precision in ("fp32", "bf16")
}
CHECKS |= {
    f"{zero}-lion": partial(moves_nothing, zero=zero, optim="lion") for zero in ("zero2_offload", "zero3_offload")
}
CHECKS |= {
    f"{zero}-unchecked": partial(moves_nothing, zero=zero, precision="bf16", **QUIET) for zero in ("zero1", "zero3")
}
CHECKS |= {
    f"no-norm-{precision}": partial(
        moves_nothing, zero="zero2", precision=precision, zero_optimization={"stage": 2, "compute_grad_norm": False}
    )
    for precision in ("fp32", "bf16")
}
CHECKS |= {f"weights-{zero}": partial(broken_weights_are_found, zero=zero) for zero in ("zero0", "zero2", "zero3")}
CHECKS |= {"statistics": statistics_are_put_back, "wishes": wishes_are_counted, "sums": a_good_step_adds_up_twice}


@pytest.mark.launch
@pytest.mark.parametrize("check", CHECKS)
def test_on_two_processes(check: str, together: Together) -> None:
    assert not together.wrong(__name__, check)
