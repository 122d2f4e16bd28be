"""What vLLM and TGI would say of real adapters and models: of those that PEFT and transformers write here, and of broken ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from peftkit.exporters.adapter import Adapter
from peftkit.exporters.base import Reading
from peftkit.exporters.older import tell_older_readers
from peftkit.exporters.servers import (
    max_rank,
    serving_notes,
    tensor_names,
    tgi_refuses,
    vllm_refuses,
    weights_lack,
    whole_model_lacks,
)
from peftkit.strategies import Lora
from tests.tiny import save_tiny, tiny

READING = Reading("AutoModelForCausalLM", "org/base")


def adapter(folder: Path, family: str = "llama", fresh: tuple[str, ...] = (), **settings: Any) -> tuple[Any, list[str]]:
    """Configuration and tensors of an adapter as it is exported."""
    folder.mkdir(exist_ok=True)
    strategy = Lora(**settings)
    model: nn.Module = strategy.adapt(tiny(family), fresh)
    Adapter().write(model, strategy, folder, READING, {})
    return json.loads((folder / "adapter_config.json").read_text()), tensor_names(folder / "adapter_model.safetensors")


def test_an_ordinary_adapter_is_served_by_both(tmp_path: Path) -> None:
    config, names = adapter(tmp_path, rank=4)
    assert vllm_refuses(config, names) == tgi_refuses(config, names, layers=2) == []
    assert {"r", "lora_alpha", "target_modules", "bias", "base_model_name_or_path"} <= config.keys()
    assert (config["r"], config["lora_alpha"], config["bias"], config["modules_to_save"]) == (4, 8, "none", None)
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in names
    lines = serving_notes(tmp_path, "adapter", "AutoModelForCausalLM")
    assert lines[0] == "vLLM: `vllm serve BASE --enable-lora --lora-modules NAME=FOLDER`"
    assert lines[1] == "TGI: `LORA_ADAPTERS=NAME=FOLDER text-generation-launcher --model-id BASE`"


@pytest.mark.parametrize(
    ("settings", "vllm", "tgi"),
    [
        ({"dora": True}, "it knows no DoRA", "it knows no DoRA"),
        ({"bias": "all"}, "biases trained", ""),
        ({"modules_to_save": ["norm"]}, "model.norm trained whole", "leaves out 1 of its tensors"),
        ({"modules_to_save": ["embed_tokens"]}, "cannot read 1 of its tensors, such as", "leaves out 1 of its tensors"),
        ({"rank_pattern": {"q_proj": 2}}, "scales of their own (rank_pattern)", "scales of their own (rank_pattern)"),
        ({"alpha_pattern": {"q_proj": 2}}, "scales of their own (alpha_pattern)", "scales of their own"),
        ({"layers": [1]}, "", "not every layer has an adapter for"),
        ({"target_modules": ["embed_tokens", "q_proj"]}, "", "leaves out 2 of its tensors"),
        ({"rank": 600}, "rank 600 is more than the 512", ""),
        ({"rslora": True}, "", ""),
    ],
    ids=str,
)
def test_what_a_server_cannot_do_is_named(settings: dict[str, Any], vllm: str, tgi: str, tmp_path: Path) -> None:
    config, names = adapter(tmp_path, **{"rank": 4, **settings})
    for said, found in ((vllm, vllm_refuses(config, names)), (tgi, tgi_refuses(config, names, layers=2))):
        assert bool(found) == bool(said), found
        assert said in "; ".join(found)
    (first, second) = serving_notes(tmp_path, "adapter", "AutoModelForCausalLM")
    assert first.startswith("vLLM cannot serve this adapter: " if vllm else "vLLM: `")
    if vllm:
        assert first.endswith("Serve the merged export.")
    assert second.startswith("TGI would not serve" if tgi and "layers" not in settings else "TGI")


def test_a_strange_file_is_no_adapter() -> None:
    assert vllm_refuses({}, []) == ["adapter_config.json lacks r, lora_alpha, target_modules"]
    config = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    assert "such as model.q_proj.weight" in vllm_refuses(config, ["model.q_proj.weight"])[0]


def test_ranks_are_those_that_vllm_takes() -> None:
    assert [max_rank(rank) for rank in (1, 16, 17, 64, 500, 513)] == [None, None, 32, 64, 512, None]


def test_names_are_read_from_the_header(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, "llama")
    with safe_open(folder / "model.safetensors", "pt") as opened:
        assert sorted(tensor_names(folder / "model.safetensors")) == sorted(opened.keys())


def sharded(folder: Path) -> Path:
    save_tiny(folder, "llama")
    tiny("llama").save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    tell_older_readers(folder)
    return folder


def test_a_whole_model_has_what_both_need(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert whole_model_lacks(folder) == []
    assert serving_notes(folder, "merged", "AutoModelForCausalLM") == [
        "vLLM: `vllm serve FOLDER`",
        "TGI: `text-generation-launcher --model-id FOLDER`",
    ]
    assert serving_notes(folder, "merged", "AutoModelForSequenceClassification") == []
    assert serving_notes(folder, "gguf", "AutoModelForCausalLM") == []


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json", "generation_config.json"])
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    (sharded(tmp_path) / name).unlink()
    assert name in ", ".join(whole_model_lacks(tmp_path))
    assert f"lacks {name}" in serving_notes(tmp_path, "merged", "AutoModelForCausalLM")[0] or name == "config.json"


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("config.json", "architectures"),
        ("config.json", "model_type"),
        ("config.json", "dtype"),
        ("tokenizer_config.json", "chat_template"),
    ],
)
def test_a_missing_setting_is_named(file: str, key: str, tmp_path: Path) -> None:
    held = json.loads((sharded(tmp_path) / file).read_text())
    (tmp_path / file).write_text(json.dumps({name: value for name, value in held.items() if not name.endswith(key)}))
    assert f"{key} in {file}" in whole_model_lacks(tmp_path)


def test_shards_and_their_index_must_agree(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "a")
    index = folder / "model.safetensors.index.json"
    held = json.loads(index.read_text())
    name = next(iter(held["weight_map"]))
    index.write_text(
        json.dumps({**held, "weight_map": {**held["weight_map"], "more.weight": held["weight_map"][name]}})
    )
    assert weights_lack(folder) == ["an index that agrees with its shards (1 tensors, such as more.weight)"]
    first = sorted(folder.glob("*.safetensors"))[0]
    first.unlink()
    assert weights_lack(folder) == [f"the shard {first.name}"]
    index.unlink()
    assert weights_lack(folder) == ["model.safetensors.index.json"]
    assert weights_lack(tmp_path) == ["weights in safetensors"]
    save_file({"x": tiny("llama").get_input_embeddings().weight}, tmp_path / "model.safetensors")
    assert weights_lack(tmp_path) == []
