"""Which transformers architectures llama.cpp computes in the same way, and what a file must say of each.

Every one of them was compared with transformers' logits through llama.cpp itself (tests/exporters/llama_cpp). What is not named
here, in the architecture or in how its positions are scaled, is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFWriter, RopeScalingType, get_tensor_name_map
from torch import Tensor

from peftkit.errors import ExportError


@dataclass(frozen=True)
class Architecture:
    """What sets one architecture's file apart."""

    kind: MODEL_ARCH
    activation: str = "silu"
    """The only one that llama.cpp has for it."""
    interleaved: bool = False
    """Whether llama.cpp rotates neighbouring numbers of queries and keys, where transformers rotates one half with the other."""
    norms_from_one: bool = False
    """Whether a norm multiplies by 1 + its weight, which the file holds added up."""
    transposed: bool = False
    """Whether linear layers hold their weights the other way round (GPT-2's Conv1D)."""

    @property
    def name(self) -> str:
        called: str = MODEL_ARCH_NAMES[self.kind]
        return called


TANH = "gelu_pytorch_tanh"
ARCHITECTURES = {
    "llama": Architecture(MODEL_ARCH.LLAMA, interleaved=True),
    "mistral": Architecture(MODEL_ARCH.LLAMA, interleaved=True),
    "qwen2": Architecture(MODEL_ARCH.QWEN2),
    "qwen3": Architecture(MODEL_ARCH.QWEN3),
    "gemma": Architecture(MODEL_ARCH.GEMMA, TANH, norms_from_one=True),
    "gemma2": Architecture(MODEL_ARCH.GEMMA2, TANH, norms_from_one=True),
    "gemma3_text": Architecture(MODEL_ARCH.GEMMA3, TANH, norms_from_one=True),
    "phi3": Architecture(MODEL_ARCH.PHI3),
    "gpt2": Architecture(MODEL_ARCH.GPT2, "gelu_new", transposed=True),
}
"""By transformers' `model_type`."""


SCALED = ("default", "linear", "yarn", "llama3")
"""How the rotation of positions may be scaled for longer texts."""
YARN = {"beta_fast": 32, "beta_slow": 1, "attention_factor": None, "mscale": None, "mscale_all_dim": None}
"""What both programs take where nothing else is said."""


def unknown(config: Any) -> str:
    """What in the configuration llama.cpp does not have, or was not compared; empty if all of it is known."""
    if config.model_type not in ARCHITECTURES:
        return f"a {config.model_type} is none of the models that llama.cpp was compared on: {', '.join(ARCHITECTURES)}"
    active = (
        getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None) or config.activation_function
    )
    if active != (expected := ARCHITECTURES[config.model_type].activation):
        return f"llama.cpp computes a {config.model_type} with {expected}, and this one has {active}"
    for rope in rotations(config):
        kind = rope.get("rope_type", "default")
        strange = [name for name, usual in YARN.items() if rope.get(name, usual) not in (usual, None)]
        if kind not in SCALED or strange or rope.get("partial_rotary_factor", 1.0) != 1.0:
            return f"llama.cpp was not compared on positions scaled by {rope}"
    return ""


def describe(writer: GGUFWriter, config: Any) -> None:
    """Write the numbers of the model's configuration."""
    heads, width = config.num_attention_heads, config.hidden_size
    writer.add_context_length(context(config))
    writer.add_embedding_length(width)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(
        getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * width
    )
    writer.add_head_count(heads)
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", None) or heads)
    writer.add_vocab_size(config.vocab_size)
    if (epsilon := getattr(config, "rms_norm_eps", None)) is not None:
        writer.add_layer_norm_rms_eps(epsilon)
    else:
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    if getattr(config, "rope_parameters", None):
        writer.add_key_length(head_width(config))
        writer.add_value_length(head_width(config))
        describe_positions(writer, config)
    if (cap := getattr(config, "attn_logit_softcapping", None)) is not None:
        writer.add_attn_logit_softcapping(cap)
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        writer.add_final_logit_softcapping(cap)


