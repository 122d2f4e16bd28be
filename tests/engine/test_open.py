"""What an engine takes for itself is measured by what trains."""

from __future__ import annotations

from typing import Any

import deepspeed
import pytest
import torch

from peftkit.engine.open import own_linear_again
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


def test_torch_computes_products_itself_after_a_model_of_zero3(alone: World) -> None:
    own_linear_again()
    before = torch.nn.functional.linear
    with deepspeed.zero.Init(config_dict_or_path={"train_batch_size": 1, "zero_optimization": {"stage": 3}}):
        assert torch.nn.functional.linear is not before
    assert torch.nn.functional.linear is not before, "DeepSpeed leaves it"
    own_linear_again()
    assert torch.nn.functional.linear is before is torch._C._nn.linear
