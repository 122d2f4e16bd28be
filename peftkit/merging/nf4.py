"""A base that is held in 4 bits while an adapter learns (QLoRA): its weights as the adapter saw them, one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

from peftkit.strategies.qlora import quantised_and_back


@dataclass(frozen=True)
class Quantised:
    """How the run held its base; `peftkit.strategies.qlora` has the same words."""

    quant_type: str = "nf4"
    double_quant: bool = True
    dtype: str = "bfloat16"
    """The format that the base was loaded in, and is multiplied in."""
    unquantised: Sequence[str] | None = None
    """Layers that stayed as they were; None: those that transformers leaves out by itself (the head)."""

    def layers(self, model: nn.Module) -> dict[str, bool]:
        """The weights that were in 4 bits, by name, and whether each is stored transposed."""
        spared = get_keys_to_not_convert(model) if self.unquantised is None else list(self.unquantised)
        return {
            f"{name}.weight": isinstance(module, Conv1D)
            for name, module in model.named_modules()
            if isinstance(module, (nn.Linear, Conv1D)) and should_convert_module(name, spared)
        }

    def as_trained(self, weight: Tensor, transposed: bool) -> Tensor:
        """The weight after its way to 4 bits and back."""
        dtype: Any = getattr(torch, self.dtype)
        rows = weight.to(dtype)
        back = quantised_and_back(rows.T.contiguous() if transposed else rows, self.quant_type, self.double_quant)
        return back.T.contiguous() if transposed else back
