"""The merge of a model in memory, written a layer at a time: the same files as from a model that was merged whole."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from peftkit.exporters import Merged
from peftkit.exporters.base import Reading
from peftkit.exporters.merged import mend
from peftkit.strategies import Lora, Qlora
from tests.tiny import FAMILIES, save_tiny, tiny
from tests.trained import head_of, inputs_for, logits, shake

HOW = Reading(auto_class="AutoModelForCausalLM", base="a/base")


def in_memory(model: Any, strategy: Any, folder: Path) -> dict[str, torch.Tensor]:
    plain = strategy.merge(deepcopy(model))
    mend(plain)
    plain.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def compare(model: Any, strategy: Any, folder: Path, reading: Reading = HOW) -> Any:
    """The streamed files are the others, and the model is as it was; returns the configuration that was saved."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if isinstance(tensor, torch.Tensor)}
    expected = in_memory(model, strategy, folder / "whole")
    (folder / "streamed").mkdir()
    Merged().write(model, strategy, folder / "streamed", reading, {})
    found = load_file(folder / "streamed" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert not [name for name in expected if not torch.equal(found[name], expected[name])]
    after = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, torch.Tensor)}
    assert all(torch.equal(before[name], after[name]) for name in before)
    saved = [transformers.AutoConfig.from_pretrained(folder / name).to_dict() for name in ("streamed", "whole")]
    assert {**saved[0], "_name_or_path": ""} == {**saved[1], "_name_or_path": ""}
    return saved[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_architecture(family: str, tmp_path: Path) -> None:
    plain = tiny(family)
    strategy = Lora(rank=4)
    compare(shake(strategy.adapt(plain, head_of(plain))), strategy, tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"dora": True},
        {"rslora": True, "rank_pattern": {"up_proj": 6}},
        {"bias": "all"},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["norm"]},
    ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_every_setting(settings: dict[str, Any], tied: bool, tmp_path: Path) -> None:
    strategy = Lora.model_validate({"rank": 4, **settings})
    config = compare(shake(strategy.adapt(tiny("llama", tie_word_embeddings=tied))), strategy, tmp_path)
    assert config["tie_word_embeddings"] == tied


def test_an_adapter_on_one_of_two_tied_ends_parts_them(tmp_path: Path) -> None:
    strategy = Lora(rank=4, target_modules=["lm_head", "q_proj"])
    model = shake(strategy.adapt(tiny("llama", tie_word_embeddings=True)))
    expected = logits(model, inputs_for("llama"))
    assert not compare(model, strategy, tmp_path)["tie_word_embeddings"]
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "streamed")
    torch.testing.assert_close(logits(opened, inputs_for("llama")), expected)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_4bit_base_is_unpacked_a_layer_at_a_time(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    auto = transformers.AutoModelForMaskedLM if family == "bert" else transformers.AutoModelForCausalLM
    base = save_tiny(tmp_path / "base", family, head="masked_lm" if family == "bert" else None)
    strategy = Qlora(rank=4)
    model = shake(strategy.adapt(auto.from_pretrained(base, dtype=dtype, **strategy.loading(dtype))))
    reading = Reading("AutoModelForCausalLM", "b", dtype=str(dtype).removeprefix("torch."))
    config = compare(model, strategy, tmp_path, reading)
    assert "quantization_config" not in config


def test_what_is_stored_in_other_pieces_is_merged_in_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Mixtral computes with all experts in one tensor, and stores each alone."""
    config = transformers.MixtralConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        num_local_experts=2, vocab_size=32,
    )  # fmt: skip
    torch.manual_seed(0)
    strategy = Lora(rank=2)
    model = shake(strategy.adapt(transformers.MixtralForCausalLM(config)))
    ids = {"input_ids": torch.arange(8).reshape(1, 8)}
    expected = logits(model, ids)
    Merged().write(model, strategy, tmp_path, HOW, {})
    assert "not streamed" in caplog.text
    torch.testing.assert_close(logits(Merged().open(tmp_path, HOW), ids), expected)
