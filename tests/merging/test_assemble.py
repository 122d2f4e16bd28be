"""Names, ties and sizes: what is stored under other names, tied embeddings that part, vocabularies that grew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from peftkit.errors import ModelError
from peftkit.flows.merge import merge
from tests.merging.made import a_base, adapted, an_adapter, assert_as_peft, assert_same, merged_by_peft, opened, weights
from tests.trained import inputs_for, logits

SMALL: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 320,
}  # fmt: skip
SEEING = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def phi3() -> Any:
    return transformers.Phi3ForCausalLM(transformers.Phi3Config(**SMALL, pad_token_id=0))


def neox() -> Any:
    return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**SMALL))


def mixtral() -> Any:
    return transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**SMALL, num_local_experts=4, num_key_value_heads=2)
    )


def gpt_oss() -> Any:
    config = transformers.GptOssConfig(**SMALL, num_local_experts=4, num_key_value_heads=2, head_dim=8)
    return transformers.GptOssForCausalLM(config)


def llava() -> Any:
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**SEEING, image_size=16, patch_size=8),
        text_config=transformers.LlamaConfig(**SMALL, num_key_value_heads=2),
    )
    return transformers.LlavaForConditionalGeneration(config)


def qwen_vl() -> Any:
    config = transformers.Qwen2VLConfig(
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "patch_size": 8},
        text_config={**SMALL, "num_key_value_heads": 2, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}},
    )
    return transformers.Qwen2VLForConditionalGeneration(config)


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (phi3, {"target_modules": ["qkv_proj", "gate_up_proj"]}),
        (neox, {"target_modules": ["query_key_value"]}),
        (mixtral, {"target_modules": ["q_proj"]}),  # the files have other names, and experts in pieces
        (gpt_oss, {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]}),
        (llava, {"target_modules": ["q_proj"]}),  # the files have other names
        (qwen_vl, {"target_modules": ["q_proj", "patch_embed.proj"]}),  # a convolution in three dimensions
    ],
)  # fmt: skip
def test_fused_and_renamed_weights_are_found(make: Any, settings: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = make()
    model.save_pretrained(tmp_path / "base")
    names = weights(tmp_path / "base").keys()
    kind = type(model).__name__
    assert_as_peft(tmp_path, kind, **settings)
    assert weights(tmp_path / "out").keys() == names


def test_a_head_comes_onto_a_base_of_another_task(tmp_path: Path) -> None:
    """The base's own head is left out, and old names of its norms are read as transformers reads them."""
    base = a_base(tmp_path / "base", "bert", head="masked_lm")
    old = {
        name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): one
        for name, one in load_file(base / "model.safetensors").items()
    }
    save_file(old, base / "model.safetensors", metadata={"format": "pt"})
    model = assert_as_peft(tmp_path, "AutoModelForTokenClassification", target_modules=["query"], task_type="TOKEN_CLS")
    assert model.config.architectures == ["BertForTokenClassification"]


def test_a_base_without_a_head_and_its_prefix(tmp_path: Path) -> None:
    a_base(tmp_path / "base", "bert", head="base")
    kind = "AutoModelForSequenceClassification"
    assert_as_peft(tmp_path, kind, target_modules=["query"], task_type="SEQ_CLS")


@pytest.mark.parametrize("known", [{}, {"id2label": {0: "a", 1: "b", 2: "c"}}])
def test_more_labels_than_the_base_has(known: dict[str, Any], tmp_path: Path) -> None:
    base = a_base(tmp_path / "base", "llama", **known)
    kind = "AutoModelForSequenceClassification"
    model = opened(base, kind, num_labels=5)
    assert model.config.num_labels == 5
    adapter = an_adapter(tmp_path / "adapter", model, target_modules=["q_proj"], task_type="SEQ_CLS")
    merge(str(base), [adapter], tmp_path / "out")
    found = assert_same(tmp_path / "out", merged_by_peft(opened(base, kind, num_labels=5), [adapter]), kind)
    assert found.config.num_labels == 5


@pytest.mark.parametrize("targets", [["q_proj", "lm_head"], ["q_proj", "embed_tokens"]])
def test_an_adapter_on_one_of_two_tied_ends_parts_them(targets: list[str], tmp_path: Path) -> None:
    """PEFT's own merge changes both; the oracle is the adapted model itself."""
    base = a_base(tmp_path / "base", tie_word_embeddings=True)
    model = adapted(opened(base), target_modules=targets)
    model.save_pretrained(tmp_path / "adapter")
    expected = logits(model, inputs_for("llama"))
    merge(str(base), [tmp_path / "adapter"], tmp_path / "out")
    found = opened(tmp_path / "out")
    assert not found.config.tie_word_embeddings
    torch.testing.assert_close(logits(found, inputs_for("llama")), expected)


@pytest.mark.parametrize(
    ("settings", "stay_tied"),
    [
        ({"trainable_token_indices": [3, 5]}, True),
        ({"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, True),
        ({"modules_to_save": ["lm_head"]}, False),
        ({"modules_to_save": ["embed_tokens"]}, False),
    ],
)
def test_what_trains_tied_stays_tied(settings: dict[str, Any], stay_tied: bool, tmp_path: Path) -> None:
    a_base(tmp_path / "base", tie_word_embeddings=True)
    model = assert_as_peft(tmp_path, target_modules=["q_proj"], **settings)
    assert model.config.tie_word_embeddings == stay_tied
    assert ("lm_head.weight" in weights(tmp_path / "out")) != stay_tied


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("settings", [{}, {"modules_to_save": ["embed_tokens", "lm_head"]}])
def test_added_tokens_come_with_their_rows(tied: bool, settings: dict[str, Any], tmp_path: Path) -> None:
    base = a_base(tmp_path / "base", tie_word_embeddings=tied)
    grown = opened(base)
    grown.resize_token_embeddings(325)
    adapter = an_adapter(tmp_path / "adapter", grown, target_modules=["q_proj"], **settings)
    merge(str(base), [adapter], tmp_path / "out")
    plain = opened(base)
    plain.resize_token_embeddings(325, mean_resizing=False)
    assert assert_same(tmp_path / "out", merged_by_peft(plain, [adapter])).config.vocab_size == 325


def test_a_head_that_nobody_has_is_missed(tmp_path: Path) -> None:
    base = a_base(tmp_path / "base", "bert", head="masked_lm")  # without the pooler
    kind = "AutoModelForSequenceClassification"
    adapter = an_adapter(tmp_path / "adapter", opened(base, kind), target_modules=["query"], task_type="SEQ_CLS")
    with pytest.raises(ModelError, match=r"2 weights of BertForSequenceClassification .*bert.pooler.dense"):
        merge(str(base), [adapter], tmp_path / "out")
