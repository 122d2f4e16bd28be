"""An adapter in PEFT's format, made by any tool: its configuration, and where each of its tensors lies."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftkit.errors import ConfigError, ModelError
from peftkit.merging.base import read_json
from peftkit.merging.tensors import Stored, stored_in

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What PEFT puts before the names of a model's modules."""

INPUTS = {
    *("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT", "CARTRIDGE"),
}
"""Kinds that are inputs or computations beside the layers: no weight of the base could hold them."""


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")


def _is_pattern(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and all(map(_is_number, value.values())))


def _are_names(value: Any) -> bool:
    return (
        value is None
        or isinstance(value, str)
        or (isinstance(value, list) and all(isinstance(one, str) for one in value))
    )


RIGHT: Mapping[str, Callable[[Any], bool]] = {
    "lora_alpha": lambda value: value is None or _is_number(value),
    "rank_pattern": _is_pattern,
    "alpha_pattern": _is_pattern,
    "target_modules": _are_names,
    "modules_to_save": _are_names,
}
"""What a setting must be, wherever the file is from."""
NO_ADAPTER = {
    "arrow_config": "routes each token to another adapter",
    "alora_invocation_tokens": "acts on the tokens after an invocation only",
    "layer_replication": "repeats layers, which makes another model",
    "megatron_config": "belongs to Megatron's layers",
}
"""Settings under which an adapter is no change of the base's weights."""
APART = {
    *("LORA", "ADALORA", "LOHA", "LOKR", "IA3", "OFT", "BOFT", "HRA", "MISS", "VERA", "FOURIERFT", "LN_TUNING"),
    "TRAINABLE_TOKENS",
}
"""Kinds that are the same whatever the base's weights are, and that tests merge."""
LORA = {
    *(
        "peft_type",
        "peft_version",
        "task_type",
        "auto_mapping",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
    ),
    *("r", "lora_alpha", "lora_dropout", "target_modules", "rank_pattern", "alpha_pattern", "use_rslora", "bias"),
    *("fan_in_fan_out", "init_lora_weights", "megatron_core", "qalora_group_size", "loftq_config", "eva_config"),
    *("corda_config", "lora_ga_config", "runtime_config", "ensure_weight_tying", "layers_pattern"),
}
"""Settings of plain LoRA on whole layers, and those that say nothing of the weights."""
PLAIN = LORA | {
    *("use_dora", "lora_bias", "target_parameters", "exclude_modules", "layers_to_transform", "modules_to_save"),
    "trainable_token_indices",
}
"""Settings of LoRA that take nothing from the base's weights."""
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that take something out of the base's weights when they begin."""


@dataclass(frozen=True)
class Adapter:
    folder: Path
    config: dict[str, Any]
    """adapter_config.json."""
    tensors: Mapping[str, Stored]
    """By the names in the file, without PEFT's prefix."""

    @property
    def kind(self) -> str:
        return str(self.config["peft_type"])

    @property
    def says(self) -> str:
        rank = f", rank {self.config['r']}" if "r" in self.config else ""
        return (
            f"{self.kind}{rank}, {len(self.tensors)} tensors, {sum(one.size for one in self.tensors.values()):,} bytes"
        )


def read_adapter(folder: Path) -> Adapter:
    """Raises ConfigError if the folder holds none, ModelError if it cannot be merged, or is damaged."""
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"--adapter {folder} is no adapter's folder: it has no {CONFIG}")
    config = read_json(folder / CONFIG, "--adapter")
    _check(folder, config)
    if not (folder / WEIGHTS).is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        told = (
            "; a pickle (adapter_model.bin) is not read in its place: save it as safetensors first" if pickled else ""
        )
        raise ModelError(f"--adapter {folder} has no {WEIGHTS}{told}")
    tensors = {name.removeprefix(PREFIX): stored for name, stored in stored_in(folder / WEIGHTS).items()}
    if not tensors:
        raise ModelError(f"--adapter {folder / WEIGHTS} is empty")
    return Adapter(folder, config, tensors)


def _check(folder: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if not isinstance(kind, str):
        raise ModelError(f"--adapter {folder / CONFIG} does not say what kind of adapter it is (peft_type)")
    if kind in INPUTS or kind == "XLORA":
        raise ModelError(
            f"--adapter {folder} is of the kind {kind}, which is no change of the base's weights: it cannot be merged;"
            " serve it beside the base"
        )
    strange = next((name for name, is_right in RIGHT.items() if not is_right(config.get(name))), None)
    if strange is not None:
        raise ModelError(f"--adapter {folder / CONFIG}: its {strange} is {config[strange]!r}, which says nothing")
    for name, why in NO_ADAPTER.items():
        if config.get(name):
            raise ModelError(f"--adapter {folder}: its {name} {why}, so it cannot be merged")


def needs_base(config: Mapping[str, Any]) -> str:
    """Why the adapter can only stand on the base's own weights, as far as is known; empty if it cannot be seen from them."""
    begins = config.get("init_lora_weights")
    if isinstance(begins, str) and begins.lower().startswith(CHANGES_BASE):
        return f"{begins} takes part of the base's weights into the adapter"
    if config["peft_type"] not in APART:
        return f"an adapter of the kind {config['peft_type']} may begin from the base's weights"
    strange = [name for name, value in config.items() if value and name not in PLAIN]
    if config["peft_type"] == "LORA" and strange:
        return f"{', '.join(sorted(strange))} may take something from the base's weights"
    return ""


def scaling(config: Mapping[str, Any], module: str) -> tuple[int, float]:
    """The rank that the configuration gives a module, and what its product is multiplied by."""
    rank = of_pattern(config.get("rank_pattern"), module, config.get("r", 8))
    if not _is_number(rank):
        raise ModelError(f"the adapter's rank is {rank!r} for {module}, which is none")
    alpha = of_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha") or 8)
    return rank, alpha / (rank**0.5 if config.get("use_rslora") else rank)


def of_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """The value of the first name or regular expression that is the module's name or its end, as PEFT reads them."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def is_targeted(config: Mapping[str, Any], module: str) -> bool:
    targets = config.get("target_modules") or ()
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    return any(module == target or module.endswith(f".{target}") for target in targets)
