"""A transformers model and its tokenizer -> one GGUF file, a tensor at a time."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_VERSION, GGMLQuantizationType, GGUFWriter, LlamaFileType
from gguf.quants import quant_shape_to_byte_shape, quantize
from torch import Tensor

from peftkit.errors import ExportError
from peftkit.exporters.llama_cpp.architectures import ARCHITECTURES, describe, tensors
from peftkit.exporters.llama_cpp.engine import library
from peftkit.exporters.llama_cpp.vocabulary import Vocabulary

FORMATS = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
"""What is written here; what llama.cpp has to make itself begins as f32."""
BLOCK = 32
"""Neighbouring weights of q8_0 that share a scale."""
ALWAYS_F32 = ("position_embd.weight", "rope_freqs.weight")


@dataclass(frozen=True)
class About:
    """What a file says of itself to people."""

    name: str
    base: str
    licence: str | None = None


def write(model: Any, vocabulary: Vocabulary, file: Path, outtype: str, about: About) -> None:
    """Write `file`. Raises ExportError if a weight has no place in it, or is too large for fp16."""
    if outtype in FORMATS:
        write_floats(model, vocabulary, file, outtype, about)
        return
    whole = file.with_suffix(".f32.gguf")
    try:
        write_floats(model, vocabulary, whole, "f32", about)
        quantise(whole, file, outtype)
    finally:
        whole.unlink(missing_ok=True)


def write_floats(model: Any, vocabulary: Vocabulary, file: Path, outtype: str, about: About) -> None:
    kind, file_type = FORMATS[outtype]
    writer = GGUFWriter(file, ARCHITECTURES[model.config.model_type].name)
    introduce(writer, about)
    describe(writer, model.config)
    writer.add_file_type(file_type)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    vocabulary.write(writer)
    for name, tensor in tensors(model):
        stored = format_of(name, tensor, kind)
        shape = quant_shape_to_byte_shape(tuple(tensor.shape), stored)
        writer.add_tensor_info(name, shape, np.dtype(np.uint8), int(np.prod(shape)), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in tensors(model):
        writer.write_tensor_data(packed(name, tensor, format_of(name, tensor, kind)))
    writer.close()


def introduce(writer: GGUFWriter, about: About) -> None:
    writer.add_type("model")
    writer.add_name(about.name)
    if about.licence:
        writer.add_license(about.licence)
    organisation, _, base = about.base.rpartition("/")
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, base)
    if organisation and not Path(about.base).is_absolute():
        writer.add_base_model_organization(0, organisation)
        writer.add_base_model_repo_url(0, f"https://huggingface.co/{about.base}")


def format_of(name: str, tensor: Tensor, kind: GGMLQuantizationType) -> GGMLQuantizationType:
    """Norms and biases stay in fp32, as llama.cpp wants them; rows that are no whole blocks are not cut into blocks."""
    if tensor.ndim < 2 or name in ALWAYS_F32:
        return GGMLQuantizationType.F32
    blocks = kind != GGMLQuantizationType.Q8_0 or tensor.shape[-1] % BLOCK == 0
    return kind if blocks else GGMLQuantizationType.F16


def packed(name: str, tensor: Tensor, kind: GGMLQuantizationType) -> np.ndarray:
    if kind == GGMLQuantizationType.F16 and tensor.abs().max() > torch.finfo(torch.float16).max:
        raise ExportError(f"{name} has a weight beyond fp16's range; take --exporter.outtype bf16")
    data: np.ndarray = quantize(tensor.cpu().numpy(), kind)
    return data


def quantise(source: Path, file: Path, outtype: str) -> None:
    """By llama.cpp itself."""
    llama = library()
    settings = llama.llama_model_quantize_default_params()
    settings.ftype = getattr(llama, f"LLAMA_FTYPE_MOSTLY_{outtype.upper()}")
    settings.nthread = torch.get_num_threads()
    if code := llama.llama_model_quantize(str(source).encode(), str(file).encode(), ctypes.byref(settings)):
        raise ExportError(f"llama.cpp could not quantise the model to {outtype} (code {code})")
