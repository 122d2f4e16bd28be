"""`layerwise` trains the layers that are named, and more of them as a gradual run goes on."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from torch import nn

from peftkit.errors import ModelError
from peftkit.strategies import Layerwise
from tests.strategies.names import LAST, NAMES, in_layers, matching, tiny_on, training
from tests.tiny import FAMILIES, tiny


def adapted(family: str, device: str = "cpu", **settings: Any) -> nn.Module:
    return Layerwise(**settings).adapt(tiny_on(device, family))


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layer_trains_with_what_follows_it_and_the_head(family: str, device: str) -> None:
    model, names = adapted(family, device, last=1), NAMES[family]
    assert training(model) == in_layers(model, family, LAST[family]) | matching(model, names.after, names.head)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "albert"])
def test_the_first_layer_trains_without_what_follows_the_last(family: str) -> None:
    model = adapted(family, first=1, head=False)
    assert training(model) == in_layers(model, family, 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_are_switched_on_by_themselves(family: str) -> None:
    model = adapted(family, last=0, head=False, embeddings=True)
    assert training(model) == matching(model, NAMES[family].embeddings, fixed=NAMES[family].fixed)


def test_two_layers_train_where_none_are_named() -> None:
    model = Layerwise(head=False).adapt(tiny("llama", num_hidden_layers=4))
    assert training(model) == in_layers(model, "llama", 2, 3) | {"model.norm.weight"}


@pytest.mark.parametrize("words", [["1-2"], ["decoder.1-2"], ["model.layers.1", "2"]])
def test_layers_are_named_by_number_side_or_path(words: list[str]) -> None:
    model = Layerwise(layers=words, head=False).adapt(tiny("llama", num_hidden_layers=4))
    assert training(model) == in_layers(model, "llama", 1, 2)


def test_sides_are_named_apart() -> None:
    model = adapted("bart", layers=["encoder.0", "decoder.1"], head=False)
    assert training(model) == matching(model, r"model\.encoder\.layers\.0\.", r"model\.decoder\.layers\.1\.")


def test_norms_train_wherever_they_lie() -> None:
    model = adapted("llama", last=0, head=False, norms=True)
    assert training(model) == matching(model, r".*norm\.weight")


def test_a_tied_head_trains_with_the_embeddings() -> None:
    model = adapted("gemma", last=0, embeddings=True)
    assert model.lm_head.weight.requires_grad
    assert not adapted("gemma", last=1).lm_head.weight.requires_grad


@pytest.mark.parametrize("words", ["4", "2-4", "encoder.0", "model.blocks.0", "3-1"])
def test_layers_that_are_not_there_are_named(words: str) -> None:
    with pytest.raises(ModelError, match=rf"--strategy\.layers {words} .*model\.layers\.0-3 \(decoder\)"):
        Layerwise(layers=[words]).adapt(tiny("llama", num_hidden_layers=4))


@pytest.mark.parametrize("flag", ["last", "first"])
def test_more_layers_than_there_are_is_a_mistake(flag: str) -> None:
    with pytest.raises(ModelError, match=rf"--strategy\.{flag} 3: the model's longest stack has 2 layers"):
        Layerwise(**{flag: 3}).adapt(tiny("llama"))


def test_training_nothing_is_a_mistake() -> None:
    with pytest.raises(
        ModelError, match=r"--strategy layerwise would train nothing in GemmaForCausalLM; it has model.layers"
    ):
        Layerwise(last=0).adapt(tiny("gemma"))


@pytest.mark.parametrize("words", ["x", "1-", "decoder", "1,2", ".1"])
def test_an_unreadable_range_is_refused_before_any_model(words: str) -> None:
    with pytest.raises(ValidationError):
        Layerwise(layers=[words])


def test_gradual_unfreezing_knows_no_other_order() -> None:
    with pytest.raises(ValidationError, match="from the top down"):
        Layerwise(unfreeze_every=5, first=1)


def test_each_stage_adds_the_next_layers_down() -> None:
    strategy = Layerwise(last=1, unfreeze_every=10, unfreeze_layers=2, embeddings=True)
    model = tiny("llama", num_hidden_layers=4)
    assert [strategy.stage(step) for step in (0, 9, 10, 25)] == [0, 0, 1, 2]
    assert strategy.last_stage(model) == 3
    strategy.adapt(model)
    top = matching(model, r"model\.norm\.", r"lm_head\.")
    stages = [training(model)]
    for stage in (1, 2, 3):
        strategy.unfreeze(model, stage)
        stages.append(training(model))
    assert stages == [
        top | in_layers(model, "llama", 3),
        top | in_layers(model, "llama", 1, 2, 3),
        top | in_layers(model, "llama", 0, 1, 2, 3),
        matching(model, ""),
    ]


def test_unfreezing_goes_straight_to_a_later_stage_and_keeps_what_is_fresh() -> None:
    strategy = Layerwise(unfreeze_every=1, head=False)
    model = strategy.adapt(tiny("bert"), fresh=["classifier.weight", "classifier.bias"])
    assert training(model) == {"classifier.weight", "classifier.bias"}
    strategy.unfreeze(model, 9)
    assert training(model) == matching(model, r"bert\.(encoder|pooler)\.", r"classifier\.")


def test_unfreezing_leaves_fixed_weights_fixed() -> None:
    strategy = Layerwise(last=1, unfreeze_every=1, embeddings=True)
    model = strategy.adapt(tiny("whisper"))
    strategy.unfreeze(model, strategy.last_stage(model))
    assert training(model) == matching(model, "", fixed=NAMES["whisper"].fixed)
