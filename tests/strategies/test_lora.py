"""LoRA on every architecture: what trains, what it refuses, and a merge that changes no logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from peftkit.errors import ExportError, ModelError
from peftkit.strategies import Lora
from peftkit.strategies.lora import task_type
from tests.strategies.names import training
from tests.tiny import FAMILIES, tiny
from tests.trained import head_of, inputs_for, logits, shake

LINEAR = {"bert": 13, "albert": 8, "gpt2": 8, "llama": 14, "t5": 32, "bart": 32, "vit": 12, "whisper": 32}
"""Linear layers of the tiny models outside their heads."""


def merged(
    family: str, strategy: Lora, fresh: Any = head_of, **config: Any
) -> tuple[torch.Tensor, torch.Tensor, nn.Module]:
    """Logits of the trained adapter model, and of the merged one, and that one."""
    model = tiny(family, **config)
    adapted = shake(strategy.adapt(model, fresh(model)))
    expected = logits(adapted, inputs_for(family))
    plain = strategy.merge(adapted)
    return expected, logits(plain, inputs_for(family)), plain


@pytest.mark.parametrize("family", FAMILIES)
def test_merging_changes_no_logits(family: str) -> None:
    expected, found, plain = merged(family, Lora(rank=4))
    assert_close(found, expected)
    assert type(plain) is type(tiny(family))
    assert plain.state_dict().keys() == tiny(family).state_dict().keys()


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize(
    "settings",
    [
        {"dora": True},
        {"rslora": True, "alpha": 3},
        {"bias": "all"},
        {"bias": "lora_only", "dora": True},
        {"layers": [1]},
        {"rank_pattern": {".*": 2}, "alpha_pattern": {".*": 1}},
        {"target_modules": r".*\.1\..*"},
    ],
    ids=str,
)
def test_merging_changes_no_logits_in_any_variant(family: str, settings: dict[str, Any]) -> None:
    expected, found, _ = merged(family, Lora(rank=4, **settings))
    assert_close(found, expected)
    assert not torch.allclose(found, logits(tiny(family), inputs_for(family)))


@pytest.mark.parametrize("family", LINEAR)
def test_all_linear_is_every_linear_layer_but_the_heads(family: str) -> None:
    model = tiny(family)
    adapted: Any = Lora(rank=4).adapt(model, head_of(model))
    assert len(adapted.base_model.targeted_module_names) == LINEAR[family]


def test_only_adapters_train() -> None:
    names = training(Lora(rank=4, target_modules=["q_proj", "v_proj"], layers=[1]).adapt(tiny("llama")))
    layer = "base_model.model.model.layers.1.self_attn"
    assert names == {f"{layer}.{part}_proj.lora_{half}.default.weight" for part in "qv" for half in "AB"}


def test_a_new_head_trains_whole() -> None:
    model = tiny("distilbert")
    names = training(Lora(target_modules=["q_lin"]).adapt(model, head_of(model)))
    heads = {name for name in names if "lora_" not in name}
    assert {name.split(".")[2] for name in heads} == {"pre_classifier", "classifier"}
    assert len(heads) == 4


def test_modules_to_save_train_whole_and_merge() -> None:
    expected, found, plain = merged("llama", Lora(rank=4, modules_to_save=["mlp"], target_modules=["q_proj"]))
    assert_close(found, expected)
    before = tiny("llama").get_parameter("model.layers.0.mlp.up_proj.weight")
    assert not torch.equal(plain.get_parameter("model.layers.0.mlp.up_proj.weight"), before)


def test_a_bf16_merge_rounds_once() -> None:
    strategy, name = Lora(rank=4), "model.layers.0.mlp.up_proj"
    adapted: Any = shake(strategy.adapt(tiny("llama").bfloat16()))
    layer = adapted.base_model.model.get_submodule(name)
    exact = layer.base_layer.weight.float() + layer.get_delta_weight("default").float()
    assert torch.equal(strategy.merge(adapted).get_submodule(name).weight, exact.bfloat16())


def test_adapters_are_fp32_on_a_bf16_base() -> None:
    adapted = Lora(rank=4).adapt(tiny("llama").bfloat16())
    assert {parameter.dtype for parameter in adapted.parameters() if parameter.requires_grad} == {torch.float32}


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_an_adapter_on_one_of_two_tied_layers_unties_them(target: str, tmp_path: Path) -> None:
    expected, found, plain = merged("llama", Lora(rank=4, target_modules=["q_proj", target]), tie_word_embeddings=True)
    assert_close(found, expected)
    plain.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert_close(logits(again, inputs_for("llama")), expected)
    assert not again.config.tie_word_embeddings


def test_tied_layers_stay_tied_without_an_adapter_on_them() -> None:
    _, _, plain = merged("llama", Lora(rank=4), tie_word_embeddings=True)
    assert plain.lm_head.weight is plain.model.embed_tokens.weight
    assert plain.config.tie_word_embeddings


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", "bart"])
def test_a_grown_vocabulary_trains_in_place_and_stays_tied(family: str, tmp_path: Path) -> None:
    model = tiny(family, tie_word_embeddings=True)
    model.resize_token_embeddings(330)
    table = model.get_input_embeddings().weight
    names = [name for name, parameter in model.named_parameters() if parameter is table]
    strategy = Lora(rank=4)
    adapted = shake(strategy.adapt(model, names))
    assert any(parameter is table and parameter.requires_grad for parameter in adapted.parameters())
    expected = logits(adapted, inputs_for(family))
    plain = strategy.merge(adapted)
    plain.save_pretrained(tmp_path)
    again = type(plain).from_pretrained(tmp_path)
    assert_close(logits(again, inputs_for(family)), expected)
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    assert expected.shape[-1] == 330


def test_modules_to_save_leave_a_tied_embedding_tied() -> None:
    expected, found, plain = merged("bart", Lora(rank=4, modules_to_save=["embed_tokens"]))
    assert_close(found, expected)
    assert plain.lm_head.weight is plain.model.encoder.embed_tokens.weight


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("settings", [{}, {"dora": True, "bias": "all"}], ids=str)
def test_the_meta_device_shows_the_same_parameters(family: str, settings: dict[str, Any]) -> None:
    strategy = Lora(rank=4, **settings)
    with torch.device("meta"):
        empty = tiny(family)
    plan, real = (strategy.adapt(model, head_of(model)) for model in (empty, tiny(family)))
    # wav2vec2 makes its mask's embedding by torch.Tensor(..), which no device context reaches.
    assert {p.device.type for n, p in plan.named_parameters() if "masked_spec_embed" not in n} == {"meta"}
    assert [(n, p.shape, p.requires_grad) for n, p in plan.named_parameters()] == [
        (n, p.shape, p.requires_grad) for n, p in real.named_parameters()
    ]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"target_modules": ["q_prj"]}, r"--strategy.target_modules 'q_prj' .*did you mean 'q_proj'.*v_proj \(2\)"),
        ({"target_modules": ["q_proj", "query"]}, r"--strategy.target_modules 'query' is no layer.*there are"),
        ({"target_modules": "h.*attn"}, r"--strategy.target_modules 'h\.\*attn': nothing to adapt; there are .*q_proj"),
        ({"layers": [1, 7]}, r"--strategy.layers \[7\].*0 to 1"),
        ({"modules_to_save": ["lmhead"]}, r"--strategy.modules_to_save 'lmhead'.*did you mean 'lm_head'"),
    ],
    ids=str,
)
def test_names_that_match_nothing_are_errors(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        Lora(**settings).adapt(tiny("llama"))


@pytest.mark.parametrize("value", ["(q", "", []], ids=repr)
def test_target_modules_that_say_nothing_are_refused_at_once(value: Any) -> None:
    with pytest.raises(ValidationError, match="target_modules"):
        Lora(target_modules=value)


def test_an_adapter_that_is_not_finite_cannot_be_merged() -> None:
    strategy = Lora(rank=4)
    adapted = strategy.adapt(tiny("llama"))
    next(p for n, p in adapted.named_parameters() if "lora_B" in n).data.fill_(torch.nan)
    with pytest.raises(ExportError, match="cannot be merged"):
        strategy.merge(adapted)


@pytest.mark.parametrize(
    ("family", "expected"),
    [("llama", "CAUSAL_LM"), ("bert", "SEQ_CLS"), ("t5", "SEQ_2_SEQ_LM"), ("marian", "SEQ_2_SEQ_LM"), ("vit", None)],
)
def test_peft_knows_the_task(family: str, expected: str | None) -> None:
    assert task_type(tiny(family)) == expected
