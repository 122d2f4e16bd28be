"""The adapter in PEFT's format: opened by plain PEFT it computes what the trained model did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig

from peftkit.errors import ExportError
from peftkit.exporters import Adapter
from peftkit.exporters.base import Reading
from peftkit.strategies import Lora, Qlora
from peftkit.strategies.qlora import guard, unquantised_layers
from tests.tiny import model_class, save_tiny, tokenizer
from tests.trained import inputs_for, logits, shake


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "base", "llama", tie_word_embeddings=True)


def reading(base: Path, **more: Any) -> Reading:
    return Reading(auto_class="AutoModelForCausalLM", base=str(base), strategy={"name": "lora"}, **more)


def written(folder: Path, model: Any, how: Reading) -> Path:
    folder.mkdir()
    Adapter().write(model, Lora(), folder, how, {})
    tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "settings", [{}, {"dora": True, "rslora": True}, {"bias": "all"}, {"modules_to_save": ["mlp"]}], ids=str
)
def test_plain_peft_opens_it(settings: dict[str, Any], base: Path, tmp_path: Path) -> None:
    model = shake(
        Lora(rank=4, target_modules=["q_proj", "o_proj"], **settings).adapt(AutoModelForCausalLM.from_pretrained(base))
    )
    folder = written(tmp_path / "adapter", model, reading(base))
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    assert torch.equal(logits(again, inputs_for("llama")), logits(model, inputs_for("llama")))


def test_a_grown_vocabulary_comes_with_it(base: Path, tmp_path: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(base)
    plain.resize_token_embeddings(325)
    model = shake(Lora(rank=4).adapt(plain, ["model.embed_tokens.weight"]))
    folder = written(tmp_path / "adapter", model, how := reading(base, vocabulary=325))
    expected = logits(model, inputs_for("llama"))
    assert expected.shape[-1] == 325
    assert torch.equal(logits(Adapter().open(folder, how), inputs_for("llama")), expected)

    grown = tokenizer()
    grown.add_tokens([f"<new {number}>" for number in range(325 - len(grown))])
    grown.save_pretrained(folder)  # AutoPeftModel grows the base to the tokenizer
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(folder), inputs_for("llama")), expected)


def test_a_new_head_comes_with_it(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "distilbert", head="base")
    plain, report = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3, output_loading_info=True)
    model = shake(Lora(rank=4).adapt(plain, sorted(report["missing_keys"])))
    folder = written(tmp_path / "adapter", model, reading(base))
    again = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(base, num_labels=3), folder)
    assert torch.equal(logits(again, inputs_for("distilbert")), logits(model, inputs_for("distilbert")))


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_an_adapter_of_a_four_bit_base_opens_on_one(family: str, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", family)
    strategy = Qlora(rank=4)
    kind = model_class(family)
    model = shake(strategy.adapt(kind.from_pretrained(base, **strategy.loading(torch.float32))))
    how = Reading(
        kind.__name__, str(base), strategy=strategy.model_dump(), unquantised=tuple(unquantised_layers(model))
    )
    folder = written(tmp_path / "adapter", model, how)
    again = Adapter().open(folder, how)
    guard(again)
    assert torch.equal(logits(again, inputs_for(family)), logits(model, inputs_for(family)))
    names: dict[str, Any] = {"PeftModel": PeftModel, "BitsAndBytesConfig": BitsAndBytesConfig}
    exec(Adapter().example(str(folder), how), names)  # noqa: S102  # the model card's own lines
    guard(names["model"])
    assert torch.equal(logits(names["model"], inputs_for(family)), logits(model, inputs_for(family)))


def test_it_is_fp32_and_names_its_base(base: Path, tmp_path: Path) -> None:
    model = Lora(rank=4).adapt(AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)).bfloat16()
    folder = written(tmp_path / "adapter", model, reading(base, revision="v1"))
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        names = list(file.keys())
    assert {tensor.dtype for tensor in load_file(folder / "adapter_model.safetensors").values()} == {torch.float32}
    assert len(names) == 2 * 14
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (str(base), "v1")
    assert (config["task_type"], config["r"], config["inference_mode"]) == ("CAUSAL_LM", 4, True)
    assert config["target_modules"] == sorted(config["target_modules"])


def test_empty_tensors_are_refused(base: Path, tmp_path: Path) -> None:
    model = Lora(rank=4).adapt(AutoModelForCausalLM.from_pretrained(base))
    next(p for n, p in model.named_parameters() if "lora_A" in n).data = torch.empty(0)
    with pytest.raises(ExportError, match=r"1 empty tensors, such as .*lora_A"):
        written(tmp_path / "adapter", model, reading(base))
    assert not list((tmp_path / "adapter").iterdir())
