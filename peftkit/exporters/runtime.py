"""A model that another program computes (ONNX Runtime, OpenVINO, llama.cpp), in the place of a transformers model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ModelOutput


class Runtime(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Answers as the transformers model that was exported would: `eval`, `predict`, `serve` and the certificate take either.

    A subclass computes logits in `forward`. `generate` is transformers' own on top of that and computes the whole text again
    for each token; a program that keeps a cache overrides it, or `forward` and `caches`.
    """

    caches = False
    """Whether `forward` takes and gives back `past_key_values`."""
    main_input_name = "input_ids"
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = (
        True  # how the other program attends is its own affair
    )

    def __init__(self, config: PreTrainedConfig, generation_config: GenerationConfig | None = None) -> None:
        super().__init__(config)
        self.generation_config = generation_config or GenerationConfig.from_model_config(config)
        # Whoever asks a model where it is and in which format it answers asks its first parameter.
        self.answers = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, **inputs: Any) -> ModelOutput:
        """`logits` (rows, positions or not, classes) for the inputs that the model was exported with, on the CPU, fp32."""
        raise NotImplementedError

    def can_generate(self) -> bool:
        return True

    def get_input_embeddings(self) -> None:
        return None

    def get_output_embeddings(self) -> None:
        return None

    def generate(self, *words: Any, **settings: Any) -> Tensor:
        """As transformers' `generate`."""
        if not self.caches:
            settings["use_cache"] = False
        written: Tensor = super().generate(*words, **settings)
        return written
