"""A .gguf file as an ordinary model folder: its weights dequantised to fp32, once, in the cache."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from peftkit.cache import digest, once
from peftkit.errors import ModelError
from peftkit.models.whole import whole_weights


def convert(file: Path, root: Path) -> Path:
    """The folder in the cache that holds the model and tokenizer of `file`; named by the file's content."""
    target = root / "models" / f"{file.stem}-{digest(file, root)[:16]}"
    return once(target, lambda folder: _write(file, folder))


def _write(file: Path, folder: Path) -> None:
    named = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name, "trust_remote_code": False}
    try:
        with whole_weights():
            # fp32 holds what the file says exactly (a 4-bit number times a 16-bit scale); bf16 would round it.
            model = AutoModelForCausalLM.from_pretrained(**named, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(**named)
    except Exception as problem:
        raise ModelError(f"--model {file}: cannot be read as a GGUF model ({_first_line(problem)})") from problem
    # transformers goes on calling it quantised, and refuses to save it, though every weight is dequantised.
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _first_line(problem: Exception) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0]
