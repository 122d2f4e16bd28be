"""The merged export: an ordinary model, in shards, in the format asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, GenerationConfig

from peftkit.errors import ExportError
from peftkit.exporters import Merged
from peftkit.exporters.base import Reading
from peftkit.strategies import Lora
from tests.tiny import FAMILIES, model_class, tiny
from tests.trained import head_of, inputs_for, logits, shake

HOW = Reading(auto_class="AutoModelForCausalLM", base="a/base")
STRATEGY = Lora(rank=4)


def trained(**settings: Any) -> Any:
    return shake(STRATEGY.adapt(tiny("llama", **settings)))


def test_it_opens_with_equal_logits(tmp_path: Path) -> None:
    model = trained()
    expected = logits(model, inputs_for("llama"))
    Merged().write(model, STRATEGY, tmp_path, HOW, {})
    assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path), inputs_for("llama")), expected)
    assert_close(logits(Merged().open(tmp_path, HOW), inputs_for("llama")), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_architecture_is_saved_whole(family: str, tmp_path: Path) -> None:
    plain = tiny(family)
    model = shake(STRATEGY.adapt(plain, head_of(plain)))
    expected = logits(model, inputs_for(family))
    how = Reading(model_class(family).__name__, "a/base")
    Merged().write(model, STRATEGY, tmp_path, how, {})
    assert_close(logits(Merged().open(tmp_path, how), inputs_for(family)), expected)


def test_shards_are_no_larger_than_asked(tmp_path: Path) -> None:
    Merged(max_shard_size="60KB").write(trained(), STRATEGY, tmp_path, HOW, {})
    sizes = [path.stat().st_size for path in tmp_path.glob("model-*.safetensors")]
    assert len(sizes) > 1
    assert max(sizes) < 64_000
    assert (tmp_path / "model.safetensors.index.json").is_file()


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("base", ["float32", "bfloat16"])
def test_the_format_is_the_one_asked_for_and_rounded_to_once(base: str, dtype: str, tmp_path: Path) -> None:
    model = shake(STRATEGY.adapt(tiny("llama").to(getattr(torch, base))))
    layer = model.get_submodule("base_model.model.model.layers.0.mlp.up_proj")
    exact = layer.base_layer.weight.detach().float() + layer.get_delta_weight("default").detach()
    Merged.model_validate({"dtype": dtype}).write(
        model, STRATEGY, tmp_path, Reading("AutoModelForCausalLM", "b", dtype=base), {}
    )
    stored = load_file(tmp_path / "model.safetensors")
    wanted = base if dtype == "auto" else dtype
    assert {str(tensor.dtype) for tensor in stored.values()} == {f"torch.{wanted}"}
    assert torch.equal(stored["model.layers.0.mlp.up_proj.weight"], exact.to(getattr(torch, wanted)))
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == wanted


def test_the_generation_settings_go_with_it(tmp_path: Path) -> None:
    model = trained()
    model.generation_config = GenerationConfig(temperature=0.6, eos_token_id=2)  # sampling settings, and no sampling
    model.get_base_model().generation_config = model.generation_config
    Merged().write(model, STRATEGY, tmp_path, HOW, {})
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    assert (saved["temperature"], saved["do_sample"], saved["eos_token_id"]) == (0.6, True, 2)


def test_what_was_for_training_only_is_undone(tmp_path: Path) -> None:
    plain = tiny("llama")
    plain.activation_checkpointing_enable()
    plain.config.use_cache = False
    Merged().write(STRATEGY.adapt(plain), STRATEGY, tmp_path, HOW, {})
    assert json.loads((tmp_path / "config.json").read_text())["use_cache"]


@pytest.mark.parametrize("harm", ["drop", "add"])
def test_weights_that_are_not_the_models_are_refused(harm: str, tmp_path: Path) -> None:
    Merged().write(trained(), STRATEGY, tmp_path, HOW, {})
    tensors = load_file(tmp_path / "model.safetensors")
    if harm == "drop":
        del tensors["model.layers.1.self_attn.q_proj.weight"]
    else:
        tensors["model.layers.1.self_attn.q_proj.lora_A"] = torch.zeros(4, 32)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExportError, match=r"_keys: .*q_proj"):
        Merged().open(tmp_path, HOW)
