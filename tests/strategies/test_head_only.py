"""`head_only` trains what lies outside the base model."""

from __future__ import annotations

import pytest
import torch

from peftkit.errors import ModelError
from peftkit.strategies import HeadOnly
from tests.strategies.names import NAMES, NOTHING, matching, tiny_on, training
from tests.tiny import FAMILIES, tiny

WITH_HEAD = [family for family in FAMILIES if NAMES[family].head != NOTHING]
TIED = [family for family in FAMILIES if NAMES[family].head == NOTHING]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("family", WITH_HEAD)
def test_exactly_the_head_trains(family: str, device: str) -> None:
    model = HeadOnly().adapt(tiny_on(device, family))
    assert training(model) == matching(model, NAMES[family].head)


@pytest.mark.parametrize("family", TIED)
def test_a_tied_head_cannot_train_alone(family: str) -> None:
    with pytest.raises(
        ModelError, match=r"is tied to the embeddings .* --strategy layerwise --strategy.embeddings true"
    ):
        HeadOnly().adapt(tiny(family))


def test_a_masked_language_model_trains_what_is_not_tied() -> None:
    model = HeadOnly().adapt(tiny("bert", head="masked_lm"))
    assert training(model) == matching(model, r"cls\.predictions\.(bias|transform)")


def test_an_untied_seq2seq_head_trains() -> None:
    model = tiny("t5")
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())  # as in T5 1.1
    assert training(HeadOnly().adapt(model)) == {"lm_head.weight"}


def test_fresh_weights_outside_the_head_train_with_it() -> None:
    pooler = ["bert.pooler.dense.weight", "bert.pooler.dense.bias"]
    model = HeadOnly().adapt(tiny("bert"), fresh=pooler)
    assert training(model) == {*pooler, "classifier.weight", "classifier.bias"}


def test_a_model_without_head_is_refused() -> None:
    with pytest.raises(ModelError, match="BertModel has no head"):
        HeadOnly().adapt(tiny("bert", head="base"))
