"""DeepSpeed's own JSON: found by name or path, its "auto"s filled from the run, its clashes with the run named.

Sources: https://www.deepspeed.ai/docs/config-json/ (what may stand in it).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from peftkit.engine.optim import Optimizer
from peftkit.errors import ConfigError
from peftkit.registry import did_you_mean

AUTO = "auto"
MICRO, ACCUMULATION = "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"
Config = dict[str, Any]


def folder() -> Path:
    """Where ds_configs/ lies: inside an installed package, or beside it in a clone."""
    installed = Path(__file__).parents[1] / "ds_configs"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "ds_configs"


def names() -> list[str]:
    """The configurations that `--deepspeed` takes by name."""
    return sorted(path.stem for path in folder().glob("*.json"))


def find_config(name: str) -> Path:
    """The file behind `--deepspeed NAME`, or a ConfigError that names the nearest."""
    for path in (folder() / f"{name}.json", Path(name)):
        if path.is_file():
            return path
    raise ConfigError(
        f"--deepspeed {name!r} is neither a file nor one of ds_configs/{did_you_mean(name, names())}: {', '.join(names())}"
    )


def read_config(name: str) -> Config:
    """The file's content as it stands, or a ConfigError that says where it is broken."""
    path = find_config(name)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise ConfigError(f"--deepspeed {path}: not JSON: {problem}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"--deepspeed {path}: a DeepSpeed configuration is an object, {{...}}")
    config: Config = _without_nulls(content)
    problems = list(malformed(config))
    if problems:
        raise ConfigError([f"--deepspeed {path}: {problem}" for problem in problems])
    return config


BLOCKS = ("zero_optimization", "bf16", "fp16", "optimizer", "scheduler", "data_types")


def malformed(config: Config) -> Iterator[str]:
    """What cannot be read as a DeepSpeed configuration, a sentence each. A misspelt key DeepSpeed itself would ignore."""
    for name in BLOCKS:
        if not isinstance(config.get(name, {}), dict):
            yield f"{name} is {config[name]!r}, and has to be an object"
    known = [*BLOCKS, *FLAGS, "activation_checkpointing", "zero_allow_untested_optimizer"]
    for name in config:
        near = get_close_matches(name, known, n=1, cutoff=0.85)
        if near and name not in known:
            yield f"DeepSpeed knows no {name!r}; did you mean {near[0]!r}?"
    zero = config.get("zero_optimization")
    if isinstance(zero, dict) and zero.get("stage", 0) not in range(4):
        yield f"zero_optimization.stage is {zero['stage']!r}; there are 0, 1, 2 and 3"


def _without_nulls(value: Any) -> Any:
    """A null says what leaving the key out says."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return value


@dataclass(frozen=True)
class Plan:
    """What the run decides of DeepSpeed's configuration. `precision` is fp32, bf16 or fp16."""

    total: int
    micro: int
    processes: int
    precision: str
    optim: Optimizer
    nvme: Path

    @property
    def accumulation(self) -> int:
        """Micro-batches that each process runs for a full step."""
        return math.ceil(self.total / (self.micro * self.processes))


def stage_of(config: Config) -> int:
    """The ZeRO stage."""
    return int(config.get("zero_optimization", {}).get("stage", 0))


def offloads_optimizer(config: Config) -> bool:
    """Whether the optimizer's state lives outside the accelerator."""
    return offload_devices(config)[0] != "none"


def offload_devices(config: Config) -> tuple[str, str]:
    """Where the optimizer's state and the parameters are offloaded to: none, cpu or nvme."""
    zero = config.get("zero_optimization", {})
    optimizer, parameters = (zero.get(f"offload_{what}", {}).get("device", "none") for what in ("optimizer", "param"))
    return str(optimizer), str(parameters)


def fill(config: Config, plan: Plan) -> Config:
    """`config` with every "auto" filled; ConfigError names both sides of every clash at once."""
    problems = list(clashes(config, plan))
    if problems:
        raise ConfigError(problems)
    zero = {**config.get("zero_optimization", {})}
    if stage_of(config) == 0 and plan.precision != "fp32":
        # DeepSpeed's 16-bit optimizer without ZeRO takes a step with zero gradients when it is made, which moves the
        # weights by their decay and shifts Adam's moments. Stage 1 computes the same without that step.
        zero["stage"] = 1
    for section in ("offload_optimizer", "offload_param"):
        if zero.get(section, {}).get("nvme_path") == AUTO:
            zero[section] = {**zero[section], "nvme_path": str(plan.nvme)}
    zero.update({name: size for name, size in SIZES.items() if zero.get(name) == AUTO})
    if zero.get("overlap_comm") == AUTO:
        zero["overlap_comm"] = plan.processes > 1 and has_streams()
    filled = {key: value for key, value in config.items() if key not in ("optimizer", "scheduler")}
    filled["zero_optimization"] = zero
    filled.update(decided(plan))
    filled["fp16"] = {**config.get("fp16", {}), "enabled": plan.precision == "fp16"}
    filled["bf16"] = {**config.get("bf16", {}), "enabled": plan.precision == "bf16"}
    if plan.precision != "fp32":
        # Summed in 16 bits, the gradient of many micro-batches loses what a single one keeps.
        filled["data_types"] = {"grad_accum_dtype": "fp32", **config.get("data_types", {})}
    filled["steps_per_print"] = None if config.get("steps_per_print", AUTO) == AUTO else config["steps_per_print"]
    filled["zero_allow_untested_optimizer"] = True
    if offloads_optimizer(config):
        filled["zero_force_ds_cpu_optimizer"] = False  # ours are DeepSpeed's own where it has one; --optim decides
    left = list(autos(filled))
    if left:
        raise ConfigError(
            [f'--deepspeed: {key} is "auto", and nothing in a run decides it; give a value' for key in left]
        )
    return filled


def has_streams() -> bool:
    """Whether gradients can be summed over the processes while the rest of them is computed: not on a CPU."""
    import torch

    return torch.cuda.is_available()


def decided(plan: Plan) -> Config:
    """The top-level keys that the run decides."""
    return {
        MICRO: plan.micro,
        ACCUMULATION: plan.accumulation,
        # DeepSpeed wants the product; the loop counts targets itself, so a step with fewer rows is as right as a full one.
        "train_batch_size": plan.micro * plan.accumulation * plan.processes,
        "gradient_clipping": plan.optim.clip,
    }


SIZES = {
    "reduce_bucket_size": 50_000_000,
    "allgather_bucket_size": 50_000_000,
    "stage3_prefetch_bucket_size": 50_000_000,
    "stage3_param_persistence_threshold": 100_000,
}
"""What other tools compute from the model where a file says "auto": the sizes in ds_configs/, in elements."""

FLAGS = {
    MICRO: "--batch.micro",
    ACCUMULATION: "--batch.total / (--batch.micro x processes)",
    "train_batch_size": "--batch.total",
    "gradient_clipping": "--optim.clip",
}


def clashes(config: Config, plan: Plan) -> Iterator[str]:
    """Where the file says one thing and the run another, a sentence each."""
    ours = {**decided(plan), "train_batch_size": plan.total}
    for key, flag in FLAGS.items():
        theirs = config.get(key, AUTO)
        if theirs not in (AUTO, ours[key], decided(plan)[key]):
            yield f'--deepspeed: {key} is {theirs} there, and {flag} gives {ours[key]}; make them equal, or write "auto" there'
    for kind in ("bf16", "fp16"):
        theirs = config.get(kind, {}).get("enabled", AUTO)
        if theirs != AUTO and bool(theirs) != (plan.precision == kind):
            yield f'--deepspeed: {kind}.enabled is {theirs} there, and --precision is {plan.precision}; write "auto" there'
    kind = str(config.get("optimizer", {}).get("type", plan.optim.name))
    if _family(kind) != _family(plan.optim.name):
        yield f'--deepspeed: optimizer.type is {kind} there, and --optim is {plan.optim.name}; remove the block "optimizer"'
    for block, flag in (("optimizer", "--optim"), ("scheduler", "--schedule")):
        if any(value != AUTO for value in config.get(block, {}).get("params", {}).values()):
            yield f'--deepspeed: it sets {block}.params, which {flag} decides; remove the block "{block}"'
    if not plan.optim.splits and (stage_of(config) or plan.precision != "fp32"):
        yield (
            f"--optim {plan.optim.name} looks at whole matrices, and ZeRO cuts them: its result would change with the number"
            " of processes; use --deepspeed zero0 with --precision fp32, or another --optim"
        )


def _family(optimizer: str) -> str:
    """DeepSpeed's "Adam" decays as AdamW does."""
    return "adamw" if optimizer.lower() == "adam" else optimizer.lower()


def autos(value: Any, path: str = "") -> Iterator[str]:
    """Dotted names of what still says "auto"."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from autos(inner, f"{path}.{key}" if path else key)
    elif value == AUTO:
        yield path
