"""PEFT without bitsandbytes: the same adapters, and 4-bit layers all the same where there are some."""

import subprocess
import sys
from pathlib import Path

import torch

from peftkit.strategies.library import asking_no_other, peft
from tests.tiny import tiny

SCRIPT = """
import sys
import peftkit.models.load
from peftkit.strategies import Lora
from tests.tiny import tiny
adapted = Lora(rank=2).adapt(tiny("llama"))
print(sorted({"bitsandbytes", "torchao", "scipy.optimize", "torch._inductor.compile_fx"} & {*sys.modules}))
import bitsandbytes
import peft.helpers
from transformers.loss.loss_for_object_detection import linear_sum_assignment
print(peft.helpers.bnb.nn is bitsandbytes.nn, linear_sum_assignment([[1, 2], [2, 5]])[1].tolist())
layer = bitsandbytes.nn.Linear4bit(64, 32)
layer.load_state_dict({"weight": __import__("torch").randn(32, 64)}, strict=False)
from torch import nn
model = nn.Sequential(nn.Linear(64, 64), layer.to("cpu"))
model.is_loaded_in_4bit = True
from peftkit.strategies.library import asking_no_other, peft
with asking_no_other(model):
    made = peft().get_peft_model(model, peft().LoraConfig(target_modules=["0", "1"], r=2))
print(type(made.base_model.model[0]).__name__, type(made.base_model.model[1]).__name__)
"""


def test_bitsandbytes_torchao_and_scipy_wait_for_their_use() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[]", "True [1, 0]", "Linear Linear4bit"]


def test_the_adapters_are_those_that_peft_makes_by_itself() -> None:
    config = peft().LoraConfig(target_modules="all-linear", r=2)
    made = []
    for within in (asking_no_other, None):
        torch.manual_seed(0)
        model = tiny("llama")
        if within:
            with within(model):
                made.append(peft().get_peft_model(model, config))
        else:
            made.append(peft().get_peft_model(model, config))
    ours, theirs = made
    assert [(name, type(one)) for name, one in ours.named_modules()] == [
        (name, type(one)) for name, one in theirs.named_modules()
    ]
    assert {name: one.shape for name, one in ours.state_dict().items()} == {
        name: one.shape for name, one in theirs.state_dict().items()
    }
