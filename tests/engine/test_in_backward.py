"""Weights that move in the backward pass: where they come to is where the usual step brings them, and no gradient is held."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from peftkit.config.run import Run
from peftkit.engine.average import averaged, follow
from peftkit.engine.in_backward import check_in_backward
from peftkit.engine.loop import steps
from peftkit.engine.memory import held
from peftkit.engine.open import Engine
from peftkit.engine.pull import pull_back
from peftkit.engine.state import capture, restore
from peftkit.engine.world import World, joined
from peftkit.errors import ConfigError, NonFiniteError
from peftkit.tasks.positions import Wanted
from tests.engine.odd import Odd, furthest, opened, optimizer, rows_of


class Classes:
    """What the loop asks of a task, for `Odd`."""

    def inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"rows": batch["rows"]}

    def targets(self, batch: dict[str, Any]) -> int:
        return len(batch["labels"])

    def wanted(self, batch: dict[str, Any]) -> Wanted | None:
        return None

    def loss(self, outputs: Any, batch: dict[str, Any]) -> Tensor:
        return batch.get("times", 1.0) * torch.nn.functional.cross_entropy(outputs, batch["labels"], reduction="sum")


def batches(numbers: range, **more: Any) -> list[list[dict[str, Any]]]:
    return [[{"rows": rows, "labels": labels, **more}] for rows, labels in map(rows_of, numbers)]


def engine_of(world: World, name: str, in_backward: bool) -> Engine:
    return opened(Odd(wide=True), "zero0", world, optimizer(name, clip=0.0, in_backward=in_backward))


def weights(engine: Engine) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in engine.trained().items()}


def taken(engine: Engine, world: World, numbers: range, **more: Any) -> list[tuple[float, float]]:
    rate = lambda step: 1.0 / (1 + step)  # noqa: E731
    made = steps(engine, batches(numbers, **more), Classes(), world, rate, numbers.start)
    return [(step.loss, step.grad_norm) for step in made]


@pytest.mark.parametrize("name", ["adamw", "sgd", "lion", "adafactor"])
def test_it_comes_to_where_the_usual_step_comes_to(name: str) -> None:
    with joined() as world:
        usual, moving = engine_of(world, name, False), engine_of(world, name, True)
        expected, found = taken(usual, world, range(6)), taken(moving, world, range(6))
        assert furthest(weights(moving), weights(usual)) == 0
        assert sum(found, ()) == pytest.approx(sum(expected, ()), rel=1e-6)
        assert not any(weight.grad is not None for weight in moving.model.parameters())
        for engine in (usual, moving):
            engine.close()


def test_no_gradients_are_held_while_the_loss_goes_back() -> None:
    with joined() as world:
        engine = engine_of(world, "adamw", True)
        most = []
        first = engine.model.first.weight  # the last that gets its gradient  # type: ignore[union-attr]
        first.register_post_accumulate_grad_hook(lambda weight: most.append(held(engine, engine.model).gradients))
        taken(engine, world, range(3))
        assert len(most) == 3
        assert max(most) < 100, "but for those of a few small weights at a time"
        engine.close()


def test_resumed_it_is_uninterrupted() -> None:
    with joined() as world:
        whole, begun, resumed = (engine_of(world, "adamw", True) for _ in range(3))
        taken(whole, world, range(6))
        taken(begun, world, range(3))
        with torch.no_grad():
            for name, weight in resumed.trained().items():
                weight.copy_(begun.trained()[name])
        restore(resumed, capture(begun))
        taken(resumed, world, range(3, 6))
        assert furthest(weights(resumed), weights(whole)) == 0
        for engine in (whole, begun, resumed):
            engine.close()


def test_the_average_and_the_pull_see_each_weight_once_a_step() -> None:
    with joined() as world:
        usual, moving = engine_of(world, "adamw", False), engine_of(world, "adamw", True)
        for engine in (usual, moving):
            pull_back(engine, 0.1)
            follow(engine, 0.9)
            taken(engine, world, range(4))
        assert furthest(weights(moving), weights(usual)) == 0
        with averaged(usual), averaged(moving):
            assert furthest(weights(moving), weights(usual)) == 0
        for engine in (usual, moving):
            engine.close()


def test_a_loss_that_is_no_number_moves_nothing_and_a_gradient_ends_the_run() -> None:
    with joined() as world:
        engine = engine_of(world, "adamw", True)
        before = weights(engine)
        ((loss, _),) = taken(engine, world, range(1), times=float("nan"))
        assert loss != loss
        assert furthest(weights(engine), before) == 0
        engine.model.last.bias.register_hook(lambda gradient: gradient * float("inf"))  # type: ignore[union-attr]
        with pytest.raises(NonFiniteError, match=r"gradient of last\.bias is no number.*--resume"):
            taken(engine, world, range(1))
        engine.close()
        assert not any(weight._post_accumulate_grad_hooks for weight in engine.model.parameters())


def test_where_a_gradient_is_not_whole_it_is_refused() -> None:
    check_in_backward({}, 1)
    more = {"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}}
    with pytest.raises(ConfigError, match="here ZeRO's stage is 2, the precision is bf16, 2 processes share a step"):
        check_in_backward(more, 2)
    for settings, said in (
        ({"optim": {"in_backward": True}, "batch": {"micro": 16}}, "give --optim.clip 0"),
        ({"optim": {"in_backward": True, "clip": 0}}, "give --batch.micro 16"),
    ):
        assert any(said in problem for problem in Run.model_validate(settings).problems())
