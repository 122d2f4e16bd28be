"""A model as graphs of plain tensors: what transformers' exporters trace, with which inputs, and whether it holds elsewhere.

What runs in a graph was written down for one batch. Branches of Python that were not taken for it, and sizes that were taken
for fixed, are lost without a word; so every graph is asked again at once, with other rows, other lengths, padding on either
side, a single token, and a cache that is empty, short or padded, and must answer as the model does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.modeling_outputs import BaseModelOutput

from peftkit.errors import ExportError
from peftkit.exporters.base import Reading
from peftkit.exporters.graphs import DECODER, ENCODER, MODEL, Part, flat
from peftkit.exporters.merged import Merged
from peftkit.strategies import Strategy

TOLERANCE = 1e-4
"""What a graph's outputs may differ by, in parts of their size: the order of sums costs 1e-6."""
WORDS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "decoder_input_ids", "decoder_attention_mask")
ROWS, POSITIONS, BEFORE = 2, 6, 5
"""Of the batch that is traced: not one, which would be taken for fixed; so many positions at least, and in the cache."""

Trace = Callable[[nn.Module, dict[str, Any], dict[str, Any], Path], None]
"""Writes a module's graph, for these inputs and with these sizes free, to a file."""


def merged_model(model: nn.Module, strategy: Strategy, reading: Reading, beside: Path) -> Any:
    """The trained model in fp32 as transformers opens it anew: without what a training changed in its code."""
    with TemporaryDirectory(prefix="merged-", dir=beside) as desk:
        merged = Merged(dtype="float32")
        merged.write(model, strategy, Path(desk), reading, {})
        opened: Any = merged.open(Path(desk), reading)
    return opened.float().eval().requires_grad_(False)


def write_graphs(
    trace: Trace, part: Callable[[Path], Part], pattern: str, plain: Any, folder: Path, sample: Mapping[str, Any]
) -> None:
    """Trace the model into `folder`, with its configuration. ExportError where it cannot be, or answers otherwise."""
    plain.config.save_pretrained(folder)
    if plain.can_generate():
        plain.generation_config.save_pretrained(folder)
    for name, (module, inputs) in parts_of(plain, sample).items():
        file = folder / pattern.format(name)
        try:
            with torch.no_grad():
                trace(module, deepcopy(inputs), free_sizes(inputs), file)
        except ExportError:
            raise
        except Exception as problem:  # tracing runs the model's own code and three libraries'
            said = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
            raise ExportError(f"{type(plain).__name__} cannot be traced: {said}") from problem
        check(module, part(file), inputs)


def parts_of(plain: Any, sample: Mapping[str, Any]) -> dict[str, tuple[nn.Module, dict[str, Any]]]:
    """What is traced, by name, and the inputs for it."""
    inputs = invented(sample, plain.config)
    if "decoder_input_ids" in inputs:
        reader = Reads(plain)
        given = {name: value for name, value in inputs.items() if not name.startswith("decoder_")}
        read = reader(**given)
        return {ENCODER: (reader, given), DECODER: (Writes(plain), decoding(plain, inputs, read["last_hidden_state"]))}
    if writes(plain) and (empty := empty_cache(plain, inputs)):
        return {MODEL: (Continues(plain), continuing(plain, inputs, empty))}
    return {MODEL: (Answers(plain), inputs)}


def invented(sample: Mapping[str, Any], config: Any) -> dict[str, Tensor]:
    """Inputs like the sample's, with more than one row and words enough, and nothing of anyone's rows: a program may keep them."""
    numbers = torch.Generator().manual_seed(0)
    found = {}
    for name, value in sample.items():
        if not isinstance(value, Tensor):
            continue
        shape = [max(ROWS, value.shape[0]), *value.shape[1:]]
        shape[-1] = max(POSITIONS, shape[-1]) if name in WORDS else shape[-1]
        if value.is_floating_point():
            found[name] = torch.randn(shape, generator=numbers)
        elif name.endswith("input_ids"):
            found[name] = some_words(shape, config.get_text_config(), numbers)
        else:
            found[name] = torch.full(shape, int(name.endswith("mask")))
    return found


def some_words(shape: list[int], config: Any, numbers: torch.Generator) -> Tensor:
    """Any tokens but the padding, whose place some models look for."""
    ids = torch.randint(0, config.vocab_size, shape, generator=numbers)
    padding = getattr(config, "pad_token_id", None)
    return ids.where(ids != padding, (ids + 1) % config.vocab_size) if padding is not None else ids


