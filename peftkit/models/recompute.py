"""Activation checkpointing: a layer's activations are computed again in its backward pass; all of them, or the cheap ones."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers.integrations import is_deepspeed_zero3_enabled

KEPT = (
    *("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::linear", "aten::convolution"),
    *("mkldnn::_linear_pointwise", "mkl::_mkl_linear", "aten::_int_mm", "bitsandbytes::"),
    "aten::_scaled_dot_product",
    "aten::_flash_attention_forward",
    "aten::_efficient_attention_forward",
)
"""Beginnings of the names of what is worth keeping: products and attention. All else (norms, activation functions, rotary
positions, sums, copies, casts) reads and writes its numbers once."""


def recompute(model: Any, how: bool | str) -> None:
    """Let the layers of a transformers model compute their activations again. ValueError if it cannot.

    `selective`: products and attention are kept, and not run again; `offload`: layers' inputs wait in main memory.
    """
    if how == "selective" and is_deepspeed_zero3_enabled():
        # DeepSpeed's linear layer adds its bias into the product that was kept, and again when it is computed again.
        raise ValueError(
            "selective does not go with ZeRO-3, whose linear layers change what is kept; take true, or zero2"
        )
    kept = {"context_fn": partial(create_selective_checkpoint_contexts, worth_keeping)} if how == "selective" else {}
    words = {"use_reentrant": False, **kept}
    if how == "offload":
        if not hasattr(model, "activation_checkpointing_enable"):
            raise ValueError("offload needs a newer transformers")
        # Without a GPU they lie there anyway, and memory that is pinned for none cannot be had.
        model.activation_checkpointing_enable(words, offload=torch.cuda.is_available())
        return
    # Older versions of transformers have the second name only.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable(words)


def worth_keeping(context: Any, operator: torch._ops.OpOverload, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Whether an operator's output is kept between the forward and the backward pass."""
    kept = str(operator).replace(".", "::", 1).startswith(KEPT)
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
