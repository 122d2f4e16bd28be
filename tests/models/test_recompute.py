"""Activations that are computed again: the same numbers, and selectively no product twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from peftkit.kernels.trunk import free_trunk
from peftkit.models.recompute import recompute
from peftkit.strategies import Strategy
from tests.tiny import tiny
from tests.trained import inputs_for, shake


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "bart", "vit"])
@pytest.mark.parametrize("strategy", ["full", "lora"])
def test_the_gradient_is_the_same_and_only_what_is_cheap_is_computed_again(
    family: str, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same operators run on the same numbers; products round by where their operands lie in memory, so 1e-5 of the largest."""
    monkeypatch.setattr(torch.nn.functional, "linear", torch._C._nn.linear)  # ZeRO-3 leaves its own behind
    expected, once = step(family, strategy, False)
    selective, still_once = step(family, strategy, "selective")
    assert still_once == once
    for how in (True, "offload"):
        found, more = step(family, strategy, how)
        assert more > once
        same(found, expected)
    same(selective, expected)


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name],
            value,
            rtol=1e-5,
            atol=1e-5 * float(value.abs().max()),
            msg=lambda text, name=name: f"{name}: {text}",
        )


def step(family: str, strategy: str, how: Any) -> tuple[dict[str, torch.Tensor], int]:
    """The gradients, and the backward pass's FLOPs."""
    model: Any = tiny(family)
    if how:
        recompute(model, how)
    torch.manual_seed(0)
    adapted: nn.Module = shake(Strategy.model_validate(strategy).adapt(model))
    free_trunk(adapted)  # else a gradient is computed for the embeddings, too
    logits = adapted(**inputs_for(family)).logits
    counter = FlopCounterMode(display=False)
    with counter:
        logits.float().square().sum().backward()
    gradients = {name: weight.grad for name, weight in adapted.named_parameters() if weight.grad is not None}
    return gradients, counter.get_total_flops()
