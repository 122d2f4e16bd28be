"""Bases, adapters on them, and what PEFT makes of both in memory: the oracle of every merge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors.torch import load_file

from peftkit.flows.merge import merge
from tests.tiny import save_tiny


def a_base(folder: Path, family: str = "llama", shard: str | None = None, **config: Any) -> Path:
    """A tiny model and its tokenizer; in shards of at most `shard`."""
    save_tiny(folder, family, **config)
    if shard:
        model = opened(folder)
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size=shard)
    return folder


def opened(folder: Path, kind: str = "AutoModelForCausalLM", **words: Any) -> Any:
    torch.manual_seed(0)  # of a head that the folder does not have
    return getattr(transformers, kind).from_pretrained(folder, **words)


def an_adapter(folder: Path, model: Any, seed: int = 0, config: Any = None, **settings: Any) -> Path:
    """An adapter of `peft.LoraConfig(**settings)` (or `config`) on the model, with weights as if trained, saved by PEFT."""
    adapted(model, seed, config, **settings).save_pretrained(folder)
    return folder


def adapted(model: Any, seed: int = 0, config: Any = None, **settings: Any) -> Any:
    torch.manual_seed(seed)
    found = peft.get_peft_model(model, config or peft.LoraConfig(**{"r": 4, "lora_alpha": 8, **settings}))
    for parameter in found.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return found


def merged_by_peft(base: Any, adapters: Sequence[Path], method: str | None = None, seed: int = 0, **words: Any) -> Any:
    """The model after PEFT's own merge in memory."""
    model = peft.PeftModel.from_pretrained(base, adapters[0], adapter_name="a0")
    for number, adapter in enumerate(adapters[1:], 1):
        model.load_adapter(adapter, adapter_name=f"a{number}")
    if method:
        torch.manual_seed(seed)
        names = [f"a{number}" for number in range(len(adapters))]
        model.add_weighted_adapter(names, adapter_name="mix", combination_type=method, **words)
        model.set_adapter("mix")
    return model.merge_and_unload()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors in the folder's files."""
    return {name: one for file in sorted(folder.glob("model*.safetensors")) for name, one in load_file(file).items()}


def assert_same(folder: Path, expected: Any, kind: str = "AutoModelForCausalLM") -> Any:
    """The folder opens as the expected model, with nothing missing or left over, bit for bit."""
    model, found = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
    assert not any(found.values()), found
    state, other = model.state_dict(), expected.state_dict()
    assert state.keys() == other.keys()
    assert not [name for name in state if not torch.equal(state[name], other[name])]
    return model


def assert_as_peft(folder: Path, kind: str = "AutoModelForCausalLM", config: Any = None, **settings: Any) -> Any:
    """An adapter of these settings on `folder`/base, merged by us and by PEFT: the same model."""
    base = folder / "base"
    adapter = an_adapter(folder / "adapter", opened(base, kind), config=config, **settings)
    merge(str(base), [adapter], folder / "out")
    return assert_same(folder / "out", merged_by_peft(opened(base, kind), [adapter]), kind)


def two_adapters(folder: Path) -> Path:
    """A `base` in shards, with an `adapter` on it and a `second`."""
    base = a_base(folder / "base", shard="60KB")
    for name, seed in (("adapter", 1), ("second", 2)):
        an_adapter(folder / name, opened(base), seed, target_modules="all-linear")
    return folder
