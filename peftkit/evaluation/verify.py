"""Whether an export is what was trained: opened in a fresh process, from disk alone, and compared on held-out rows.

asked = question(model, task, batches)
expected = answer(model, asked)                      # before the export: a merge changes the model
given = ask_fresh_process(exporter, folder, reading, Errand(asked), "cpu").answer  # fresh.py
problems(compare(expected, given, allowed), allowed) # figures.py: nothing, or why the export is refused

Both sides compute in fp32 whatever they are stored in, so that what differs are the weights and not the arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from peftkit.models.configure import context_limit
from peftkit.models.inspect import inner
from peftkit.strategies.lora import task_type
from peftkit.tasks import Task
from peftkit.tasks.base import IGNORED, Batch

POSITIONS = 512
PROMPTS = 4
NEW_TOKENS = 24
LONGEST_PROMPT = 256


@dataclass
class Question:
    """What both models are asked."""

    inputs: list[dict[str, Any]]
    """Keywords of the model's forward, a batch each."""
    positions: list[Tensor | None]
    """Per batch, which of its logits are compared: a mask over (rows, positions); None takes all."""
    prompts: list[Tensor] = field(default_factory=list)
    """Token ids to be continued."""
    each: bool = False
    """Whether each output is a number or a decision of its own, so that a shift of all of them changes what is said. The
    model that was trained knows; a base under an exported adapter does not."""
    words: int = NEW_TOKENS
    """How many tokens are written after each prompt."""


@dataclass
class Answer:
    """What a model says."""

    logits: Tensor
    """(positions, classes), fp32."""
    texts: list[Tensor] = field(default_factory=list)


def question(model: nn.Module, task: Task, batches: Sequence[Batch]) -> Question:
    """The held-out rows as both models will see them. At most POSITIONS logits and PROMPTS prompts are asked for."""
    inputs = [task.inputs(batch) for batch in batches]
    masks = [target_mask(model, batch) for batch in batches]
    return Question(inputs, thinned(masks), prompts(model, batches), decides_each(model))


def target_mask(model: nn.Module, batch: Batch) -> Tensor | None:
    """Where the logits are that predict a target, if every position of a row has labels of its own."""
    labels = batch.get("labels")
    if labels is None or labels.ndim != 2 or labels.is_floating_point():
        return None
    mask = labels != IGNORED
    if task_type(plain_model(model)) == "CAUSAL_LM":  # position t - 1 predicts t
        mask = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
    return mask if mask.any() else None


