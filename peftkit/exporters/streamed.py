"""The merged model written from the adapted one that is in memory, a layer at a time: nothing is held twice, and nothing changes.

A 4-bit base stays packed but for the layer in hand.
"""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, revert_weight_conversion
from transformers.dynamic_module_utils import custom_object_save
from transformers.modeling_utils import remove_tied_weights_from_state_dict
from transformers.pytorch_utils import Conv1D

from peftkit.merging.by_peft import Changes, base_of, held, saved
from peftkit.merging.direct import Beyond
from peftkit.merging.plan import Entry, bytes_of, format_of, rounded
from peftkit.merging.stream import check, write
from peftkit.models.inspect import embedding_ends
from peftkit.strategies.library import peft
from peftkit.strategies.qlora import dequantised, float_dtype

__all__ = ["Beyond", "write_merged"]


def write_merged(model: Any, folder: Path, dtype: torch.dtype, max_shard_size: str) -> Any:
    """Write the weights of the adapted `model`, merged in fp32 and rounded once to `dtype`; returns its configuration.

    Raises Beyond, before anything is written, if transformers stores such a model in other pieces than it computes with.
    """
    merged = Merged(model, dtype)
    entries = merged.entries()
    write(entries, folder, bytes_of(max_shard_size))
    check(entries, folder)
    if merged.base.is_remote_code():
        custom_object_save(merged.base, folder, config=merged.base.config)
    return merged.config()


class Merged:
    """What an adapted model will be once its adapter is folded in."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        self.base, self.dtype = model.get_base_model(), dtype
        self.changes = Layers(model, self.read)
        packed = any(is_packed(weight) for weight in self.base.parameters())
        # On its way to another format nothing is rounded to the base's.
        as_loaded = packed and dtype == float_dtype(self.base)
        self.changes.loaded_in = dtype if as_loaded else torch.float32
        self.values = self.present()
        self.parted = self.differing()

    def present(self) -> dict[str, Tensor]:
        """The base's tensors under its own names; those of modules that train whole are already the new ones."""
        found: dict[str, Tensor] = {}
        targets = self.changes.targets
        for name, module in self.base.named_modules():
            if name in targets:
                new = saved(targets[name]) or base_of(targets[name])
                found |= {f"{name}.{inner}": tensor for inner, tensor in held(new).items()}
            elif not name.startswith(tuple(f"{target}." for target in targets)):
                found |= {
                    f"{name}.{inner}".lstrip("."): tensor for inner, tensor in held(module, recurse=False).items()
                }
        return found

    def differing(self) -> set[str]:
        """Names that share a weight now and will not share it any more."""
        shared: dict[int, list[str]] = {}
        for name, tensor in self.values.items():
            shared.setdefault(id(tensor), []).append(name)
        groups = [names for names in shared.values() if len(names) > 1]
        return {
            name
            for names in groups
            if any(one in self.changes.shapes() for one in names)
            and not all(torch.equal(self.final(names[0]), self.final(other)) for other in names[1:])
            for name in names
        }

    def entries(self) -> list[Entry]:
        """In the model's order, under the names that `save_pretrained` gives them."""
        rules = getattr(self.base, "_weight_conversions", None) or get_model_conversion_mapping(self.base)
        if any(isinstance(rule, WeightConverter) for rule in rules):
            raise Beyond(f"transformers stores the weights of {type(self.base).__name__} in other pieces")
        # A number stands for each tensor: where the numbers end up, the tensors will.
        numbers = {name: torch.zeros(()) for name in self.values}
        first: dict[int, str] = {}
        for name, tensor in self.values.items():
            if name not in self.parted:
                numbers[name] = numbers[first.setdefault(id(tensor), name)]
        ignored = self.base._keys_to_ignore_on_save or ()
        state = {name: number for name, number in numbers.items() if name not in ignored}
        left = remove_tied_weights_from_state_dict(state, self.base)
        owner = {number.data_ptr(): name for name, number in left.items()}
        written = {owner[one.data_ptr()]: name for name, one in revert_weight_conversion(self.base, left).items()}
        return [self.entry(name, written[name]) for name in self.values if name in written]

    def entry(self, name: str, written: str) -> Entry:
        value = self.values[name]
        form = format_of(self.changes.loaded_in if is_packed(value) else value.dtype, self.dtype)
        return Entry(written, form, self.changes.shape(name, value), make=partial(self.make, name, form))

    def make(self, name: str, form: torch.dtype) -> Tensor:
        final = self.final(name)
        return rounded(final, form, name) if final.is_floating_point() else final

    def final(self, name: str) -> Tensor:
        found = self.changes.shapes().get(name)
        return self.changes.make(found[0], name) if found else self.read(name)

    def read(self, name: str) -> Tensor:
        """A weight as the adapter sees it, in fp32."""
        value = self.values[name].detach()
        if is_packed(self.values[name]):
            layer = self.base.get_submodule(name.rpartition(".")[0])
            value = held(dequantised(layer, self.changes.loaded_in))["weight"].detach()
        return value.float() if value.is_floating_point() and value.dtype != torch.float64 else value

    def config(self) -> Any:
        """The base's configuration, as it is right for the merged model."""
        config = deepcopy(self.base.config)
        config.dtype = self.dtype
        config.architectures = [type(self.base).__name__]
        config.__dict__.pop("quantization_config", None)
        config.__dict__.pop("_is_quantized", None)
        if self.ends_differ():
            for part in (config, config.get_text_config()):
                if getattr(part, "tie_word_embeddings", False):
                    part.tie_word_embeddings = False
        return config

    def ends_differ(self) -> bool:
        names = {id(module): name for name, module in self.base.named_modules()}
        ends = [f"{names[id(end)]}.weight" for end in embedding_ends(self.base)]
        if len(ends) < 2 or not all(end in self.values for end in ends):
            return False
        return bool(self.parted.intersection(ends)) or self.values[ends[0]] is not self.values[ends[1]]


