"""Find, check and load a base model, with its tokenizer and what the run changes in them.

base = load(run.model, run.task, run.strategy, torch.float32, seed=42)
base.model, base.processor, base.fresh
"""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from transformers import AutoConfig
from transformers.utils import cached_file

from peftkit.cache import cache_root, digest
from peftkit.config.sections import Model
from peftkit.errors import ModelError
from peftkit.models.code import why_unread
from peftkit.models.configure import configure, context_limit
from peftkit.models.find import check_weights, find, hub_words, shapes, weight_files
from peftkit.models.inspect import head_paths, places, stacks
from peftkit.models.library import PreTrainedModel, get_keys_to_not_convert, local_torch_dtype
from peftkit.models.processor import load_processor, vocabulary
from peftkit.models.recompute import recompute
from peftkit.models.whole import whole_weights
from peftkit.strategies import Strategy
from peftkit.tasks import Task

__all__ = [
    "Base",
    "base_files",
    "context_limit",
    "find",
    "fingerprint",
    "fresh_in",
    "load",
    "load_processor",
    "skeleton",
]


@dataclass(frozen=True)
class Base:
    """A base model as a run starts from it."""

    model: PreTrainedModel
    processor: Any
    """The tokenizer; for images and audio, the processor."""
    fresh: tuple[str, ...]
    """Parameters that the checkpoint does not have, or not whole: a new head, embeddings with rows for added tokens."""
    source: str
    """The folder or hub name that it was loaded from."""
    fingerprint: str
    """sha256 over the weight files."""


def load(
    settings: Model, task: Task, strategy: Strategy, dtype: torch.dtype, seed: int, cache: Path | None = None
) -> Base:
    """Load the model that `settings` names, for the task, in the way the strategy wants it (4-bit, ...).

    What the checkpoint lacks is drawn from `seed`. Under an HfDeepSpeedConfig for ZeRO-3 the weights come in shards.
    """
    source = find(settings, cache)
    processor = load_processor(settings, source, task.reads)
    config = configure(settings, task, source)
    _check_vocabulary(config, processor, settings)
    if Path(source).is_dir():
        check_weights(Path(source))
    blank = _blank(settings, task, config, dtype)
    _check_attention(blank, task)
    torch.manual_seed(seed)
    with whole_weights() if _is_made_whole(blank) or _is_resized(blank, settings, source) else nullcontext():
        model, fresh = _read(settings, task, strategy, dtype, source, config, blank)
    torch.manual_seed(seed)
    fresh |= _grow(model, processor, settings)
    _set_up(model, processor, settings)
    task.ready(model)
    order = [name for name, _ in model.named_parameters() if name in fresh]
    return Base(model, processor, tuple(order), source, fingerprint(settings, source, cache))


def skeleton(
    settings: Model, task: Task, strategy: Strategy, dtype: torch.dtype, cache: Path | None = None
) -> PreTrainedModel:
    """The same model on the meta device: every module and shape, and no weights. For plans."""
    source = find(settings, cache)
    config = configure(settings, task, source)
    if settings.add_tokens:
        text = config.get_text_config()
        text.vocab_size = max(text.vocab_size, vocabulary(load_processor(settings, source)))
    model = _blank(settings, task, config, dtype)
    _quantise(model, strategy.loading(dtype), dtype)
    _check_attention(model, task)
    return model


def fresh_in(skeleton: nn.Module, source: str) -> tuple[str, ...]:
    """What a load of the folder `source` would make anew: parameters after the layers that its files lack, or of another shape.

    Embeddings of added tokens that fit into the vocabulary as it is are not seen here.
    """
    known, where = _stored(source), places(skeleton)

    def is_fresh(name: str, shape: tuple[int, ...]) -> bool:
        # A base model alone is stored without the prefix that it has under a head.
        stored = known.get(name, known.get(name.partition(".")[2]))
        if where[name].part == "embeddings":
            return stored not in (None, shape)
        return where[name].part != "layer" and stored != shape

    parameters = skeleton.named_parameters() if known else ()
    return tuple(name for name, parameter in parameters if is_fresh(name, tuple(parameter.shape)))


def _stored(source: str) -> dict[str, tuple[int, ...]]:
    """Shapes of what lies in a folder's safetensors, by name."""
    files = [file for file in weight_files(Path(source)) if file.suffix == ".safetensors"]
    return {name: shape for file in files for name, shape in shapes(file).items()}


