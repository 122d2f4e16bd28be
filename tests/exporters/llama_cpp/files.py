"""Tiny models of llama.cpp's architectures, and the files that are made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from peftkit.exporters.llama_cpp.runtime import LlamaCpp, open_file
from peftkit.exporters.llama_cpp.vocabulary import ends_of, vocabulary
from peftkit.exporters.llama_cpp.write import About, write
from tests.tiny import BOS, EOS, PAD, POSITIONS, VOCABULARY, tokenizer

WORDS = {"vocab_size": VOCABULARY, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
SMALL = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96,
    "max_position_embeddings": POSITIONS, **WORDS,
}  # fmt: skip


def small(kind: str, **settings: Any) -> Any:
    """A model in which every weight counts: random norms and biases too, and attention that looks at single positions."""
    config = getattr(transformers, f"{kind}Config")(**{**(WORDS if kind == "GPT2" else SMALL), **settings})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
        for parameter in model.parameters():
            parameter.data += (0.1 if parameter.ndim == 1 else 0.05) * torch.randn_like(parameter)
    return model


def written(model: Any, folder: Path, outtype: str = "f32", words: Any = None) -> Path:
    words = words or tokenizer()
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    held = vocabulary(words, model.config.vocab_size, ends_of(model, words))
    write(model, held, folder / "model.gguf", outtype, About("tiny", "org/base"))
    return folder / "model.gguf"


def opened(model: Any, folder: Path, outtype: str = "f32") -> LlamaCpp:
    return open_file(written(model, folder, outtype), exact=outtype == "f32")


def rows(count: int = 2, length: int = 40, padded: int = 10) -> dict[str, Tensor]:
    """Ids and their mask; the last row ends `padded` positions before the others."""
    ids = torch.randint(4, 300, (count, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[-1, length - padded :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def error(expected: Tensor, found: Tensor) -> float:
    """Root mean square of the differences, in parts of that of the expected logits, both centred."""
    first, second = (values - values.mean(-1, keepdim=True) for values in (expected, found))
    return float((first - second).square().mean().sqrt() / first.square().mean().sqrt())
