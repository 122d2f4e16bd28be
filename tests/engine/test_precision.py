"""16 bits: sums in fp32, steps that overflow, and the loss scale through a checkpoint.

fp16 is refused on a CPU (it is slow there); these tests tell DeepSpeed's accelerator otherwise, to see what a GPU would.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.accelerator import get_accelerator

from peftkit.engine.checkpoint import Progress, newest, read_trained, resume
from peftkit.engine.loop import Step, steps
from peftkit.engine.open import Engine
from peftkit.engine.saver import save
from peftkit.engine.state import State, capture, load_weights
from peftkit.engine.world import World
from peftkit.errors import PeftkitError
from peftkit.run_folder import RunFolder
from peftkit.tasks import Task
from tests.conftest import Together
from tests.engine.odd import Odd, furthest, opened, optimizer, train
from tests.tiny import tiny

STAGES = ("zero1", "zero2", "zero3")
"""Without ZeRO, 16 bits run as stage 1."""
CHAT = Task.model_validate("causal_lm")


@contextmanager
def a_device_with_fp16() -> Iterator[None]:
    device, patch = type(get_accelerator()), pytest.MonkeyPatch()
    with patch.context() as patched:
        patched.setattr(device, "is_fp16_supported", lambda self: True)
        patched.setattr(device, "supported_dtypes", lambda self: [torch.float32, torch.float16, torch.bfloat16])
        yield


def scaling(power: int, window: int = 2) -> dict[str, Any]:
    """Few steps between two doublings of the scale, so that a short test sees them."""
    return {"fp16": {"enabled": True, "initial_scale_power": power, "loss_scale_window": window, "hysteresis": 1}}


def rows(step: int, count: int) -> list[dict[str, torch.Tensor]]:
    ids = torch.randint(4, 300, (16, 12), generator=torch.Generator().manual_seed(step))
    return [
        {"input_ids": part, "labels": part.clone(), "attention_mask": torch.ones_like(part)}
        for part in ids.chunk(count)
    ]


def split(world: World, zero: str, precision: str, micro_batches: int, **more: Any) -> dict[str, torch.Tensor]:
    """The gradient of 16 rows on each process, which all have the same, by an SGD step of rate 1."""
    optim = optimizer("sgd", lr=1.0, lr_by_name={}, weight_decay=0.0, clip=0.0)
    engine = opened(tiny("llama"), zero, world, optim, precision, **more)
    before = capture(engine).weights
    list(steps(engine, [rows(0, micro_batches)], CHAT, world, lambda step: 1.0))
    after = capture(engine).weights
    engine.close()
    return {name: before[name] - after[name] for name in before}


def away(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Distance of two gradients, in parts of their length."""
    difference, length = (
        torch.cat([(found[name] - expected[name] * share).flatten() for name in expected]).norm() for share in (1, 0)
    )
    return float(difference / length)


def sums_in_fp32(world: World, folder: Path, zero: str) -> None:
    """Of 16 micro-batches: as near to the gradient in fp32 as that of one, which sums of 16 bits are not."""
    exact = split(world, "zero2", "fp32", 1)
    whole, parts = (away(split(world, zero, "bf16", count), exact) for count in (1, 16))
    rough = away(split(world, zero, "bf16", 16, data_types={"grad_accum_dtype": "bf16"}), exact)
    assert parts < 1.1 * whole < 0.02
    assert rough > 1.1 * parts


def overflow_moves_nothing(world: World, folder: Path, zero: str) -> None:
    """A scale of 2^24 overflows until it has been halved often enough; such a step is told as one whose gradient is infinite."""
    with a_device_with_fp16():
        engine = opened(tiny("llama"), zero, world, optimizer("adamw"), "fp16", **scaling(24))
        taken: list[Step] = []
        moved = []
        before = capture(engine).weights
        for step in steps(engine, (rows(number, 2) for number in range(20)), CHAT, world, lambda step: 1.0):
            after = capture(engine).weights
            taken.append(step)
            moved.append(furthest(after, before) > 0)
            before = after
        assert [step.step for step in taken] == list(range(1, 21))
        assert all(math.isfinite(step.loss) and step.targets == 2 * 16 * 11 for step in taken)
        assert moved == [math.isfinite(step.grad_norm) for step in taken]
        assert not moved[0] and any(moved)
        exact = away(split(world, "zero2", "fp16", 2, **scaling(8)), split(world, "zero2", "fp32", 1))
        assert exact < 2e-3
        steps_of_adam = {float(value) for name, value in capture(engine).counters.items() if name.endswith("step")}
        assert steps_of_adam == {float(sum(moved))}
        engine.close()


def the_scale_is_resumed(world: World, folder: Path, zero: str) -> None:
    """The uninterrupted run doubles its scale at some step; so does the resumed one, and all is the same to the bit."""
    with a_device_with_fp16():
        engine = fp16_engine(Odd(), zero, world)
        train(engine, range(3), world)
        save(engine, RunFolder(folder), Progress(step=3), world, {})
        scale = engine.loss_scaler.cur_scale
        train(engine, range(3, 9), world)
        expected = capture(engine)
        assert expected.scaler["cur_scale"] > scale, "it moved"
        engine.close()
        saved = newest(RunFolder(folder), world)
        assert saved
        model = Odd(seed=3)
        load_weights(model, read_trained(saved.folder))
        again = fp16_engine(model, zero, world)
        resume(again, saved, world)
        assert again.loss_scaler.cur_scale == scale
        train(again, range(3, 9), world)
        same(capture(again), expected)
        again.close()


def fp16_engine(model: Odd, zero: str, world: World) -> Engine:
    return opened(model, zero, world, optimizer("adamw"), "fp16", **scaling(9, window=4))


def same(found: State, expected: State) -> None:
    for kind in ("weights", "optimizer", "counters", "scaler"):
        assert furthest(getattr(found, kind), getattr(expected, kind)) == 0, kind


def no_scale_is_small_enough(world: World, folder: Path) -> None:
    """A loss that is no number: a sentence, on every process, instead of skipping steps for ever."""
    with a_device_with_fp16():
        model = tiny("llama").half()
        next(model.parameters()).data.fill_(math.nan)
        engine = opened(model, "zero2", world, optimizer("adamw"), "fp16", **scaling(1))
        with pytest.raises(PeftkitError, match=r"overflows fp16 at any loss scale .* --precision bf16"):
            list(steps(engine, (rows(number, 1) for number in range(9)), CHAT, world, lambda step: 1.0))
        engine.close()


CHECKS: dict[str, Any] = {f"sums-{zero}": partial(sums_in_fp32, zero=zero) for zero in STAGES}
CHECKS |= {f"overflow-{zero}": partial(overflow_moves_nothing, zero=zero) for zero in ("zero0", "zero3")}
CHECKS |= {f"scale-{zero}": partial(the_scale_is_resumed, zero=zero) for zero in STAGES}
CHECKS |= {"never-small-enough": no_scale_is_small_enough}


@pytest.mark.launch
@pytest.mark.parametrize("check", CHECKS)
def test_on_two_processes(check: str, together: Together) -> None:
    assert not together.wrong(__name__, check)
