"""llama.cpp computes what transformers does, for every architecture and every way to scale positions that is not refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from peftkit.exporters.llama_cpp.architectures import ARCHITECTURES, context, unknown
from tests.exporters.llama_cpp.files import SMALL, error, opened, rows, small
from tests.tiny import FAMILIES, config

ROPE = {"rope_theta": 10_000.0, "original_max_position_embeddings": 32}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ROPE}
LINEAR, YARN = {"rope_type": "linear", "factor": 4.0, **ROPE}, {"rope_type": "yarn", "factor": 4.0, **ROPE}
SCALES = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8}
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_inner": 96, "n_positions": 128}

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama tied": ("Llama", {"tie_word_embeddings": True}),
    "llama biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama wide heads": ("Llama", {"head_dim": 32}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "gemma": ("Gemma", {"head_dim": 32}),
    "gemma2": ("Gemma2", SCALES),
    "gemma3": ("Gemma3Text", {**SCALES, "num_hidden_layers": 7}),
    "phi3": ("Phi3", {"sliding_window": None}),
    "gpt2": ("GPT2", GPT2),
}


@pytest.mark.parametrize("case", KINDS)
def test_logits_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    kind, settings = KINDS[case]
    model, inputs = small(kind, **settings), rows()
    there = opened(model, tmp_path)
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        expected = model(**inputs).logits
    # llama.cpp looks GELU up in a table of fp16 numbers.
    limit = 1e-5 if "silu" in (getattr(model.config, "hidden_act", ""),) else 1e-3
    assert error(expected[real], there(**inputs).logits[real]) < limit


def test_every_architecture_is_compared() -> None:
    assert {small(kind, **settings).config.model_type for kind, settings in KINDS.values()} == set(ARCHITECTURES)


@pytest.mark.parametrize(
    ("kind", "rope"),
    [("Llama", LLAMA3), ("Llama", LINEAR), ("Llama", YARN), ("Qwen2", YARN), ("Mistral", YARN)],
    ids=str,
)
def test_scaled_positions(kind: str, rope: dict[str, Any], tmp_path: Path) -> None:
    settings = {"sliding_window": None} if kind == "Mistral" else {}
    model, inputs = small(kind, rope_parameters=rope, **settings), rows(padded=0)
    with torch.no_grad():
        expected, unscaled = model(**inputs).logits, small(kind, **settings)(**inputs).logits
    assert error(expected, unscaled) > 1e-3
    assert error(expected, opened(model, tmp_path)(**inputs).logits) < 1e-5


@pytest.mark.parametrize(
    ("kind", "settings", "why"),
    [
        (
            "Llama",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, **ROPE}},
            "positions scaled by .*dynamic",
        ),
        ("Llama", {"rope_parameters": {**YARN, "beta_fast": 16}}, "positions scaled by .*beta_fast"),
        ("Llama", {"hidden_act": "relu"}, "computes a llama with silu, and this one has relu"),
        ("GPT2", {"activation_function": "relu"}, "computes a gpt2 with gelu_new, and this one has relu"),
        (
            "Phi3",
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5, **ROPE}},
            "partial_rotary_factor",
        ),
        ("Falcon", {}, "a falcon is none of the models .* llama, mistral, qwen2"),
    ],
)
def test_what_was_not_compared_is_refused_by_name(kind: str, settings: dict[str, Any], why: str) -> None:
    said = unknown(getattr(transformers, f"{kind}Config")(**settings))
    assert re.search(why, said), said


def test_every_other_tiny_family_is_refused() -> None:
    taken = {family for family in FAMILIES if not unknown(config(family))}
    assert taken == {"gpt2", "llama", "qwen", "gemma"}


def test_a_text_is_no_longer_than_both_look_back_alike() -> None:
    mistral = transformers.MistralConfig(**{**SMALL, "max_position_embeddings": 128}, sliding_window=48)
    assert context(mistral) == 48
    assert context(transformers.Gemma2Config(**SMALL, sliding_window=48)) == 128
    assert context(transformers.Qwen2Config(**SMALL, sliding_window=48)) == 128
    assert context(transformers.Qwen2Config(**SMALL, sliding_window=48, use_sliding_window=True)) == 48
