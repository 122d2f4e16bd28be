"""Text written by a model: greedy or with beams, so that the same weights write the same text in any world."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from peftkit.config.sections import Generate
from peftkit.models.inspect import inner
from peftkit.tasks import Task
from peftkit.tasks.base import Batch
from peftkit.tasks.next_token import padding_id


def write_texts(model: Any, task: Task, batch: Batch, processor: Any, settings: Generate) -> list[list[int]] | None:
    """The new tokens of each row of the batch, without padding and what follows the end; None if the task writes no text.

    All processes of a ZeRO-3 world must call it together, each with a batch.
    """
    plain: Any = getattr(model, "module", model)  # DeepSpeed's engine has no `generate`
    asked = prompts(plain, task, batch, processor)
    if asked is None:
        return None
    whole = plain.generate(
        **asked.words,
        **how(settings),
        **without_sampling(plain),
        eos_token_id=sorted(asked.ends) or None,
        pad_token_id=padding_id(getattr(processor, "tokenizer", processor)),
        do_sample=False,
        # Switched off in the configuration for training; here it spares computing the whole text again for each token.
        use_cache=True,
        synced_gpus=_is_sharded(plain),
    )
    config: Any = inner(plain)[1].config
    # An encoder-decoder's text begins with its start token, a decoder's with the prompt.
    start = 1 if config.is_encoder_decoder else asked.words["input_ids"].shape[1]
    return [until_end(row, asked.ends) for row in whole[:, start:].tolist()]


@dataclass(frozen=True)
class Prompts:
    """What is to be continued."""

    words: dict[str, Any]
    """Of `generate`: the rows' tokens, padded, and where they are."""
    ends: set[int]
    """Every token that ends a text."""


def prompts(model: Any, task: Task, batch: Batch, processor: Any) -> Prompts | None:
    """The prompts in a batch's rows; None if the task writes no text."""
    words = task.prompts(batch, processor)
    if words is None:
        return None
    tokenizer = getattr(processor, "tokenizer", processor)  # of a model that hears or sees, too
    return Prompts(words, {*words.pop("eos_token_id", ()), *ends_of(model, tokenizer)})


def until_end(ids: list[int], ends: set[int]) -> list[int]:
    """The tokens before the first that ends a text."""
    stop = next((at for at, token in enumerate(ids) if token in ends), len(ids))
    return ids[:stop]


def ends_of(model: Any, processor: Any) -> set[int]:
    """Every token that ends a text: the tokenizer's, and those that the model's own settings name."""
    named = model.generation_config.eos_token_id
    known = named if isinstance(named, list) else [named]
    return {token for token in [*known, getattr(processor, "eos_token_id", None)] if token is not None}


def how(settings: Generate) -> dict[str, Any]:
    """The settings as `generate` takes them: the ones that only beams have are left out without them."""
    words = settings.model_dump()
    return words if settings.num_beams > 1 else {**words, "length_penalty": None}


def without_sampling(model: Any) -> dict[str, Any]:
    """A model's own settings for sampling would be warned of, as nothing is drawn here."""
    drawn = ("temperature", "top_p", "top_k", "typical_p", "min_p")
    return {name: None for name in drawn if getattr(model.generation_config, name, None) is not None}


def _is_sharded(model: Any) -> bool:
    first = next(model.parameters())
    return hasattr(first, "ds_status") and torch.distributed.is_initialized()
