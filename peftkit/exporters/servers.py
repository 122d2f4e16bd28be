"""Whether vLLM and text-generation-inference (TGI) can serve a folder, and how: read off what they themselves check.

vLLM: vllm/lora/peft_helper.py (`PEFTHelper.validate_legal`), vllm/lora/utils.py (`parse_fine_tuned_lora_name`),
vllm/lora/lora_model.py (one scale, alpha / r, for all layers), vllm/config/lora.py (ranks).
TGI: server/text_generation_server/adapters/lora.py (`map_weights_for_model`, `prepare_weights`: what it does not know, or what not
every layer has, it leaves out without a word), server/text_generation_server/utils/adapter.py (the layers' names),
router/src/server.rs (tokenizer_config.json).
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from peftkit.exporters.base import read_object

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's --max-lora-rank may be; 16 if it is not given."""
LOW_RANK = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
EMBEDDED = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_embedding_[AB]")
LAYER = re.compile(r"(?:.*\.)?layers\.(?P<layer>\d+)\.(?P<module>.+)")
TGI_MODULES = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)
WRITERS = "AutoModelForCausalLM"
"""How a model is opened that both servers serve."""


def vllm_refuses(config: Mapping[str, Any], tensors: Iterable[str]) -> list[str]:
    """Why vLLM cannot serve this adapter, each in a phrase; empty if it can. `config` is adapter_config.json."""
    reasons = []
    lacking = [name for name in ("r", "lora_alpha", "target_modules") if not config.get(name)]
    if lacking:
        reasons.append(f"adapter_config.json lacks {', '.join(lacking)}")
    if config.get("modules_to_save"):
        reasons.append(f"{', '.join(config['modules_to_save'])} trained whole, and it takes low-rank matrices alone")
    if config.get("use_dora"):
        reasons.append("it knows no DoRA")
    if config.get("bias", "none") != "none":
        reasons.append("biases trained, which it does not take from an adapter")
    reasons += _unlike_scales(config)
    if (config.get("r") or 0) > RANKS[-1]:
        reasons.append(f"rank {config['r']} is more than the {RANKS[-1]} that it takes")
    strange = [name for name in tensors if not LOW_RANK.fullmatch(name) and not EMBEDDED.fullmatch(name)]
    if strange and not config.get("modules_to_save") and not config.get("use_dora"):
        reasons.append(f"it cannot read {len(strange)} of its tensors, such as {strange[0]}")
    return reasons


def tgi_refuses(config: Mapping[str, Any], tensors: Iterable[str], layers: int | None = None) -> list[str]:
    """Why TGI would not serve this adapter as it was trained; empty if it does. `layers`: how many the base has, if known."""
    reasons = _unlike_scales(config)
    if config.get("use_dora"):
        reasons.append("it knows no DoRA")
    held: dict[str, set[int]] = {}
    ignored = []
    for name in tensors:
        found = LOW_RANK.fullmatch(name)
        place = LAYER.fullmatch(found["module"]) if found else None
        if place and place["module"] in TGI_MODULES:
            held.setdefault(place["module"], set()).add(int(place["layer"]))
        elif not (found and found["module"] == "lm_head"):
            ignored.append(name)
    if ignored and not config.get("use_dora"):
        reasons.append(f"it leaves out {len(ignored)} of its tensors without a word, such as {ignored[0]}")
    everywhere = set(range(layers)) if layers else set().union(*held.values())
    partly = [module for module, where in held.items() if where != everywhere]
    if partly:
        reasons.append(f"not every layer has an adapter for {partly[0]}, and it leaves out such modules without a word")
    return reasons


def _unlike_scales(config: Mapping[str, Any]) -> list[str]:
    several = [name for name in ("rank_pattern", "alpha_pattern") if config.get(name)]
    return [f"layers have scales of their own ({', '.join(several)}), and it takes one for all"] if several else []


def max_rank(rank: int) -> int | None:
    """The --max-lora-rank that this rank needs; None where the default is enough."""
    return None if rank <= 16 else next((known for known in RANKS if known >= rank), None)


WANTED = ("architectures", "model_type")


def whole_model_lacks(folder: Path) -> list[str]:
    """What vLLM and TGI need of a model's folder and it has not; empty if they can serve it."""
    lacks = [name for name in ("config.json", "tokenizer_config.json") if not (folder / name).is_file()]
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        lacks.append("tokenizer.json")
    config = read_object(folder / "config.json")
    lacks += [f"{name} in config.json" for name in WANTED if not config.get(name)]
    lacks += [] if config.get("dtype") or config.get("torch_dtype") else ["dtype in config.json"]
    kinds = config.get("architectures") or []
    writes = any(kind.endswith(("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")) for kind in kinds)
    if writes and not (folder / "generation_config.json").is_file():
        lacks.append("generation_config.json")
    if (folder / "chat_template.jinja").is_file() and not read_object(folder / "tokenizer_config.json").get(
        "chat_template"
    ):
        lacks.append("chat_template in tokenizer_config.json")
    return lacks + weights_lack(folder)


def weights_lack(folder: Path) -> list[str]:
    """What is wrong with its safetensors: none, a shard that is missing, an index that names other tensors."""
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        return ["weights in safetensors"]
    index = read_object(folder / "model.safetensors.index.json").get("weight_map")
    if index is None:
        return [] if len(shards) == 1 else ["model.safetensors.index.json"]
    held = {name: shard.name for shard in shards for name in tensor_names(shard)}
    missing = sorted(set(index.values()) - {shard.name for shard in shards})
    wrong = sorted(name for name in held.keys() | index.keys() if held.get(name) != index.get(name))
    if missing:
        return [f"the shard {missing[0]}"]
    return [f"an index that agrees with its shards ({len(wrong)} tensors, such as {wrong[0]})"] if wrong else []


def tensor_names(file: Path) -> list[str]:
    """Names in a safetensors file, by its header alone (8 bytes of its length, then JSON)."""
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        header: dict[str, Any] = json.loads(opened.read(length))
    return [name for name in header if name != "__metadata__"]


def serving_notes(folder: Path, kind: str, auto_class: str) -> list[str]:
    """Lines of a model card, in Markdown: how this folder is served, or why not. Nothing for what neither server reads."""
    if kind not in ("adapter", "merged") or auto_class != WRITERS:
        return []
    if kind == "adapter":
        return _adapter_notes(folder)
    lacks = whole_model_lacks(folder)
    if lacks:
        return [f"vLLM and TGI cannot serve this folder: it lacks {', '.join(lacks)}."]
    return ["vLLM: `vllm serve FOLDER`", "TGI: `text-generation-launcher --model-id FOLDER`"]


def _adapter_notes(folder: Path) -> list[str]:
    config = read_object(folder / "adapter_config.json")
    names = tensor_names(folder / "adapter_model.safetensors")
    notes = []
    if why := vllm_refuses(config, names):
        notes.append(f"vLLM cannot serve this adapter: {'; '.join(why)}. Serve the merged export.")
    else:
        rank = max_rank(config["r"])
        more = f" --max-lora-rank {rank}" if rank else ""
        notes.append(f"vLLM: `vllm serve BASE --enable-lora{more} --lora-modules NAME=FOLDER`")
    if why := tgi_refuses(config, names):
        notes.append(f"TGI would not serve this adapter as it was trained: {'; '.join(why)}. Serve the merged export.")
    else:
        notes.append("TGI: `LORA_ADAPTERS=NAME=FOLDER text-generation-launcher --model-id BASE`")
    return notes
