"""The quantised export: opened by plain transformers, with every layer quantised that should be and no other."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from pydantic import ValidationError
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from peftkit.engine.open import own_linear_again
from peftkit.errors import ConfigError, ExportError
from peftkit.exporters import Quantized
from peftkit.exporters import quantized as room
from peftkit.exporters.base import Reading
from peftkit.strategies import Full, Lora, Qlora
from peftkit.strategies.qlora import guard, unquantised_layers
from peftkit.tasks import Task
from tests.tiny import config, model_class, save_tiny, tiny
from tests.trained import head_of, inputs_for, logits, shake

STRATEGY = Lora(rank=4)
METHODS = ("nf4", "fp4", "int8")


@pytest.fixture(autouse=True)
def _torchs_own_product() -> None:
    """Another test's model that was loaded under ZeRO-3 leaves DeepSpeed's in its place."""
    own_linear_again()


def trained(family: str = "llama", **settings: Any) -> Any:
    plain = tiny(family, **settings)
    return shake(STRATEGY.adapt(plain, head_of(plain)), 0.02)


def merged_of(model: Any) -> Any:
    return STRATEGY.merge(deepcopy(model)).eval()


def exported(model: Any, folder: Path, how: Reading, **settings: Any) -> Quantized:
    exporter = Quantized.model_validate(settings)
    exporter.write(model, STRATEGY, folder, how, {})
    return exporter


def reading(family: str = "llama", **more: Any) -> Reading:
    return Reading(model_class(family).__name__, "a/base", **more)


def quantised(model: Any) -> set[str]:
    """Names of the layers that are."""
    kinds = ("Params4bit", "Int8Tensor")
    return {name for name, layer in model.named_modules() if type(getattr(layer, "weight", None)).__name__ in kinds}


@pytest.mark.parametrize("method", METHODS)
def test_plain_transformers_opens_it(method: str, tmp_path: Path) -> None:
    model = trained()
    merged = merged_of(model)
    exporter = exported(model, tmp_path, reading(), method=method)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "generation_config.json", "model.safetensors"}
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    guard(again)
    found = logits(again, inputs_for("llama"))
    assert_close(found, logits(exporter.open(tmp_path, reading()), inputs_for("llama")), atol=0, rtol=0)
    expected = logits(merged, inputs_for("llama"))
    error = float((found - expected).norm() / expected.norm())
    assert {"nf4": 0.02, "fp4": 0.03, "int8": 1e-3}[method] < error < exporter.tolerance / 2
    assert quantised(again) == {name for name, layer in merged.named_modules() if name.endswith("_proj")}


def test_four_bit_weights_are_the_merged_ones_rounded_once(tmp_path: Path) -> None:
    model = trained()
    merged = merged_of(model)
    exporter = exported(model, tmp_path, reading(), double_quant=False)
    layer = "model.layers.1.mlp.down_proj"
    found: Any = exporter.open(tmp_path, reading()).get_submodule(layer)
    whole = merged.get_parameter(f"{layer}.weight").data
    expected = dequantize_4bit(*quantize_4bit(whole, blocksize=64, quant_type="nf4"))
    assert torch.equal(dequantize_4bit(found.weight.data, found.weight.quant_state), expected)


def test_eight_bit_weights_are_the_merged_ones_rounded_once(tmp_path: Path) -> None:
    model = trained()
    merged = merged_of(model)
    found: Any = exported(model, tmp_path, reading(), method="int8").open(tmp_path, reading())
    layer = "model.layers.1.mlp.down_proj"
    whole, stored = merged.get_parameter(f"{layer}.weight").data, found.get_submodule(layer).weight.dequantize()
    step = whole.abs().amax(1, keepdim=True) / 127.5
    assert ((stored - whole).abs() <= 0.51 * step).all()
    assert not torch.equal(stored, whole)


@pytest.mark.parametrize("method", METHODS)
def test_a_row_does_not_depend_on_its_neighbours(method: str, tmp_path: Path) -> None:
    model: Any = exported(trained(), tmp_path, reading(), method=method).open(tmp_path, reading())
    ids = inputs_for("llama", rows=5)["input_ids"]
    ids[1:] += 10
    together = logits(model, {"input_ids": ids})
    assert_close(logits(model, {"input_ids": ids[:1]}), together[:1], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "vit", "whisper", "convnext"])
def test_every_architecture_with_linear_layers(family: str, tmp_path: Path) -> None:
    model = trained(family)
    expected = logits(model, inputs_for(family))
    found = exported(model, tmp_path, reading(family)).open(tmp_path, reading(family))
    assert quantised(found)
    assert float((logits(found, inputs_for(family)) - expected).norm() / expected.norm()) < 0.4


def test_a_new_head_stays_whole(tmp_path: Path) -> None:
    model = trained("distilbert", head="sequence_classification", num_labels=3)
    head = merged_of(model).state_dict()
    exported(model, tmp_path, reading("distilbert"))
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(again.classifier.weight, head["classifier.weight"])
    assert torch.equal(again.pre_classifier.weight, head["pre_classifier.weight"])
    assert len(quantised(again)) == 12


def test_what_a_qlora_run_had_whole_stays_so(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    strategy = Qlora(rank=4, modules_to_save=["down_proj"], target_modules=["q_proj", "o_proj"])
    model = shake(strategy.adapt(AutoModelForCausalLM.from_pretrained(base, **strategy.loading(torch.float32))))
    how = reading(unquantised=tuple(unquantised_layers(model)))
    guard(model)
    expected = logits(model, inputs_for("llama"))
    (tmp_path / "out").mkdir()
    exporter = Quantized()
    exporter.write(model, strategy, tmp_path / "out", how, {})
    again = exporter.open(tmp_path / "out", how)
    assert not [name for name in quantised(again) if name.endswith("down_proj")]
    assert len(quantised(again)) == 12
    trained_in_four_bits = replace(how, strategy=strategy.model_dump())
    assert exporter.stored(trained_in_four_bits) == "nf4 (rounded a second time: the base was in nf4)"
    assert exporter.stored(how) == "nf4"
    found = logits(again, inputs_for("llama"))
    assert 0.01 < float((found - expected).norm() / expected.norm()) < exporter.tolerance


@pytest.mark.parametrize("dtype", ["auto", "float16"])
def test_the_rest_is_in_the_format_asked_for(dtype: str, tmp_path: Path) -> None:
    exported(trained(), tmp_path, reading(dtype="bfloat16"), dtype=dtype)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    expected = torch.bfloat16 if dtype == "auto" else torch.float16
    assert again.model.norm.weight.dtype == again.lm_head.weight.dtype == expected
    held = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert (held["bnb_4bit_quant_type"], held["bnb_4bit_compute_dtype"]) == (
        "nf4",
        str(expected).removeprefix("torch."),
    )


@pytest.mark.parametrize(
    ("family", "task", "method", "why"),
    [
        ("resnet", "image_classification", "nf4", "a resnet has no linear layers besides its head's"),
        ("gpt2", "causal_lm", "int8", "torchao does not take a gpt2, whose linear layers are of its own kind; take"),
        ("bart", "seq2seq", "int8", r"a bart, which has a tensor outside its layers \(final_logits_bias\)"),
        ("convnext", "image_classification", "int8", "a convnext, which has no embeddings of tokens"),
        ("llama", "causal_lm", "int8", "^$"), ("gpt2", "causal_lm", "nf4", "^$"), ("vit", "image_classification", "int8", "^$"),
    ],
)  # fmt: skip
def test_it_says_what_it_does_not_serve(family: str, task: str, method: str, why: str) -> None:
    said = Quantized.model_validate({"method": method}).refuses(Task.model_validate(task), config(family), Full())
    assert re.search(why, said), said


@pytest.mark.parametrize("method", ["llm_int8", "int4"])
def test_methods_that_are_not_made_say_why(method: str) -> None:
    with pytest.raises(ValidationError, match=f"{method} is not made: .*; take (int8|nf4)"):
        Quantized.model_validate({"method": method})


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "find_spec", lambda name: None)
    for method, extra in (("nf4", "qlora"), ("int8", "torchao")):
        with pytest.raises(ConfigError, match=rf"--to.method {method} needs \w+, .* pip install 'peftkit\[{extra}\]'"):
            Quantized.model_validate({"method": method}).ready()


def test_a_pickle_is_not_read_in_the_place_of_weights(tmp_path: Path) -> None:
    exporter = exported(trained(), tmp_path, reading())
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ExportError, match="no weights in safetensors"):
        exporter.open(tmp_path, reading())