class Plain(nn.Module):
    """A model whose inputs and outputs are tensors by name."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config


class Answers(Plain):
    """All logits of a model that keeps no cache."""

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        settings = {"use_cache": False} if "use_cache" in inspect.signature(self.model.forward).parameters else {}
        found = self.model(**inputs, **settings, return_dict=True)
        return {name: value for name, value in found.items() if name.endswith("logits")}


class Continues(Plain):
    """The logits of a decoder, after what its cache holds."""

    def forward(self, past_key_values: dict[str, dict[str, Tensor]], **inputs: Tensor) -> dict[str, Any]:
        found = self.model(**inputs, past_key_values=cache_of(past_key_values, self.config), use_cache=True)
        return {"logits": found.logits, "present": tensors_of(found.past_key_values)}


class Reads(Plain):
    """An encoder."""

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        return {"last_hidden_state": self.model.get_encoder()(**inputs, return_dict=True)[0]}


class Writes(Plain):
    """The logits of a decoder that looks at what an encoder has read. What it makes of that it makes anew for each token."""

    def forward(
        self, encoder_hidden_states: Tensor, past_key_values: dict[str, dict[str, Tensor]], **inputs: Tensor
    ) -> dict[str, Any]:
        cache = EncoderDecoderCache(cache_of(past_key_values, self.config), DynamicCache())
        found = self.model(
            **inputs,
            encoder_outputs=BaseModelOutput(last_hidden_state=encoder_hidden_states),
            past_key_values=cache,
            use_cache=True,
        )
        return {"logits": found.logits, "present": tensors_of(found.past_key_values.self_attention_cache)}


def cache_of(tensors: Mapping[str, Mapping[str, Tensor]], config: Any) -> DynamicCache:
    return DynamicCache([(layer["key"], layer["value"]) for layer in tensors.values()], config=config)


def tensors_of(cache: Any) -> dict[str, dict[str, Tensor]]:
    return {str(number): {"key": layer.keys, "value": layer.values} for number, layer in enumerate(cache.layers)}


def writes(plain: Any) -> bool:
    """Whether it continues texts."""
    return plain.can_generate() and not plain.config.is_encoder_decoder


def empty_cache(plain: Any, inputs: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """A cache of nothing, of the shape that the model keeps; none if it keeps another kind (states, windows of its own)."""
    with torch.no_grad():
        kept = plain(**inputs, use_cache=True).get("past_key_values")
    kept = getattr(kept, "self_attention_cache", kept)
    if not isinstance(kept, DynamicCache) or {type(layer) for layer in kept.layers} - {
        DynamicLayer,
        DynamicSlidingWindowLayer,
    }:
        return {}
    return {
        number: {kind: value[:, :, :0].clone() for kind, value in layer.items()}
        for number, layer in tensors_of(kept).items()
    }


def continuing(plain: Any, inputs: Mapping[str, Tensor], empty: Mapping[str, Any]) -> dict[str, Any]:
    """Some positions with others before them, which are in the cache."""
    ids = inputs["input_ids"].repeat(1, -(-(BEFORE + POSITIONS) // inputs["input_ids"].shape[1]))
    ids = ids[:, : BEFORE + POSITIONS]
    return after(
        Continues(plain), "input_ids", {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, empty, BEFORE
    )


def decoding(plain: Any, inputs: Mapping[str, Tensor], read: Tensor) -> dict[str, Any]:
    ids = inputs["decoder_input_ids"].repeat(1, -(-(BEFORE + POSITIONS) // inputs["decoder_input_ids"].shape[1]))
    ids = ids[:, : BEFORE + POSITIONS]
    given = {"encoder_hidden_states": read, "decoder_input_ids": ids}
    given |= {"attention_mask": inputs["attention_mask"]} if "attention_mask" in inputs else {}
    empty = empty_cache(plain, inputs)
    if not empty:
        raise ExportError(f"{type(plain).__name__} keeps a cache of its own kind, which no graph has")
    return after(Writes(plain), "decoder_input_ids", given, empty, BEFORE)


def after(module: Plain, name: str, inputs: dict[str, Any], empty: Mapping[str, Any], before: int) -> dict[str, Any]:
    """The inputs of all positions (`name`) from `before` on, the others being in the cache."""
    ids = inputs[name]
    positions = {}
    if name == "input_ids" and "position_ids" in inspect.signature(module.model.forward).parameters:
        positions = {"position_ids": (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)}
    rows = {
        number: {kind: value[:1].expand(len(ids), -1, -1, -1).contiguous() for kind, value in layer.items()}
        for number, layer in empty.items()
    }

    def part(start: int, end: int, past: Any) -> dict[str, Any]:
        mask = {"attention_mask": inputs["attention_mask"][:, :end].contiguous()} if name == "input_ids" else {}
        cut = {key: value[:, start:end].contiguous() for key, value in {name: ids, **positions}.items()}
        return {**inputs, **mask, **cut, "past_key_values": past}

    with torch.no_grad():
        past = module(**part(0, before, rows))["present"] if before else rows
    return part(before, ids.shape[1], past)


def free_sizes(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Which axes may have another size: rows; positions of words and of a raw sound; what is in the cache."""
    free = torch.export.Dim.DYNAMIC  # unlike AUTO, it refuses to take a size for fixed
    found: dict[str, Any] = {}
    for name, value in inputs.items():
        if isinstance(value, Mapping):
            found[name] = {number: {kind: {0: free, 2: free} for kind in layer} for number, layer in value.items()}
        elif name == "encoder_hidden_states":
            found[name] = {0: free, 1: free}
        else:
            found[name] = dict.fromkeys(range(value.ndim) if value.ndim < 4 and words(name, value) else [0], free)
    return found


