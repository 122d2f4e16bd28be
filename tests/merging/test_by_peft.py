"""Merges by PEFT's layers on a hollow model: every kind of adapter and of layer, and several at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from peftkit.errors import ConfigError, ModelError
from peftkit.flows.merge import merge
from tests.merging.made import a_base, an_adapter, assert_as_peft, assert_same, merged_by_peft, opened

SEQ2SEQ, IMAGES = "AutoModelForSeq2SeqLM", "AutoModelForImageClassification"
LAYERS: list[tuple[str, str, dict[str, Any]]] = [
    ("llama", "AutoModelForCausalLM", {"target_modules": "all-linear", "use_dora": True}),
    ("llama", "AutoModelForCausalLM", {"target_modules": ["embed_tokens", "q_proj"]}),
    ("llama", "AutoModelForCausalLM", {"target_modules": ["embed_tokens"], "use_dora": True}),
    ("llama", "AutoModelForCausalLM", {"target_modules": ["q_proj"], "trainable_token_indices": [3, 5]}),
    ("llama", "AutoModelForCausalLM", {"target_modules": ["q_proj"], "target_parameters": ["mlp.up_proj.weight"]}),
    ("llama", "AutoModelForCausalLM", {"target_modules": ["q_proj"], "layers_to_transform": [1]}),
    ("llama", "AutoModelForCausalLM", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
    ("qwen", "AutoModelForCausalLM", {"target_modules": ["q_proj"], "lora_bias": True}),
    ("gpt2", "AutoModelForCausalLM", {"target_modules": ["c_attn", "c_proj"]}),
    ("gpt2", "AutoModelForCausalLM", {"target_modules": ["c_attn", "c_proj"], "use_dora": True}),
    ("bert", "AutoModelForSequenceClassification", {"target_modules": ["query"], "task_type": "SEQ_CLS"}),
    ("t5", SEQ2SEQ, {"target_modules": ["q", "v"], "task_type": "SEQ_2_SEQ_LM"}),
    ("resnet", IMAGES, {"target_modules": ["convolution"], "modules_to_save": ["classifier"]}),
    ("resnet", IMAGES, {"target_modules": ["convolution"], "use_dora": True}),
    ("wav2vec2", "AutoModelForCTC", {"target_modules": ["conv_layers.1.conv", "q_proj"]}),
    ("whisper", "AutoModelForSpeechSeq2Seq", {"target_modules": ["q_proj", "v_proj"]}),
]
KINDS = {
    "loha": lambda: peft.LoHaConfig(target_modules=["q_proj", "up_proj"]),
    "lokr": lambda: peft.LoKrConfig(target_modules=["q_proj", "up_proj"]),
    "ia3": lambda: peft.IA3Config(target_modules=["q_proj", "up_proj"], feedforward_modules=["up_proj"]),
    "oft": lambda: peft.OFTConfig(target_modules=["q_proj"], oft_block_size=4, r=0),
    "adalora": lambda: peft.AdaLoraConfig(target_modules=["q_proj"], total_step=10),
    "vera": lambda: peft.VeraConfig(target_modules=["q_proj"], r=4),
    "boft": lambda: peft.BOFTConfig(target_modules=["q_proj"], boft_block_size=4),
    "hra": lambda: peft.HRAConfig(target_modules=["q_proj"], r=4),
    "miss": lambda: peft.MissConfig(target_modules=["q_proj"], r=4),
    "fourierft": lambda: peft.FourierFTConfig(target_modules=["q_proj"], n_frequency=10),
    "tokens": lambda: peft.TrainableTokensConfig(target_modules=["embed_tokens"], token_indices=[3, 7]),
    "layer norms": lambda: peft.LNTuningConfig(target_modules=["norm"]),
}
METHODS = [
    ("linear", {}), ("cat", {}), ("svd", {}), ("ties", {"density": 0.5}), ("dare_linear", {"density": 0.5}),
    ("dare_ties", {"density": 0.5}), ("dare_ties_svd", {"density": 0.5}), ("magnitude_prune", {"density": 0.5}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "kind", "settings"), LAYERS)
def test_every_kind_of_layer_is_merged_as_peft_does(
    family: str, kind: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    a_base(tmp_path / "base", family)
    assert_as_peft(tmp_path, kind, **settings)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_adapter_is_merged_as_peft_does(name: str, tmp_path: Path) -> None:
    a_base(tmp_path / "base")
    assert_as_peft(tmp_path, config=KINDS[name]())


@pytest.mark.parametrize(("method", "words"), METHODS)
def test_several_adapters_are_combined_as_peft_does(method: str, words: dict[str, Any], tmp_path: Path) -> None:
    base = a_base(tmp_path / "base")
    targets = ["q_proj", "up_proj"] + ["embed_tokens"] * (method in ("linear", "cat", "svd"))
    adapters = [
        an_adapter(tmp_path / f"adapter-{seed}", opened(base), seed, target_modules=targets) for seed in (1, 2, 3)
    ]
    merge(str(base), adapters, tmp_path / "out", combine=method, weights=(0.7, 0.3, -0.2), seed=5, **words)
    expected = merged_by_peft(opened(base), adapters, method, 5, weights=[0.7, 0.3, -0.2], **words)
    assert_same(tmp_path / "out", expected)


def test_left_out_several_adapters_add_up(tmp_path: Path) -> None:
    base = a_base(tmp_path / "base")
    adapters = [
        an_adapter(tmp_path / f"adapter-{seed}", opened(base), seed, r=rank, target_modules=["q_proj"])
        for seed, rank in ((1, 4), (2, 6))
    ]
    merge(str(base), adapters, tmp_path / "out")
    after, before = opened(tmp_path / "out").state_dict(), opened(base).state_dict()
    each = [merged_by_peft(opened(base), [adapter]).state_dict() for adapter in adapters]
    for name, value in after.items():
        torch.testing.assert_close(value, before[name] + sum(one[name] - before[name] for one in each))


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"modules_to_save": ["norm"]}, {"lora_bias": True}])
def test_what_peft_would_combine_by_halves_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    base = a_base(tmp_path / "base", "qwen")
    adapters = [
        an_adapter(tmp_path / f"adapter-{seed}", opened(base), seed, target_modules=["q_proj"], **settings)
        for seed in (1, 2)
    ]
    with pytest.raises(ConfigError, match="more than the products of LoRA"):
        merge(str(base), adapters, tmp_path / "out", combine="linear")
    assert not (tmp_path / "out").exists()


def test_ranks_that_do_not_go_together_are_refused_in_pefts_words(tmp_path: Path) -> None:
    base = a_base(tmp_path / "base")
    adapters = [
        an_adapter(tmp_path / f"adapter-{rank}", opened(base), r=rank, target_modules=["q_proj"]) for rank in (2, 4)
    ]
    with pytest.raises(ConfigError, match="--combine linear: All adapters must have the same r value"):
        merge(str(base), adapters, tmp_path / "out", combine="linear")


def test_grouped_convolutions_are_refused_by_name(tmp_path: Path) -> None:
    base = a_base(tmp_path / "base", "convnext")
    adapter = an_adapter(tmp_path / "adapter", opened(base, IMAGES), r=16, target_modules=["dwconv"])
    with pytest.raises(ModelError, match=r"dwconv.* cannot be merged: Merging is not supported .* groups"):
        merge(str(base), [adapter], tmp_path / "out")
