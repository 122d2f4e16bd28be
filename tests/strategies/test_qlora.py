"""QLoRA: the 4-bit base stays whole, and the merge is into the weights that it was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from peftkit.config.run import Run
from peftkit.errors import ConfigError
from peftkit.strategies import Qlora, Strategy, qlora
from peftkit.strategies.qlora import four_bit_layers
from tests.strategies.names import training
from tests.tiny import model_class, save_tiny
from tests.trained import inputs_for, logits, shake

pytest.importorskip("bitsandbytes")
BITS = {
    "llama": {"hidden_size": 64, "intermediate_size": 128},
    "gpt2": {"n_embd": 64, "n_inner": 128},
    "t5": {},
    "bert": {},
}
"""Sizes at which the weights have several blocks of 64."""


def loaded(folder: Path, family: str, strategy: Strategy, head: str | None = None) -> tuple[Any, list[str]]:
    """A 4-bit model of the family, and the names of what its checkpoint lacks."""
    save_tiny(folder, family, **BITS.get(family, {}), **({"head": head} if head else {}))
    model, report = model_class(family).from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, **strategy.loading(torch.float32)
    )
    return model, sorted(report["missing_keys"])


@pytest.mark.parametrize("family", BITS)
@pytest.mark.parametrize("settings", [{}, {"dora": True, "quant_type": "fp4", "double_quant": False}], ids=str)
def test_merging_changes_no_logits(family: str, settings: dict[str, Any], tmp_path: Path) -> None:
    strategy = Qlora(rank=4, **settings)
    adapted = shake(strategy.adapt(*loaded(tmp_path / "base", family, strategy)))
    expected = logits(adapted, inputs_for(family))
    plain = strategy.merge(adapted)
    assert_close(logits(plain, inputs_for(family)), expected)
    plain.save_pretrained(tmp_path / "merged")
    again, report = model_class(family).from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(logits(again, inputs_for(family)), logits(plain, inputs_for(family)))


def test_a_merged_model_is_an_ordinary_one(tmp_path: Path) -> None:
    strategy = Qlora(rank=4)
    plain: Any = strategy.merge(strategy.adapt(*loaded(tmp_path, "gpt2", strategy)))
    assert not four_bit_layers(plain)
    assert {type(parameter) for parameter in plain.parameters()} == {nn.Parameter}
    assert "quantization_config" not in plain.config.to_dict()
    assert plain.half().dtype == torch.float16  # refused for quantised models


def test_a_new_head_trains_whole_and_in_full_precision(tmp_path: Path) -> None:
    strategy = Qlora(rank=4, target_modules=["q_lin"])
    model, fresh = loaded(tmp_path, "distilbert", strategy, head="base")
    adapted = shake(strategy.adapt(model, fresh))
    heads = {name for name in training(adapted) if "lora_" not in name}
    assert {name.split(".")[2] for name in heads} == {"pre_classifier", "classifier"}
    expected = logits(adapted, inputs_for("distilbert"))
    assert_close(logits(strategy.merge(adapted), inputs_for("distilbert")), expected)


def test_evaluating_leaves_the_four_bit_weights_alone(tmp_path: Path) -> None:
    strategy = Qlora(rank=4)
    model, _ = loaded(tmp_path, "llama", strategy)
    for layer in four_bit_layers(model).values():
        layer.support_avx512bf16_for_cpu = True  # as on processors that have it; elsewhere this test could not fail
    adapted = strategy.adapt(model)
    before = {name: layer.weight.data.clone() for name, layer in four_bit_layers(adapted).items()}
    logits(adapted, inputs_for("llama"))
    assert len(before) == 14
    assert all(torch.equal(layer.weight.data, before[name]) for name, layer in four_bit_layers(adapted).items())


def test_adapting_returns_to_training_and_trains_only_adapters(tmp_path: Path) -> None:
    strategy = Qlora(rank=4)
    model, _ = loaded(tmp_path, "llama", strategy)
    assert not model.training
    adapted = strategy.adapt(model)
    assert adapted.training
    assert all("lora_" in name for name in training(adapted))
    adapted(**inputs_for("llama")).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in adapted.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("storage", ["uint8", "float32", "bfloat16"])
def test_storage_changes_no_value(storage: str, tmp_path: Path) -> None:
    strategy = Qlora.model_validate({"storage_dtype": storage})
    model, _ = loaded(tmp_path, "llama", strategy)
    assert {layer.weight.dtype for layer in four_bit_layers(model).values()} == {getattr(torch, storage)}
    uint8, _ = loaded(tmp_path, "llama", Qlora())
    assert torch.equal(
        logits(strategy.adapt(model), inputs_for("llama")), logits(Qlora().adapt(uint8), inputs_for("llama"))
    )


def test_a_storage_that_the_engine_would_cast_is_a_clash() -> None:
    strategy = {"name": "qlora", "storage_dtype": "float32"}
    clashes = list(Run.model_validate({"strategy": strategy, "precision": "bf16"}).problems())
    assert any("--strategy.storage_dtype float32" in clash and "--precision bf16" in clash for clash in clashes)
    assert not list(Run.model_validate({"strategy": strategy, "precision": "fp32"}).problems())


def test_without_bitsandbytes_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qlora, "find_spec", lambda name: None)
    assert any(
        "pip install 'peftkit[qlora]'" in clash for clash in Run.model_validate({"strategy": "qlora"}).problems()
    )
    with pytest.raises(ConfigError, match="peftkit\\[qlora\\]"):
        Qlora().loading(torch.float32)
