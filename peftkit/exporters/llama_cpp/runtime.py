"""A GGUF file in the place of a transformers model: computed by llama.cpp, asked as any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, GenerationConfig
from transformers.modeling_outputs import CausalLMOutput

from peftkit.exporters.llama_cpp.engine import Engine
from peftkit.exporters.runtime import Runtime


class LlamaCpp(Runtime):
    """Writes as transformers' `generate` does, with all its settings; the engine remembers what it has read of each row."""

    def __init__(
        self, file: Path, config: Any, generation_config: GenerationConfig | None, exact: bool = False
    ) -> None:
        super().__init__(config, generation_config)
        self.engine = Engine(file, exact=exact)

    def forward(  # type: ignore[override]  # transformers calls it by names
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        logits_to_keep: int = 0,
        **others: Any,
    ) -> CausalLMOutput:
        """Logits (rows, positions, vocabulary), or of the last `logits_to_keep` positions; 0 where a row is padded."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        wanted = mask.bool().clone()
        wanted[:, : wanted.shape[1] - (logits_to_keep or wanted.shape[1])] = False
        rows = [ids[real].tolist() for ids, real in zip(input_ids, mask.bool(), strict=True)]
        logits = torch.zeros(len(rows), wanted.shape[1], self.engine.vocabulary)
        for place, asked, found in zip(logits, wanted, self.engine.logits(rows, wanted.sum(1).tolist()), strict=True):
            place[asked] = found
        return CausalLMOutput(logits=logits[:, -logits_to_keep:] if logits_to_keep else logits)


def open_file(file: Path, exact: bool) -> LlamaCpp:
    """The model in `file`, with the configuration that lies beside it."""
    config = AutoConfig.from_pretrained(file.parent)
    settings = (
        GenerationConfig.from_pretrained(file.parent) if (file.parent / "generation_config.json").is_file() else None
    )
    model = LlamaCpp(file, config, settings, exact)
    model.eval()
    return model
