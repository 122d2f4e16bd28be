"""A transformers model with every module and shape, and no weights: each parameter is one zero, seen as often as it has numbers.

PEFT stands its adapters on it as on any model in main memory (on torch's meta device it would move them there too, where
they are lost).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from peftkit.errors import ModelError
from peftkit.merging.adapter import Adapter
from peftkit.merging.base import Base

AUTO = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "FEATURE_EXTRACTION": "AutoModel",
}
HEADS = re.compile(r"(^|\.)(score|classifier|classifier\.out_proj)\.weight$")
"""Weights with a row for each label."""


@dataclass(frozen=True)
class Names:
    """How the names in a base's files and those of a model go together."""

    file: Mapping[str, str]
    """The model's name -> the file's, where one tensor is one tensor."""
    output: Mapping[str, str]
    """The file's name -> the name in the merged folder's files."""
    converted: Mapping[str, str]
    """The file's name -> the model's name, where transformers makes one tensor of several, or several of one."""
    unused: tuple[str, ...]
    """Tensors of the files that the model does not have."""


def hollow(base: Base, adapter: Adapter, labels: Mapping[int, str] | None, trust: bool) -> Any:
    """The model that the adapter was trained on. ModelError if it cannot be made."""
    try:
        config = transformers.AutoConfig.from_pretrained(base.folder, trust_remote_code=trust)
        config.__dict__.pop("quantization_config", None)
        _set_sizes(config, base, adapter, labels)
        with torch.device("meta"):
            model = _make(config, adapter, trust)
    except Exception as problem:  # a configuration from elsewhere makes the library raise anything
        first = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        told = (
            "; allow its code with --trust-remote-code, if you have read it"
            if "trust_remote_code" in str(problem)
            else ""
        )
        raise ModelError(f"--base {base.folder}: its model cannot be made ({first}){told}") from problem
    empty(model)
    return model.eval()


def empty(model: nn.Module) -> None:
    """Let every parameter and buffer be in main memory and take none; what is tied stays tied."""
    seen: dict[int, Any] = {}
    for module in model.modules():
        for held, wrap in ((module._parameters, True), (module._buffers, False)):
            for name, tensor in held.items():
                if tensor is not None:
                    blank = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
                    made = nn.Parameter(blank, requires_grad=False) if wrap else blank
                    held[name] = seen.setdefault(id(tensor), made)


def names_of(base: Base, model: Any) -> Names:
    """By transformers' own rules: what `from_pretrained` would do with each name in the files."""
    known = model.state_dict()
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    prefix = model.base_model_prefix
    file, output, converted, unused = {}, {}, {}, []
    for name in base.tensors:
        target, pattern = rename_source_key(name, renamings, converters, prefix, known)
        if target not in known and name in known:
            target, pattern = rename_source_key(name, [], [], prefix, known)
        if target not in known:
            unused.append(name)
        elif pattern is not None:
            converted[name] = target
        else:
            file[target] = name
            plain, _ = rename_source_key(name, renamings, converters)
            output[name] = name if target in (plain, name) else target
    return Names(file, output, converted, tuple(unused))


def _set_sizes(config: Any, base: Base, adapter: Adapter, labels: Mapping[int, str] | None) -> None:
    """Labels and vocabulary as the adapter has them."""
    if labels:
        config.id2label, config.label2id = dict(labels), {label: number for number, label in labels.items()}
    for name, stored in adapter.tensors.items():
        if HEADS.search(name) and config.num_labels != stored.shape[0] and not labels:
            config.num_labels = stored.shape[0]
    rows = vocabulary(base, adapter)
    if rows is not None:
        config.get_text_config().vocab_size = rows


def vocabulary(base: Base, adapter: Adapter) -> int | None:
    """Rows of the adapter's own embedding, if it has one of another size than the base's."""
    for name, stored in adapter.tensors.items():
        plain = name.replace(".base_layer.", ".")
        old = next((one for known, one in base.tensors.items() if known == plain or known.endswith(f".{plain}")), None)
        if old is None or len(stored.shape) != 2 or ".lora_" in name or HEADS.search(name):
            continue
        if old.shape[1] == stored.shape[1] and old.shape[0] == base_rows(base) != stored.shape[0]:
            return stored.shape[0]
    return None


def base_rows(base: Base) -> int | None:
    """What the base's configuration says of its vocabulary."""
    parts = [base.config, *(part for part in base.config.values() if isinstance(part, dict))]
    return next((part["vocab_size"] for part in parts if "vocab_size" in part), None)


def _make(config: Any, adapter: Adapter, trust: bool) -> Any:
    kinds = [name for name in config.architectures or () if hasattr(transformers, name)]
    task = adapter.config.get("task_type")
    said = adapter.config.get("auto_mapping") or {}
    if hasattr(transformers, str(said.get("base_model_class"))):
        kinds.insert(0, said["base_model_class"])
    if kinds and (task is None or _serves(kinds[0], task)):
        return getattr(transformers, kinds[0])._from_config(config, dtype=torch.float32)
    auto = getattr(transformers, AUTO.get(str(task), "AutoModel"))
    return auto.from_config(config, trust_remote_code=trust, dtype=torch.float32)


def _serves(kind: str, task: str) -> bool:
    """Whether a class of this name does the task."""
    ends = {
        "SEQ_CLS": ("ForSequenceClassification", "ForImageClassification", "ForAudioClassification"),
        "TOKEN_CLS": ("ForTokenClassification",),
        "QUESTION_ANS": ("ForQuestionAnswering",),
        "SEQ_2_SEQ_LM": ("ForConditionalGeneration", "MTModel", "ForSpeechSeq2Seq"),
        "CAUSAL_LM": ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "DoubleHeadsModel"),
        "FEATURE_EXTRACTION": ("Model",),
    }
    return kind.endswith(ends.get(task, ("",)))
