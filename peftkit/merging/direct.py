"""The common merge, by torch alone: plain LoRA (Hu et al., 2021) on linear layers, found under their own names in the files.

PEFT and transformers take longer to import than such a merge takes. What this file cannot tell from names and shapes
(embeddings, heads, convolutions, DoRA, renamed weights, ...) is left to `by_peft`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from peftkit.errors import ModelError
from peftkit.merging.adapter import LORA, Adapter, is_targeted, needs_base, scaling
from peftkit.merging.base import Base
from peftkit.merging.plan import Entry, Plan, format_of, kept, rounded, settings
from peftkit.merging.tensors import Stored

TRANSPOSED = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp")
"""Models with transformers' Conv1D, whose weights are stored transposed."""
PART = 1 << 18
"""Numbers that are added and rounded together: they stay in the processor's cache."""
IN_LAYER = re.compile(r"\.\d+\.")


class Beyond(Exception):  # noqa: N818  # no error: another way is taken
    """Why this adapter needs PEFT itself."""


@dataclass(frozen=True)
class Product:
    """What a layer's weight gains: lora_B times lora_A, scaled."""

    a: Stored
    b: Stored
    scale: float


def plan(base: Base, adapter: Adapter, dtype: torch.dtype | None) -> Plan:
    """Raises Beyond for what must be left to PEFT, ModelError for an adapter that does not fit the base."""
    _check(base, adapter)
    products, biases = split(adapter)
    for name in [*(f"{module}.weight" for module in products), *biases]:
        if name not in base.tensors:
            raise Beyond(f"the base's files have no {name}")
    _check_complete(base, adapter, products)
    entries = []
    rooms = Room(), Room()
    for name, stored in base.tensors.items():
        product = products.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        if product is not None:
            _check_shapes(name, stored, product)
            shape, form = stored.shape, format_of(stored.dtype, dtype)
            entries.append(Entry(name, form, shape, stored, partial(folded, name, stored, product, form, *rooms)))
        elif name in biases:
            entries.append(replaced(name, stored, biases[name], dtype))
        else:
            entries.append(kept(name, stored, dtype))
    return Plan(entries, settings(base.config, dtype))


def split(adapter: Adapter) -> tuple[dict[str, Product], dict[str, Stored]]:
    """The adapter's products by the layers that they stand on, and its biases by name."""
    left = dict(adapter.tensors)
    products, biases = {}, {}
    for name in [name for name in left if name.endswith(".lora_A.weight")]:
        module = name.removesuffix(".lora_A.weight")
        if f"{module}.lora_B.weight" not in left:
            raise ModelError(f"--adapter {adapter.folder} is incomplete: it has {name}, and no lora_B beside it")
        a, b = left.pop(name), left.pop(f"{module}.lora_B.weight")
        rank, scale = scaling(adapter.config, module)
        if not len(a.shape) == len(b.shape) == 2 or not IN_LAYER.search(module):
            raise Beyond(f"{module} is no linear layer of a block")
        if not a.shape[0] == b.shape[1] == rank:
            raise ModelError(
                f"--adapter {adapter.folder}: {name} is of rank {a.shape[0]}, and its settings say {rank}: they belong"
                " to different adapters"
            )
        products[module] = Product(a, b, scale)
    for name in [name for name in left if name.endswith(".bias") and ".lora_" not in name]:
        biases[name.replace(".base_layer.", ".")] = left.pop(name)
    if left:
        raise Beyond(f"{next(iter(left))} is no part of plain LoRA")
    return products, biases


class Room:
    """Memory for one tensor at a time, used again for the next: to be given fresh memory costs more than to compute in it."""

    def __init__(self) -> None:
        self.held = torch.empty(0, dtype=torch.uint8)

    def of(self, size: int) -> Tensor:
        """`size` bytes or more; what was in them before is gone."""
        if len(self.held) < size:
            self.held = torch.empty(0, dtype=torch.uint8)  # not both at once
            self.held = torch.empty(size, dtype=torch.uint8)
        return self.held


def folded(name: str, stored: Stored, product: Product, dtype: torch.dtype, weights: Room, deltas: Room) -> Tensor:
    """The base's weight with the product in it: in fp32, and by PEFT's own order of operations."""
    weight = stored.read(weights.of(stored.size))
    count = weight.numel()
    delta = deltas.of(4 * count)[: 4 * count].view(torch.float32).view(weight.shape)
    scaled_product(product.a.read().float(), product.b.read().float(), product.scale, delta)
    if dtype == weight.dtype == torch.float32:
        return rounded(delta.add_(weight), dtype, name)
    made = weight if dtype == weight.dtype else torch.empty(weight.shape, dtype=dtype)
    # A part at a time: torch would make a whole copy of the weight in the other format.
    for new, old, part in zip(*(torch.split(one.view(-1), PART) for one in (made, weight, delta)), strict=True):
        new.copy_(rounded(old.add(part) if old.dtype == torch.float64 else part.add_(old), dtype, name))
    return made


def scaled_product(a: Tensor, b: Tensor, scale: float, out: Tensor) -> None:
    """`out` = (B A) times `scale`. With a power of two it does not matter which is multiplied first, and B is small."""
    early = scale >= 1 and math.frexp(scale)[0] == 0.5
    torch.matmul(b * scale if early else b, a, out=out)
    if not early:
        out.mul_(scale)


def replaced(name: str, stored: Stored, new: Stored, dtype: torch.dtype | None) -> Entry:
    if new.shape != stored.shape:
        raise ModelError(_misfit(name, stored, new.shape))
    form = format_of(stored.dtype, dtype)
    return Entry(name, form, stored.shape, stored, lambda: rounded(new.read(), form, name))


def _check(base: Base, adapter: Adapter) -> None:
    if adapter.kind != "LORA":
        raise Beyond(f"it is of the kind {adapter.kind}")
    if "quantization_config" in base.config:
        raise Beyond("the base is stored quantised")
    if why := needs_base(adapter.config):
        raise Beyond(why)
    if base.config.get("model_type") in TRANSPOSED:
        raise Beyond(f"{base.config['model_type']} stores weights transposed")
    strange = [name for name, value in adapter.config.items() if name not in LORA and value]
    if strange:
        raise Beyond(f"it sets {', '.join(sorted(strange))}")


def _check_complete(base: Base, adapter: Adapter, products: Mapping[str, Any]) -> None:
    """ModelError if the settings target a layer of the base that the adapter has nothing for."""
    modules = [name.removesuffix(".weight") for name, one in base.tensors.items() if name.endswith(".weight")]
    lacking = [module for module in modules if is_targeted(adapter.config, module) and module not in products]
    if lacking and products:
        raise ModelError(
            f"--adapter {adapter.folder} is incomplete: its settings name {len(lacking)} layers of the base that it has"
            f" no weights for, such as {lacking[0]}"
        )


def _check_shapes(name: str, stored: Stored, product: Product) -> None:
    fits = (product.b.shape[0], product.a.shape[1])
    if stored.shape == fits:
        return
    if stored.shape == fits[::-1]:
        raise Beyond(f"{name} is stored transposed")
    raise ModelError(_misfit(name, stored, fits))


def _misfit(name: str, stored: Stored, shape: tuple[int, ...]) -> str:
    return (
        f"the adapter belongs to another base: it changes {name} of shape {list(shape)}, and that of --base"
        f" is {list(stored.shape)}"
    )
