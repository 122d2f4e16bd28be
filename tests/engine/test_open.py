"""What an engine takes for itself is measured by what trains."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import deepspeed
import pytest
import torch

from peftkit.engine.open import own_linear_again
from peftkit.engine.world import World
from tests.engine.odd import Odd, opened
from tests.launch import ROOT, environment

SETTINGS = {"train_batch_size": 1, "zero_optimization": {"stage": 3}}


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
    with deepspeed.zero.Init(config_dict_or_path=SETTINGS):
        assert torch.nn.functional.linear is not before
    assert torch.nn.functional.linear is not before, "DeepSpeed leaves it"
    own_linear_again()
    assert torch.nn.functional.linear is before is torch._C._nn.linear


UNDER_ZERO3 = """
import deepspeed, torch
from peftkit.engine.open import own_linear_again
from tests.engine.test_open import SETTINGS

torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
deepspeed.init_distributed("gloo")
with deepspeed.zero.Init(config_dict_or_path=SETTINGS):
    pass
from torchao.quantization import Int8WeightOnlyConfig, quantize_

own_linear_again()
layer = torch.nn.Linear(32, 16)
states = torch.randn(3, 32)
expected = layer(states)
quantize_(layer, Int8WeightOnlyConfig())
error = (layer(states) - expected).norm() / expected.norm()
assert 0 < error < 0.02, error
"""


def test_tensors_of_8_bits_that_were_imported_before_that_have_their_product() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", UNDER_ZERO3], cwd=ROOT, env=environment(LOCAL_RANK="0"), capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
