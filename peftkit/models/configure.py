"""A base model's configuration, with what the run and the task change in it; and the longest input it takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from peftkit.config.sections import Model
from peftkit.errors import ModelError
from peftkit.models.code import TRUST, kernels_of, why_unread
from peftkit.models.find import hub_words
from peftkit.models.library import PreTrainedModel
from peftkit.models.whole import whole_weights
from peftkit.tasks import Task

LIMITS = ("max_position_embeddings", "max_target_positions", "max_encoder_position_embeddings", "max_seq_len")


def configure(settings: Model, task: Task, source: str) -> Any:
    """The configuration that the model is made from. Raises ModelError if it cannot be read or does not fit the task."""
    words = hub_words(settings, source)
    try:
        config = AutoConfig.from_pretrained(source, **words, **task.model_options())
    except Exception as problem:
        raise ModelError(f"--model {source}: {why_unread(problem, source)}") from problem
    for name, value in task.model_options().items():
        if value is not None and not hasattr(
            config, name
        ):  # transformers takes only what it knows; thresholds shall stand there all the same
            setattr(config, name, value)
    if settings.dropout is not None:
        set_dropout(config, settings.dropout)
    if settings.gradient_checkpointing:
        config.use_cache = False
    _check_task(config, task, settings)
    _check_kernels(config, settings, source)
    return config


def keep_no_cache(model: nn.Module) -> None:
    """Let the model, and parts of it that have a configuration of their own (T5's decoder), keep no keys and values for a next
    token: training has no use for them, and they are copies."""
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            part.config.use_cache = False


def set_dropout(config: Any, probability: float) -> None:
    """Give every dropout probability of the configuration, and of those inside it, this value."""
    found = [(part, name) for part in _parts(config) for name in _dropouts(part)]
    if not found and probability:
        raise ModelError(f"--model.dropout {probability}: a {config.model_type} has no dropout")
    for part, name in found:
        setattr(part, name, probability)


def context_limit(config: Any) -> int | None:
    """The longest input in positions; None where there is no limit (relative positions, images)."""
    text = config.get_text_config()
    limit = next((value for name in LIMITS if (value := getattr(text, name, None))), None)
    if not limit or limit < 0:
        return None
    return int(limit) - _skipped_positions(text, limit)


def _skipped_positions(config: Any, limit: int) -> int:
    """RoBERTa and its kin number positions from the padding id on, so that many of their table's rows are never used.

    Only such a table of positions has a padding row of its own, so the model is made, without weights, to look at it.
    """
    if getattr(config, "pad_token_id", None) is None or getattr(config, "rope_parameters", None):
        return 0
    with whole_weights(), torch.device("meta"):
        model = AutoModel.from_config(config)
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and "position" in name and module.num_embeddings == limit:
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


def _check_task(config: Any, task: Task, settings: Model) -> None:
    kind = task.bind(config).model_class()
    mapping = getattr(kind, "_model_mapping", None)
    if mapping is not None and type(config) not in mapping and not settings.trust_remote_code:
        raise ModelError(
            f"--task {task.name} does not go with this model: transformers has no {kind.__name__} for {config.model_type}"
        )


def _check_kernels(config: Any, settings: Model, source: str) -> None:
    kernels = kernels_of(config)
    if kernels and settings.attention == "auto" and not settings.trust_remote_code:
        raise ModelError(
            f"--model {source}: its config.json asks for code from the hub to compute attention ({', '.join(kernels)}), which was"
            f" not fetched; choose another with --model.attention, or allow it with {TRUST}"
        )


def _parts(config: Any) -> Iterator[Any]:
    yield config
    for name in getattr(config, "sub_configs", {}):
        part = getattr(config, name, None)
        if part is not None:
            yield from _parts(part)


def _dropouts(config: Any) -> list[str]:
    """Names of its dropout probabilities; dropping whole layers (layerdrop, drop_path) is another thing."""
    return [
        name
        for name, value in vars(config).items()
        if ("dropout" in name or "pdrop" in name) and isinstance(value, (int, float)) and not isinstance(value, bool)
    ]
