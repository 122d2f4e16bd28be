"""`full` trains everything that the architecture trains."""

from __future__ import annotations

import pytest
import torch

from peftkit.errors import ModelError
from peftkit.strategies import Full
from tests.strategies.names import NAMES, matching, tiny_on, training
from tests.tiny import FAMILIES, tiny


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("family", FAMILIES)
def test_all_but_the_fixed_weights_train(family: str, device: str) -> None:
    model = Full().adapt(tiny_on(device, family))
    assert training(model) == matching(model, "", fixed=NAMES[family].fixed)


def test_what_another_strategy_froze_trains_again() -> None:
    model = tiny("marian")
    before = training(model)
    Full().adapt(model).requires_grad_(False)
    assert training(Full().adapt(model)) == before


def test_merging_gives_the_model_itself() -> None:
    model = tiny("llama")
    assert Full().merge(Full().adapt(model)) is model


def test_quantised_weights_cannot_train() -> None:
    model = tiny("llama")
    model.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(
        torch.zeros(4, dtype=torch.uint8), requires_grad=False
    )
    with pytest.raises(ModelError, match=r"--strategy full trains model\.layers\.0\.mlp\.up_proj\.weight.*qlora"):
        Full().adapt(model)
