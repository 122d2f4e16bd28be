"""Models as if trained, and the rows they are compared on: what the tests of adapters and exports share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from peftkit.tasks import Task
from peftkit.tasks.base import Batch
from tests.tiny import IMAGES, SEQ2SEQ

HEADS = ("classifier.", "score.", "pre_classifier.", "classification_head.")


def shake(model: nn.Module, size: float = 0.1) -> nn.Module:
    """Move every trainable weight, as a training would, always in the same way."""
    noise = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += size * torch.randn(parameter.shape, generator=noise).to(parameter.dtype)
    return model


def head_of(model: nn.Module) -> list[str]:
    """Names of a classifier's head: what a task makes anew."""
    return [name for name, _ in model.named_parameters() if name.startswith(HEADS)]


def inputs_for(family: str, rows: int = 2, length: int = 9) -> dict[str, Tensor]:
    """Keywords of the family's forward."""
    numbers = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 300, (rows, length), generator=numbers)
    if family in IMAGES:
        side = 16 if family == "vit" else 32
        return {"pixel_values": torch.randn(rows, 3, side, side, generator=numbers)}
    if family == "wav2vec2":
        return {"input_values": torch.randn(rows, 800, generator=numbers)}
    if family == "whisper":
        return {"input_features": torch.randn(rows, 8, 100, generator=numbers), "decoder_input_ids": ids}
    return {"input_ids": ids} | ({"decoder_input_ids": ids.flip(1)} if family in SEQ2SEQ else {})


def logits(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    model.eval()
    with torch.no_grad():
        outputs: Any = model(**inputs)
    found: Tensor = outputs.logits
    return found


def language_rows(batches: int = 2) -> tuple[Task, list[Batch]]:
    """The causal_lm task and rows of it, half of the positions targets."""
    numbers = torch.Generator().manual_seed(5)
    ids = [torch.randint(4, 300, (2, 16), generator=numbers) for _ in range(batches)]
    half = torch.arange(16) >= 8
    rows = [{"input_ids": row, "labels": row.where(half, -100), "attention_mask": torch.ones_like(row)} for row in ids]
    return Task.model_validate("causal_lm"), rows


def label_rows(labels: int = 3) -> tuple[Task, list[Batch]]:
    """The sequence_classification task and rows of it."""
    numbers = torch.Generator().manual_seed(6)
    ids = torch.randint(4, 300, (8, 12), generator=numbers)
    task = Task.model_validate({"name": "sequence_classification", "labels": [f"label {n}" for n in range(labels)]})
    return task, [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(8) % labels}]
