"""How much arithmetic a workload needs, and what share of the machine's fastest products a runner reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.bench.workloads import Place, Workload


@dataclass(frozen=True)
class Need:
    """FLOP of matrix products, forward and back: of a useful token in the layers, and of a target in a language model's head.

    Attention's own products are left out, and what stands at no target needs no head.
    """

    token: float
    target: float

    def of(self, tokens: int, targets: int) -> float:
        return self.token * tokens + self.target * targets


def need(work: Workload, where: Place) -> Need:
    """2 a weight and token forward; back 2 more where a gradient passes, and 2 more where the weight itself learns."""
    from accelerate import init_empty_weights
    from torch import nn
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(where.model)
    with init_empty_weights():
        model = AutoModel.from_config(config)
    linear = {name: one for name, one in model.named_modules() if isinstance(one, nn.Linear) and "pooler" not in name}
    token = sum(cost(name, one, work, config.num_hidden_layers) for name, one in linear.items())
    head = config.vocab_size * config.hidden_size if work.task == "chat" else 0
    return Need(token, head * (6 if work.strategy == "full" else 4))


def cost(name: str, layer: Any, work: Workload, layers: int) -> float:
    """FLOP a token of one linear layer."""
    weights = layer.in_features * layer.out_features
    if work.adapts:
        return 4 * weights + 6 * work.options["rank"] * (layer.in_features + layer.out_features)
    if work.strategy == "layerwise":
        number = next(int(part) for part in name.split(".") if part.isdigit())
        return (6 if number >= layers - work.options["last"] else 2) * weights
    return 6 * weights


def fastest(products: Mapping[str, Mapping[str, float]]) -> float:
    """GFLOP a CPU second of the fastest product of a format."""
    return max(value for ways in products.values() for value in ways.values())
