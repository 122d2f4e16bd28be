"""What is found in a model, on architectures that no line of the code names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from peftkit.models.inspect import (
    Count,
    count,
    depth_of,
    elements,
    head_paths,
    linear_layers,
    norm_parameters,
    places,
    stacks,
)
from tests.strategies.names import LAST, NAMES, in_layers, matching
from tests.tiny import FAMILIES, tiny

STACKS = {
    "bert": [("bert.encoder.layer", "encoder")],
    "roberta": [("roberta.encoder.layer", "encoder")],
    "albert": [("albert.encoder.albert_layer_groups", "encoder")],
    "distilbert": [("distilbert.transformer.layer", "encoder")],
    "electra": [("electra.encoder.layer", "encoder")],
    "vit": [("vit.layers", "encoder")],
    "gpt2": [("transformer.h", "decoder")],
    "llama": [("model.layers", "decoder")],
    "qwen": [("model.layers", "decoder")],
    "gemma": [("model.layers", "decoder")],
    "t5": [("encoder.block", "encoder"), ("decoder.block", "decoder")],
    "bart": [("model.encoder.layers", "encoder"), ("model.decoder.layers", "decoder")],
    "marian": [("model.encoder.layers", "encoder"), ("model.decoder.layers", "decoder")],
    "whisper": [("model.encoder.layers", "encoder"), ("model.decoder.layers", "decoder")],
    "resnet": [("resnet.encoder.stages", "encoder")],
    "convnext": [("convnext.encoder.stages", "encoder")],
    "efficientnet": [("efficientnet.encoder.blocks", "encoder")],
    "wav2vec2": [("wav2vec2.encoder.layers", "encoder")],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_stacks_are_found_with_their_side(family: str) -> None:
    assert [(s.path, s.layers, s.side) for s in stacks(tiny(family))] == [
        (path, LAST[family] + 1, side) for path, side in STACKS[family]
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_has_its_place(family: str) -> None:
    model, names = tiny(family), NAMES[family]
    found = places(model)
    by_part = {part: {name for name in found if found[name].part == part} for part in ("layer", "after", "head")}
    assert list(found) == [name for name, _ in model.named_parameters()]
    assert by_part == {
        "layer": in_layers(model, family, *range(LAST[family] + 1)),
        "after": matching(model, names.after),
        "head": matching(model, names.head),
    }


@pytest.mark.parametrize("family", ["gpt2", "gemma", "t5", "bart", "marian", "whisper"])
def test_a_tied_head_is_known_at_the_embeddings(family: str) -> None:
    model = tiny(family)
    found = places(model)
    tied = [name for name, place in found.items() if place.is_head_too]
    assert [dict(model.named_parameters())[name] is model.get_output_embeddings().weight for name in tied] == [True]


def bigger(kind: str, config: str, **values: Any) -> nn.Module:
    """Architectures that tests/tiny.py does not have, without weights."""
    with torch.device("meta"):
        return getattr(transformers, kind)(getattr(transformers, config)(**values))


@pytest.mark.parametrize(
    ("kind", "config", "expected"),
    [
        ("MambaForCausalLM", "MambaConfig", ["decoder"]),  # no attention
        ("BloomForCausalLM", "BloomConfig", ["decoder"]),  # no causal flag
        ("OPTForCausalLM", "OPTConfig", ["decoder"]),
        ("SwinForImageClassification", "SwinConfig", ["encoder"]),  # stages of layers
        ("ConvNextForImageClassification", "ConvNextConfig", ["encoder"]),
        ("Wav2Vec2ForCTC", "Wav2Vec2Config", ["encoder"]),  # a stack of convolutions feeds the layers
        ("LEDForConditionalGeneration", "LEDConfig", ["encoder", "decoder"]),
        ("LlavaForConditionalGeneration", "LlavaConfig", ["encoder", "decoder"]),
        ("T5ForTokenClassification", "T5Config", ["encoder"]),
        ("WhisperForAudioClassification", "WhisperConfig", ["encoder"]),
        ("MixtralForCausalLM", "MixtralConfig", ["decoder"]),
    ],
)
def test_sides_of_other_architectures(kind: str, config: str, expected: list[str]) -> None:
    assert [stack.side for stack in stacks(bigger(kind, config))] == expected


def test_bert_as_a_decoder_is_one() -> None:
    model = bigger("BertLMHeadModel", "BertConfig", is_decoder=True)
    assert [stack.side for stack in stacks(model)] == ["decoder"]


def test_a_head_inside_a_composed_model_is_found() -> None:
    half = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 32}
    sides = transformers.BertConfig(**half), transformers.BertConfig(**half, is_decoder=True, add_cross_attention=True)
    model = transformers.EncoderDecoderModel(transformers.EncoderDecoderConfig.from_encoder_decoder_configs(*sides))
    assert head_paths(model) == ["decoder.cls"]
    assert [stack.side for stack in stacks(model)] == ["encoder", "decoder"]


@pytest.mark.parametrize(
    ("kind", "config", "norm", "part"),
    [
        ("OPTForCausalLM", "OPTConfig", "model.decoder.final_layer_norm.weight", "after"),  # registered before them
        ("BartForConditionalGeneration", "BartConfig", "model.encoder.layernorm_embedding.weight", "embeddings"),
        ("Wav2Vec2ForCTC", "Wav2Vec2Config", "wav2vec2.encoder.layer_norm.weight", "embeddings"),
    ],
)
def test_norms_are_placed_by_the_flow_of_data(kind: str, config: str, norm: str, part: str) -> None:
    assert places(bigger(kind, config))[norm].part == part


@pytest.mark.parametrize("kind", ["Wav2Vec2", "Hubert", "WavLM", "UniSpeech"])
def test_the_norm_of_a_stable_speech_encoder_follows_its_layers(kind: str) -> None:
    found = places(bigger(f"{kind}ForCTC", f"{kind}Config", do_stable_layer_norm=True, feat_extract_norm="layer"))
    assert [place.part for name, place in found.items() if name.endswith("encoder.layer_norm.weight")] == ["after"]


@pytest.mark.parametrize("kind", ["bert", "t5", "llama"])
def test_a_bare_model_has_no_head(kind: str) -> None:
    assert head_paths(tiny(kind, head="base")) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_depth_counts_from_the_embeddings_to_the_head(family: str) -> None:
    model, names = tiny(family), NAMES[family]
    depth = depth_of(model)
    top = sum(stack.layers for stack in stacks(model)) + 1
    lowest = NAMES[family].encoder if len(stacks(model)) == 2 else ""
    assert {depth[name] for name in matching(model, names.embeddings)} == {0}
    assert {depth[name] for name in in_layers(model, family, 0) & matching(model, lowest)} == {1}
    assert {depth[name] for name in matching(model, names.head)} <= {top}
    assert max(depth[name] for name in in_layers(model, family, LAST[family])) == top - 1


def test_a_decoder_lies_above_its_encoder() -> None:
    depth = depth_of(tiny("t5"))
    assert [depth[f"{side}.block.{layer}.layer.0.SelfAttention.q.weight"] for side in ("encoder", "decoder")
            for layer in (0, 1)] == [1, 2, 3, 4]  # fmt: skip
    assert (depth["encoder.final_layer_norm.weight"], depth["decoder.final_layer_norm.weight"]) == (2, 5)


def test_depth_is_the_same_under_an_adapter() -> None:
    from peft import LoraConfig, get_peft_model

    model = tiny("bert")
    plain = depth_of(model)
    adapted = get_peft_model(model, LoraConfig(target_modules=["query"], modules_to_save=["classifier"]))
    depth = depth_of(adapted)
    beside = {name: plain[name.removeprefix("base_model.model.").replace("base_layer.", "")]
              for name in depth if "lora_" not in name and "classifier" not in name}  # fmt: skip
    assert {name: depth[name] for name in beside} == beside
    assert {depth[name] for name in depth if "layer.1" in name and "lora_" in name} == {2}
    assert {depth[name] for name in depth if "classifier" in name} == {3}


def test_linear_layers_leave_the_head_out() -> None:
    model = tiny("llama")
    kinds = {name.rpartition(".")[2] for name in linear_layers(model)}
    assert kinds == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert set(linear_layers(model, head=True)) - set(linear_layers(model)) == {"lm_head"}


def test_transposed_layers_of_gpt2_are_linear_too() -> None:
    assert {name.rpartition(".")[2] for name in linear_layers(tiny("gpt2"))} == {"c_attn", "c_proj", "c_fc"}


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_are_the_parameters_named_so(family: str) -> None:
    model = tiny(family)
    assert norm_parameters(model) == matching(
        model, r"(?i).*norm", r".*\.ln_", r".*_bn\.", r".*downsampling_layer\.0\."
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_the_same_without_weights(family: str) -> None:
    with torch.device("meta"):
        blank = tiny(family)
    model = tiny(family)
    assert count(blank) == count(model)
    assert count(model).total == model.num_parameters()


def test_the_trainable_share() -> None:
    model = tiny("llama")
    model.model.requires_grad_(False)
    head = model.lm_head.weight.numel()
    assert count(model) == Count(model.num_parameters(), head)
    assert count(model).share == head / model.num_parameters()


def test_four_bit_weights_count_in_full() -> None:
    from bitsandbytes.nn import Linear4bit

    layer = Linear4bit(64, 32, bias=False)
    whole = elements(layer.weight)
    layer.to("cpu")  # packs two numbers a byte
    assert (layer.weight.numel(), whole, elements(layer.weight)) == (1024, 2048, 2048)


def test_a_partitioned_parameter_counts_in_full() -> None:
    parameter = nn.Parameter(torch.empty(0))
    parameter.ds_numel = 48  # type: ignore[attr-defined]  # what ZeRO-3 leaves on it
    assert elements(parameter) == 48