def fingerprint(settings: Model, source: str, cache: Path | None = None) -> str:
    """sha256 over the names and digests of the base's weight files, so that a checkpoint knows the base it belongs to."""
    root = cache_root(cache)
    lines = [f"{file.name}:{digest(file, root)}" for file in weight_files(folder_of(settings, source))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def base_files(settings: Model, source: str, cache: Path | None = None) -> dict[str, str]:
    """sha256 of the base's weight files and of its configuration, by name: what anyone can check with sha256sum."""
    folder, root = folder_of(settings, source), cache_root(cache)
    files = [*weight_files(folder), *filter(Path.is_file, [folder / "config.json"])]
    return {file.name: digest(file, root) for file in sorted(files)}


def folder_of(settings: Model, source: str) -> Path:
    """Where the base's files lie on this machine."""
    folder = Path(source)
    if folder.is_dir():
        return folder
    words = {name: value for name, value in hub_words(settings, source).items() if name != "trust_remote_code"}
    return Path(str(cached_file(source, "config.json", **words))).parent


def _read(
    settings: Model,
    task: Task,
    strategy: Strategy,
    dtype: torch.dtype,
    source: str,
    config: Any,
    blank: PreTrainedModel,
) -> tuple[PreTrainedModel, set[str]]:
    words = hub_words(settings, source) | _attention(settings) | strategy.loading(dtype)
    if "quantization_config" in words:
        _keep_head_whole(words["quantization_config"], blank)
    if not Path(source).is_dir():
        words["use_safetensors"] = True  # a pickle from elsewhere is read by nobody
    try:
        model, report = task.model_class().from_pretrained(
            source, config=config, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **words
        )
    except (OSError, ValueError, ImportError, RuntimeError, UnpicklingError) as problem:
        raise ModelError(f"--model {source} cannot be loaded: {_why(problem, source)}") from problem
    _keep_fixed(model, blank)
    resized = {entry[0] if isinstance(entry, (tuple, list)) else entry for entry in report["mismatched_keys"]}
    return model, _made_anew(model, set(report["missing_keys"]), resized, source)


def _why(problem: Exception, source: str) -> str:
    if isinstance(problem, UnpicklingError):
        return (
            "its weights are a pickle (.bin) that holds more than tensors, and nothing of it was run;"
            " ask whoever made it for safetensors"
        )
    return why_unread(problem, source) if "trust_remote_code" in str(problem) else str(problem)


def _keep_fixed(model: PreTrainedModel, blank: PreTrainedModel) -> None:
    """from_pretrained lets every weight train, also sinusoidal positions, which the architecture holds fixed."""
    fixed = {name for name, parameter in blank.named_parameters() if not parameter.requires_grad}
    for name, parameter in model.named_parameters():
        if name in fixed:
            parameter.requires_grad_(False)


def _made_anew(model: PreTrainedModel, missing: set[str], resized: set[str], source: str) -> set[str]:
    """The parameters that were not read. In the head they are a task's new ones; within the layers the checkpoint is wrong."""
    where = places(model)
    own = {id(parameter): name for name, parameter in model.named_parameters()}
    named = {name: own[id(parameter)] for name, parameter in model.named_parameters(remove_duplicate=False)}
    fixed = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    absent = {named[name] for name in missing | resized if name in named} - fixed
    misfits = {named[name] for name in resized if name in named}
    body = {name for name in absent if where[name].part in ("layer", "embeddings")}
    # Only a head may be of another shape than the checkpoint's: it had other labels.
    torn = sorted(body | {name for name in misfits if where[name].part != "head"})
    if torn:
        raise ModelError(
            f"--model {source}: {len(torn)} weights that its config.json asks for are missing or of another shape"
            f" ({', '.join(torn[:3])}{' ...' if torn[3:] else ''}); the folder is incomplete or mixed"
        )
    return absent


def _attention(settings: Model) -> dict[str, Any]:
    return {} if settings.attention == "auto" else {"attn_implementation": settings.attention}


def _check_vocabulary(config: Any, processor: Any, settings: Model) -> None:
    rows = getattr(config.get_text_config(), "vocab_size", None)
    if rows is None or not hasattr(processor, "get_vocab") or settings.add_tokens:
        return
    excess = vocabulary(processor) - rows
    if excess > 0:
        raise ModelError(
            f"the tokenizer has {excess} tokens more than the model's vocabulary of {rows:,}; name the tokens to add with"
            " --model.add_tokens, which grows the vocabulary, or another tokenizer with --model.tokenizer"
        )


def _check_attention(model: PreTrainedModel, task: Task) -> None:
    # transformers makes a "causal" BERT with a warning only; it sees the words it is to predict and learns nothing.
    causal = task.model_class().__name__ == "AutoModelForCausalLM"
    if causal and all(stack.side == "encoder" for stack in stacks(model)):
        raise ModelError(
            f"--task {task.name} needs a decoder; {type(model).__name__} here is an encoder, which sees what follows"
        )


def _is_made_whole(model: PreTrainedModel) -> bool:
    """Whether transformers cannot make it in shards, so that ZeRO-3 cuts it up only when it is there."""
    # Weight norm computes a weight from others; transformers 5.23 computes Whisper's positions from a shape that is cut.
    return model.config.model_type == "whisper" or any(is_parametrized(module) for module in model.modules())


def _is_resized(model: PreTrainedModel, settings: Model, source: str) -> bool:
    """Whether the checkpoint's head has other labels: loading shards, transformers stops at that, on the first process alone."""
    if Path(source).is_dir():
        stored = _stored(source)
        return any(stored.get(name, tuple(own.shape)) != tuple(own.shape) for name, own in model.named_parameters())
    base = AutoConfig.from_pretrained(source, **hub_words(settings, source))
    return type(model).__name__ in (base.architectures or ()) and base.num_labels != model.config.num_labels


def _grow(model: PreTrainedModel, processor: Any, settings: Model) -> set[str]:
    """Rows for added tokens; returns the names of the embeddings (and of an untied output layer), which must then train."""
    if not settings.add_tokens:
        return set()
    table = model.get_input_embeddings()
    rows = vocabulary(processor)
    if rows > table.num_embeddings:  # never smaller: some models have more rows than their tokenizer has tokens
        model.resize_token_embeddings(rows, mean_resizing=True)
    own = {id(parameter): name for name, parameter in model.named_parameters()}
    ends = [end for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None]
    return {own[id(parameter)] for end in ends for parameter in end.parameters()}


def _set_up(model: PreTrainedModel, processor: Any, settings: Model) -> None:
    pad = getattr(processor, "pad_token_id", None)
    for config in filter(None, (model.config, getattr(model, "generation_config", None))):
        if pad is not None and getattr(config, "pad_token_id", None) in (None, -1):
            config.pad_token_id = pad  # decoders that classify look for the last token before the padding
    if settings.gradient_checkpointing:
        try:
            # Older versions of transformers have the second name only.
            recompute(model, settings.gradient_checkpointing)
        except ValueError as problem:
            raise ModelError(f"--model.gradient_checkpointing: {problem}") from problem
    model.train()  # from_pretrained returns it in evaluation mode


def _blank(settings: Model, task: Task, config: Any, dtype: torch.dtype) -> PreTrainedModel:
    kind = task.model_class()
    words = {"dtype": dtype, **_attention(settings)}
    if hasattr(kind, "from_config"):  # an Auto class
        words["trust_remote_code"] = settings.trust_remote_code
    make = getattr(kind, "from_config", None) or kind._from_config
    try:
        with whole_weights(), torch.device("meta"):
            return make(deepcopy(config), **words)
    except (ImportError, ValueError) as problem:  # an attention kernel that is not there, or not for this model
        raise ModelError(f"--model cannot be made as asked: {problem}") from problem


def _quantise(model: PreTrainedModel, loading: dict[str, Any], dtype: torch.dtype) -> None:
    """Replace the skeleton's layers by those that `from_pretrained` would make."""
    if "quantization_config" not in loading:
        return
    from transformers.quantizers.auto import AutoHfQuantizer

    _keep_head_whole(loading["quantization_config"], model)
    quantizer = AutoHfQuantizer.from_config(loading["quantization_config"])
    with torch.device("meta"), local_torch_dtype(dtype):
        quantizer.preprocess_model(model=model, dtype=dtype, device_map=None)


def _keep_head_whole(quantization: Any, skeleton: PreTrainedModel) -> None:
    """Leave the head as it is: it is small, it trains, and a 4-bit one takes a checkpoint's other labels without a word."""
    if getattr(quantization, "llm_int8_skip_modules", ()) is None:
        quantization.llm_int8_skip_modules = get_keys_to_not_convert(skeleton) + head_paths(skeleton)