def describe_positions(writer: GGUFWriter, config: Any) -> None:
    """Write how positions are rotated, and how far a layer looks back."""
    rope = rotation(config)
    writer.add_rope_dimension_count(rotated(config))
    writer.add_rope_freq_base(rope["rope_theta"])
    if "sliding_attention" in config.rope_parameters:
        writer.add_rope_freq_base_swa(config.rope_parameters["sliding_attention"]["rope_theta"])
    if slides(config):
        writer.add_sliding_window(config.sliding_window)
    elif config.model_type == "phi3":
        writer.add_sliding_window(0)  # left out, an older model's window would be taken
    kind = rope.get("rope_type", "default")
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def rotations(config: Any) -> list[dict[str, Any]]:
    """The settings of every kind of rotation that the model has."""
    found = getattr(config, "rope_parameters", None) or {}
    return [kind for kind in found.values() if isinstance(kind, dict)] or ([found] if found else [])


def rotation(config: Any) -> dict[str, Any]:
    """The settings of the rotation; of the layers that look at all positions, where there are two kinds."""
    found: dict[str, Any] = config.rope_parameters
    whole: dict[str, Any] = found.get("full_attention", found)
    return whole


def head_width(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def rotated(config: Any) -> int:
    """How many of a head's numbers are rotated."""
    return int(head_width(config) * rotation(config).get("partial_rotary_factor", 1.0))


def slides(config: Any) -> bool:
    """Whether llama.cpp too makes every other layer look back only so far, as Gemma 2 and 3 do."""
    return config.model_type in ("gemma2", "gemma3_text")


def context(config: Any) -> int:
    """The longest text. Where a model looks back only so far and llama.cpp further, as far as both are the same."""
    longest = int(config.max_position_embeddings)
    window = getattr(config, "sliding_window", None)
    used = getattr(config, "use_sliding_window", True)
    return min(longest, int(window)) if window and used and not slides(config) else longest


def tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    """The file's tensors by name, each made when it is asked for, in fp32. ExportError for one that has no place in it."""
    config = model.config
    architecture = ARCHITECTURES[config.model_type]
    names = get_tensor_name_map(architecture.kind, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue  # llama.cpp takes the embeddings in its place
        called = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if called is None:
            raise ExportError(f"llama.cpp's {architecture.name} has no place for {name}")
        yield called, arranged(name, tensor.detach().float(), architecture, config).contiguous()
    if getattr(config, "rope_parameters", None) and rotation(config).get("rope_type") == "llama3":
        yield "rope_freqs.weight", llama3_factors(config)


def arranged(name: str, tensor: Tensor, architecture: Architecture, config: Any) -> Tensor:
    """A weight as llama.cpp multiplies by it."""
    if architecture.interleaved and (heads := rotating_heads(name, config)):
        halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
        return halves.transpose(1, 2).reshape(tensor.shape)
    if architecture.norms_from_one and name.endswith("norm.weight"):
        return tensor + 1
    if architecture.transposed and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        return tensor.T
    return tensor


def rotating_heads(name: str, config: Any) -> int:
    """How many heads the tensor makes queries or keys for; 0 for any other."""
    if ".q_proj." in name:
        return int(config.num_attention_heads)
    return int(config.num_key_value_heads) if ".k_proj." in name else 0


def llama3_factors(config: Any) -> Tensor:
    """What each frequency is divided by in Llama 3.1's scaling: nothing for the quick ones, `factor` for the slow ones."""
    rope = rotation(config)
    frequencies = rope["rope_theta"] ** -(torch.arange(0, rotated(config), 2, dtype=torch.float64) / rotated(config))
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    kept: Tensor = (1 - smooth) / rope["factor"] + smooth
    return (1 / kept).float()
