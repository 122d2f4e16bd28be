"""Noise on the embeddings in training: NEFTune (Jain et al., 2023, https://arxiv.org/abs/2310.05914)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from peftkit.errors import ConfigError
from peftkit.models.inspect import inner


def add_noise(model: nn.Module, alpha: float) -> list[RemovableHandle]:
    """While `model` trains, add uniform noise of up to alpha / sqrt(L d) to the embeddings of the tokens that it reads.

    L is the number of the row's own tokens, without padding, and d the width. An encoder-decoder model gets it on what the
    encoder reads. The numbers are torch's own, which a checkpoint keeps. Removing the handles ends it.

    Raises ConfigError if the model does not read tokens.
    """
    seen: dict[str, Any] = {}

    def note_mask(module: nn.Module, args: Any, inputs: dict[str, Any]) -> None:
        seen.update(mask=inputs.get("attention_mask"), fresh=True)

    def disturb(module: nn.Module, args: Any, embedded: Tensor) -> Tensor:
        if not module.training or not seen.pop("fresh", False):  # the decoder's call of the same table
            return embedded
        lengths = _lengths(seen.pop("mask", None), embedded)
        size = alpha / torch.sqrt(lengths * embedded.shape[-1])
        noise = torch.empty_like(embedded, requires_grad=False).uniform_(-1, 1)
        return embedded + noise * size[:, None, None].to(embedded.dtype)

    tables = token_tables(model)
    return [
        model.register_forward_pre_hook(note_mask, with_kwargs=True),
        *(table.register_forward_hook(disturb) for table in tables),
    ]


def token_tables(model: nn.Module) -> list[nn.Module]:
    """The modules that look tokens up: several where they share a weight."""
    plain: Any = inner(model)[1]
    reads = getattr(plain, "main_input_name", "input_ids")
    weight = getattr(plain.get_input_embeddings(), "weight", None) if reads == "input_ids" else None
    tables: list[nn.Module] = [
        module for module in model.modules() if isinstance(module, nn.Embedding) and module.weight is weight
    ]
    if not tables:
        raise ConfigError(
            f"--regularize.neftune puts noise on the embeddings of tokens, and {type(plain).__name__} reads {reads}; leave it out"
        )
    return tables


def _lengths(mask: Tensor | None, embedded: Tensor) -> Tensor:
    """How many tokens each row has of its own."""
    rows, positions = embedded.shape[:2]
    if mask is not None and mask.ndim < 4 and mask.shape[-1] == positions and mask.numel() == rows * positions:
        return mask.reshape(rows, positions).sum(-1).clamp(min=1).float()
    return torch.full((rows,), float(positions), device=embedded.device)