def words(name: str, value: Tensor) -> bool:
    """Whether it is of no fixed length: words, and the wave of a sound (which is no picture and no spectrogram)."""
    return not value.is_floating_point() or value.ndim == 2


def check(module: nn.Module, part: Part, inputs: Mapping[str, Any]) -> None:
    """ExportError unless the graph answers as the module does for other sizes of these inputs."""
    for told, asked in others(module, inputs):
        with torch.no_grad():
            expected = dict(flat(module(**deepcopy(asked))))
        given = dict(flat(asked))
        try:
            found = part.run({name: given[name] for name in part.shapes})
        except Exception as problem:
            said = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
            raise ExportError(f"the graph was written, but does not run with {told}: {said}") from problem
        for name, value in expected.items():
            if name.endswith("logits") or name == "last_hidden_state":
                compare(told, value, found[name], asked)


def compare(told: str, expected: Tensor, found: Tensor, asked: Mapping[str, Any]) -> None:
    if expected.shape != found.shape:
        raise ExportError(f"with {told}, the graph gives {tuple(found.shape)} instead of {tuple(expected.shape)}")
    mask = asked.get("attention_mask")
    if (
        mask is not None
        and "encoder_hidden_states" not in asked
        and expected.ndim == mask.ndim + 1
        and expected.shape[:1] == mask.shape[:1]
    ):
        seen = mask[..., -expected.shape[-2] :].bool()  # at padding a model says what it likes
        if seen.shape == expected.shape[:-1]:
            expected, found = expected[seen], found[seen]
    error = float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt().clamp(min=1e-12))
    if not error <= TOLERANCE:
        raise ExportError(
            f"with {told}, the graph's answers differ by {error:.2g} of their size from the model's (allowed {TOLERANCE:.0e})"
        )


def others(module: Any, inputs: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The same inputs in other sizes, and what is particular about them."""
    yield "the batch that was traced", dict(inputs)
    if "past_key_values" in inputs:
        yield from other_pasts(module, inputs)
        return
    one = {name: value[:1].contiguous() for name, value in inputs.items()}
    yield "one row", one
    yield "five rows", {name: value[[0, 1, 0, 1, 1]] for name, value in inputs.items()}
    if "input_ids" not in inputs:
        return
    yield "a single token", {name: value[..., :1].contiguous() for name, value in one.items()}
    for side in ("right", "left"):
        yield f"padding on the {side}", padded(inputs, side)


def padded(inputs: Mapping[str, Tensor], side: str) -> dict[str, Tensor]:
    """Three positions more, of which the first row has nothing."""
    longer = {name: torch.cat([value, value[..., :3]], dim=-1) for name, value in inputs.items()}
    if "attention_mask" in longer:
        longer["attention_mask"][0, ..., slice(-3, None) if side == "right" else slice(None, 3)] = 0
    return longer


def other_pasts(module: Any, inputs: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    name = "decoder_input_ids" if "decoder_input_ids" in inputs else "input_ids"
    empty = {
        number: {kind: value[:, :, :0] for kind, value in layer.items()}
        for number, layer in inputs["past_key_values"].items()
    }
    for rows, before, positions, side in (
        (1, 0, 1, ""),
        (1, 0, 7, ""),
        (3, 0, 9, "left"),
        (3, 0, 9, "right"),
        (1, 4, 1, ""),
        (3, 7, 1, "left"),
        (2, 9, 2, "left"),
    ):
        numbers = [0, 1, 1][:rows]
        given: dict[str, Any] = {
            key: value[numbers].contiguous() for key, value in inputs.items() if key != "past_key_values"
        }
        ids = given[name].repeat(1, 3)[:, : before + positions]
        if name == "input_ids":
            given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            if side:
                given["attention_mask"][0, slice(-2, None) if side == "right" else slice(None, 2)] = 0
        else:
            given[name] = ids
        told = f"{rows} rows of {positions} positions after {before}" + (f", padded on the {side}" if side else "")
        yield told, after(module, name, given, empty, before)
