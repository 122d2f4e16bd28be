"""Which parameters of each tiny model belong where, written by hand from their names: what the strategies are held against."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from tests.tiny import tiny

NOTHING = r"(?!)"


@dataclass(frozen=True)
class Names:
    """Patterns that match from the beginning of a name."""

    layer: str
    """With the layer's number as its last group."""
    embeddings: str
    encoder: str = NOTHING
    decoder: str = NOTHING
    after: str = NOTHING
    head: str = NOTHING
    fixed: str = NOTHING


def encoder_of(base: str, layer: str, **others: str) -> Names:
    """An encoder: all of its base model."""
    plain = {"embeddings": rf"{base}\.embeddings\.", "head": r"(pre_)?classifier\."}
    return Names(rf"{base}\.{layer}\.(\d+)\.", encoder=rf"{base}\.", **{**plain, **others})


def decoder_of(base: str, head: str = NOTHING) -> Names:
    """A decoder in the manner of Llama."""
    return Names(
        rf"{base}\.layers\.(\d+)\.",
        embeddings=rf"{base}\.embed_tokens\.",
        decoder=rf"{base}\.",
        after=rf"{base}\.norm\.",
        head=head,
    )


def pair_of(layer: str, embeddings: str, **others: str) -> Names:
    """An encoder and a decoder under `model`."""
    return Names(layer, embeddings, encoder=r"model\.encoder\.", decoder=r"model\.decoder\.", **others)


HALVES = r"model\.(?:encoder|decoder)"

NAMES = {
    "bert": encoder_of("bert", r"encoder\.layer", after=r"bert\.pooler\."),
    "roberta": encoder_of("roberta", r"encoder\.layer"),
    "albert": encoder_of(
        "albert",
        r"encoder\.albert_layer_groups",
        embeddings=r"albert\.(embeddings|encoder\.embedding_hidden_mapping_in)\.",
        after=r"albert\.pooler\.",
    ),
    "distilbert": encoder_of("distilbert", r"transformer\.layer"),
    "electra": encoder_of("electra", r"encoder\.layer", embeddings=r"electra\.embeddings(_project)?\."),
    "vit": encoder_of("vit", "layers", after=r"vit\.layernorm\."),
    "gpt2": Names(
        r"transformer\.h\.(\d+)\.", r"transformer\.w[tp]e\.", decoder=r"transformer\.", after=r"transformer\.ln_f\."
    ),
    "llama": decoder_of("model", head=r"lm_head\."),
    "qwen": decoder_of("model", head=r"lm_head\."),
    "gemma": decoder_of("model"),
    "t5": Names(
        r"(?:encoder|decoder)\.block\.(\d+)\.",
        r"shared\.",
        encoder=r"encoder\.",
        decoder=r"decoder\.",
        after=r"(encoder|decoder)\.final_layer_norm\.",
    ),
    "bart": pair_of(
        rf"{HALVES}\.layers\.(\d+)\.", rf"(model\.shared|{HALVES}\.(embed_positions|layernorm_embedding))\."
    ),
    "marian": pair_of(rf"{HALVES}\.layers\.(\d+)\.", r"model\.shared\.", fixed=rf"{HALVES}\.embed_positions\."),
    "whisper": pair_of(
        rf"{HALVES}\.layers\.(\d+)\.",
        r"model\.(encoder\.conv\d\.|decoder\.embed_)",
        after=rf"{HALVES}\.layer_norm\.",
        fixed=r"model\.encoder\.embed_positions\.",
    ),
    "resnet": encoder_of("resnet", r"encoder\.stages", embeddings=r"resnet\.embedder\."),
    "convnext": encoder_of("convnext", r"encoder\.stages", after=r"convnext\.layernorm\."),  # downsampling in its stage
    "efficientnet": encoder_of("efficientnet", r"encoder\.blocks", after=r"efficientnet\.encoder\.top_"),
    "wav2vec2": encoder_of(
        "wav2vec2",
        r"encoder\.layers",
        embeddings=r"wav2vec2\.(masked_spec_embed|feature_|encoder\.pos_conv_embed\.)",
        after=r"wav2vec2\.encoder\.layer_norm\.",  # of the stable kind; the other one's feeds the layers
        head=r"lm_head\.",
    ),
}
"""Gemma's, GPT-2's and the encoder-decoders' heads are tied to their embeddings: they have no parameter of their own."""

LAST = dict.fromkeys(NAMES, 1) | {"albert": 0, "efficientnet": 2}
"""Number of the last layer; ALBERT has but one set of weights for all of its layers. A layer of a ResNet is a stage."""


def matching(model: nn.Module, *patterns: str, fixed: str = NOTHING) -> set[str]:
    """Names of the parameters that one of the patterns matches, without the fixed ones."""
    names = (name for name, _ in model.named_parameters() if not re.match(fixed, name))
    return {name for name in names if any(re.match(pattern, name) for pattern in patterns)}


def in_layers(model: nn.Module, family: str, *numbers: int) -> set[str]:
    """Names of the parameters of these layers, in every stack."""
    found = ((name, re.match(NAMES[family].layer, name)) for name, _ in model.named_parameters())
    return {name for name, match in found if match and int(match.group(1)) in numbers}


def training(model: nn.Module) -> set[str]:
    """Names of the parameters that train."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def tiny_on(device: str, family: str) -> PreTrainedModel:
    """A tiny model, also one without weights (`meta`)."""
    with torch.device(device):
        return tiny(family)