class Layers(Changes):
    """The layers of a model in memory, whose base weights may be packed in 4 bits."""

    loaded_in: torch.dtype
    """The format of what is not packed."""

    def shapes(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        if not hasattr(self, "_shapes"):
            self._shapes = {
                f"{name}.{inner}": (name, self.shape(f"{name}.{inner}", tensor))
                for name, target in self.targets.items()
                for inner, tensor in held(saved(target) or base_of(target)).items()
            }
        return self._shapes

    def shape(self, name: str, value: Tensor) -> tuple[int, ...]:
        state = getattr(value, "quant_state", None)
        if state is None:
            return tuple(value.shape)
        target = self.targets.get(name.rpartition(".")[0])
        return tuple(state.shape)[:: -1 if target is not None and is_transposed(base_of(target)) else 1]

    def merged(self, name: str) -> dict[str, Tensor]:
        target = self.targets[name]
        layer: Any = None if saved(target) is not None else base_of(target)
        if layer is None or not is_packed(layer.weight):
            return super().merged(name)
        # PEFT's own merge of such a layer rounds the result to 4 bits again.
        plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        turned = is_transposed(layer)
        rows = held(dequantised(layer, self.loaded_in))["weight"].detach().float()
        plain.weight = nn.Parameter(rows.T.contiguous() if turned else rows, requires_grad=False)
        try:
            target.base_layer = plain
            peft().tuners.lora.layer.Linear.merge(target, safe_merge=True)
        finally:
            target.base_layer = layer
            target.merged_adapters.clear()
        found = {inner: one.detach() for inner, one in held(layer).items() if inner != "weight"}
        found["weight"] = plain.weight.detach().T if turned else plain.weight.detach()
        return {f"{name}.{inner}": tensor for inner, tensor in found.items()}


def is_packed(weight: Any) -> bool:
    return getattr(weight, "quant_state", None) is not None


def is_transposed(layer: Any) -> bool:
    """Whether a 4-bit layer stands for one that has its weight transposed (GPT-2's)."""
    return issubclass(getattr(layer, "source_cls", nn.Linear), Conv1D)
