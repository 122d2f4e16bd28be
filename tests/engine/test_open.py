"""What an engine takes for itself is measured by what trains."""

from __future__ import annotations

from typing import Any

import pytest

from peftkit.engine.world import World
from tests.engine.odd import Odd, opened


@pytest.mark.parametrize("zero", ["zero1", "zero2", "zero3"])
def test_the_bucket_holds_what_trains_and_no_more(zero: str, alone: World) -> None:
    model = Odd()
    model.first.requires_grad_(False)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    engine = opened(model, zero, alone)
    optimizer: Any = engine.deepspeed.optimizer
    assert optimizer.reduce_bucket_size == trained
    engine.close()


def test_a_smaller_one_that_was_asked_for_stays(alone: World) -> None:
    engine = opened(Odd(), "zero2", alone, zero_optimization={"stage": 2, "reduce_bucket_size": 40})
    assert engine.deepspeed.optimizer.reduce_bucket_size == 40
    engine.close()