def thinned(masks: list[Tensor | None]) -> list[Tensor | None]:
    """The masks with at most POSITIONS marks in all, evenly spaced."""
    total = sum(int(mask.sum()) for mask in masks if mask is not None)
    every = -(-total // POSITIONS)
    seen, thin = 0, []
    for mask in masks:
        if mask is not None:
            number = mask.flatten().long().cumsum(0).reshape(mask.shape) - 1 + seen
            seen += int(mask.sum())
            mask = mask & (number % every == 0)
        thin.append(mask)
    return thin


def prompts(model: nn.Module, batches: Sequence[Batch]) -> list[Tensor]:
    """The beginnings of some rows, up to the first target, for models that write text."""
    if not writes(model):
        return []
    limit = context_limit(plain_model(model).config) or LONGEST_PROMPT + NEW_TOKENS
    room = max(1, min(LONGEST_PROMPT, limit - NEW_TOKENS))
    rows = [prompt(batch, row) for batch in batches if "input_ids" in batch for row in range(len(batch["input_ids"]))]
    return [ids[-room:] for ids in rows[:PROMPTS] if len(ids)]


def writes(model: nn.Module) -> bool:
    """Whether it writes text after text."""
    return task_type(plain_model(model)) in ("CAUSAL_LM", "SEQ_2_SEQ_LM")


def prompt(batch: Batch, row: int) -> Tensor:
    ids = batch["input_ids"][row]
    mask = batch.get("attention_mask")
    kept = mask[row].bool() if mask is not None and mask.ndim == 2 else torch.ones_like(ids, dtype=torch.bool)
    labels = batch.get("labels")
    if labels is not None and labels.shape == batch["input_ids"].shape:
        counted = (labels[row] != IGNORED).nonzero()
        first = int(counted[0]) if len(counted) else len(ids)
        kept = kept & (torch.arange(len(ids), device=ids.device) < max(first, 2))
    return ids[kept]


def answer(model: nn.Module, asked: Question) -> Answer:
    """The model's logits and texts, computed in fp32; the model is left as it was."""
    device = next(model.parameters()).device
    with in_fp32(model), torch.no_grad():
        dtype = next(weight.dtype for weight in model.parameters() if weight.is_floating_point())
        logits = [
            selected(logits_of(model(**on(device, inputs, dtype))), positions)
            for inputs, positions in zip(asked.inputs, asked.positions, strict=True)
        ]
        texts = [continued(model, ids.to(device), asked.words) for ids in asked.prompts]
    found = torch.cat(widened(logits))
    return Answer(found.reshape(-1, 1) if asked.each else found, texts)


def decides_each(model: nn.Module) -> bool:
    return getattr(plain_model(model).config, "problem_type", None) in ("multi_label_classification", "regression")


def on(device: torch.device, inputs: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The inputs where the model is; pixels and sound in its own format."""
    return {
        name: value.to(device, dtype if value.is_floating_point() else None) if isinstance(value, Tensor) else value
        for name, value in inputs.items()
    }


def logits_of(outputs: Any) -> Tensor:
    """(rows, ..., classes); the two of an extractive answer one above the other, their classes being positions."""
    if "logits" in outputs:
        logits: Tensor = outputs.logits
        return logits
    return torch.stack([value for name, value in outputs.items() if name.endswith("logits")], dim=1)


def widened(logits: Sequence[Tensor]) -> list[Tensor]:
    """All with as many classes as the widest: where the classes are a text's positions, a shorter one has no others."""
    widest = max(part.shape[-1] for part in logits)
    return [torch.nn.functional.pad(part, (0, widest - part.shape[-1]), value=-torch.inf) for part in logits]


def selected(logits: Tensor, positions: Tensor | None) -> Tensor:
    if positions is not None and positions.shape == logits.shape[:-1]:
        return logits[positions.to(logits.device)].float().cpu()
    return logits.flatten(0, -2).float().cpu()


def continued(model: Any, ids: Tensor, words: int) -> Tensor:
    """What the model writes after `ids`, the likeliest token each time."""
    row = ids[None]
    whole: Tensor = model.generate(
        input_ids=row, attention_mask=torch.ones_like(row), max_new_tokens=words, do_sample=False, num_beams=1
    )[0]
    is_decoder = not plain_model(model).config.is_encoder_decoder
    return (whole[len(ids) :] if is_decoder else whole).cpu()


@contextmanager
def in_fp32(model: nn.Module) -> Iterator[None]:
    """Evaluate with fp32 weights and full fp32 products, and put everything back (16-bit -> fp32 -> 16-bit is exact).

    A model whose weights are packed in a way that has its own arithmetic (torchao's tensors) computes as it is.
    """
    training = [(module, module.training) for module in model.modules()]
    precision = torch.get_float32_matmul_precision()
    formats = (
        [] if has_own_arithmetic(model) else [(holder, name, tensor.dtype) for holder, name, tensor in floats(model)]
    )
    computing: list[tuple[Any, Any]] = [
        (layer, layer.compute_dtype) for layer in model.modules() if hasattr(layer, "compute_dtype")
    ]
    attention = plain_model(model).config._attn_implementation
    try:
        torch.set_float32_matmul_precision("highest")
        cast(formats, torch.float32)
        for layer, _ in computing:
            layer.compute_dtype = torch.float32
        if attention and "flash" in attention:  # has no fp32
            plain_model(model).set_attn_implementation("sdpa")
        model.eval()
        yield
    finally:
        for module, mode in training:
            module.training = mode
        cast(formats, None)
        for layer, dtype in computing:
            layer.compute_dtype = dtype
        if attention and "flash" in attention:
            plain_model(model).set_attn_implementation(attention)
        torch.set_float32_matmul_precision(precision)


def has_own_arithmetic(model: nn.Module) -> bool:
    """Whether some weight is no plain tensor: its products are computed with inputs of the format that it names, and no other."""
    return any(type(weight.data) is not Tensor for weight in model.parameters())


def floats(model: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Parameters and buffers in a float format, without packed 4-bit weights, with who holds them."""
    for module in model.modules():
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None and tensor.is_floating_point() and not hasattr(tensor, "quant_state"):
                yield module, name, tensor


def cast(formats: list[tuple[nn.Module, str, torch.dtype]], dtype: torch.dtype | None) -> None:
    """Cast to `dtype`, or back to the format noted."""
    for holder, name, own in formats:
        tensor = getattr(holder, name)
        tensor.data = tensor.data.to(dtype or own)


def plain_model(model: nn.Module) -> Any:
    """The transformers model inside."""
    return inner(model)[1]
