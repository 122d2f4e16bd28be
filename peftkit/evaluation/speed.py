"""How fast a model answers as it is served, from a few passes: a measure to compare with another taken on the same machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from peftkit.evaluation.verify import on

ENOUGH = 0.5
"""Seconds of work after which no further pass is made."""
PASSES = 5
WORDS = 16


@dataclass(frozen=True)
class Speed:
    """Per second; None where it was not measured."""

    rows: float | None = None
    """Read, a batch at a time."""
    tokens: float | None = None
    """Written after a prompt, the likeliest each time."""


def speed(model: Any, inputs: Mapping[str, Any], prompt: Tensor | None) -> Speed:
    """In the model's own number format; it is left in the mode that it was in."""
    first = next(model.parameters())
    training = [(module, module.training) for module in model.modules()]
    model.eval()
    formats = {weight.dtype for weight in model.parameters() if weight.is_floating_point()}
    dtype = min(formats, key=lambda found: torch.finfo(found).bits)
    batch = on(first.device, inputs, dtype)
    rows = max(len(value) for value in batch.values() if isinstance(value, Tensor))
    # A trained model has its base in 16 bits and what trains in fp32: it computes as it did in training.
    with torch.no_grad(), torch.autocast(first.device.type, dtype, enabled=len(formats) > 1 and dtype != torch.float32):
        read = rows / seconds(lambda: model(**batch))
        written = None if prompt is None else writing(model, prompt.to(first.device)[None])
    for module, mode in training:
        module.training = mode
    return Speed(read, written)


def writing(model: Any, ids: Tensor) -> float:
    words = {"max_new_tokens": WORDS, "min_new_tokens": WORDS, "do_sample": False, "num_beams": 1}
    lengths: list[int] = []

    def write() -> None:
        whole = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **words)
        lengths.append(whole.shape[1] - (0 if model.config.is_encoder_decoder else ids.shape[1]))

    took = seconds(write)
    return max(lengths) / took


def seconds(work: Callable[[], object]) -> float:
    """Of the fastest pass, the first (which may compile or fetch) only if it alone takes long enough."""
    took: list[float] = []
    while sum(took) < ENOUGH and len(took) < PASSES:
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        took.append(time.perf_counter() - began)
    return max(min(took), 1e-9)
