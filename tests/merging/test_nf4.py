"""A base that training held in 4 bits: the merge goes into the weights that the adapter has seen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from peftkit.exporters import Adapter
from peftkit.exporters.base import Reading
from peftkit.flows.merge import merge
from peftkit.strategies import Qlora
from peftkit.strategies.qlora import unquantised_layers
from tests.merging.made import a_base, assert_same
from tests.trained import shake


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_the_way_to_4_bits_and_back_is_that_of_training(family: str, quant_type: str, tmp_path: Path) -> None:
    base = a_base(tmp_path / "base", family)
    strategy = Qlora.model_validate({"rank": 4, "quant_type": quant_type, "target_modules": ".*(c_attn|q_proj)"})
    words = strategy.loading(torch.bfloat16)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, **words)
    adapted = shake(strategy.adapt(model))
    adapted.save_pretrained(tmp_path / "adapter")
    expected = strategy.merge(adapted)
    merge(str(base), [tmp_path / "adapter"], tmp_path / "out", quantized=quant_type, dtype="bfloat16")
    assert_same(tmp_path / "out", expected)


def test_an_adapter_of_ours_says_how_its_base_was_held(tmp_path: Path) -> None:
    base = a_base(tmp_path / "base")
    strategy = Qlora(rank=4, double_quant=False)
    words = strategy.loading(torch.float32)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, **words)
    adapted = shake(strategy.adapt(model))
    reading = Reading(
        "AutoModelForCausalLM", str(base), strategy=strategy.model_dump(mode="json"),
        unquantised=tuple(unquantised_layers(adapted)),
    )  # fmt: skip
    (tmp_path / "adapter").mkdir()
    Adapter().write(adapted, strategy, tmp_path / "adapter", reading, {})
    (tmp_path / "adapter" / "peftkit.json").write_text(json.dumps({"reading": reading.to_json()}))
    expected = strategy.merge(adapted)
    merge(None, [tmp_path / "adapter"], tmp_path / "out")
    assert_same(tmp_path / "out", expected)
