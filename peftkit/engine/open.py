"""The only `deepspeed.initialize`: a model whose trainable weights are marked becomes an engine."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pydantic import ValidationError
from torch import nn

from peftkit.engine.compiled import building, ready_muon
from peftkit.engine.ds_config import SIZES, Config, offload_devices, offloads_optimizer, stage_of
from peftkit.engine.in_backward import InBackward, check_in_backward
from peftkit.engine.optim import Group, Optimizer, parameter_groups
from peftkit.engine.statistics import hold_frozen
from peftkit.errors import ConfigError, ModelError
from peftkit.lazy import uncollected
from peftkit.models.inspect import elements

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Engine:
    """A model under DeepSpeed, and what the rest of peftkit asks of it."""

    deepspeed: Any
    zero: int
    """The ZeRO stage that really runs."""
    hooks: list[Any] = field(default_factory=list)
    """Handles of what was hung on the model; `close` takes it off."""
    moving: InBackward | None = None
    """What moves the weights in the backward pass, if anything does: a step then has nothing left to do."""

    @property
    def model(self) -> nn.Module:
        module: nn.Module = self.deepspeed.module
        return module

    @property
    def torch_optimizer(self) -> torch.optim.Optimizer:
        """The innermost optimizer: ZeRO wraps it around flat partitions of the parameters."""
        optimizer: torch.optim.Optimizer = self.deepspeed.optimizer.optimizer if self.zero else self.deepspeed.optimizer
        return optimizer

    @property
    def groups(self) -> list[Group]:
        groups: list[Group] = self.torch_optimizer.param_groups
        return groups

    @property
    def loss_scaler(self) -> Any:
        """fp16's dynamic loss scaler; None in other formats."""
        scaler = getattr(self.deepspeed.optimizer, "loss_scaler", None)
        return scaler if getattr(scaler, "dynamic", False) else None

    @property
    def overflowed(self) -> bool:
        """Whether the last step was not taken because its gradient was too large for 16 bits."""
        return bool(getattr(self.deepspeed.optimizer, "overflow", False))

    def flats(self) -> list[tuple[Group, list[torch.Tensor]]]:
        """Each group with the tensors of it that the innermost optimizer updates on this process."""
        if self.zero != 3:
            return [(group, group["params"]) for group in self.groups]
        wrapper = self.deepspeed.optimizer  # between steps ZeRO-3 keeps its groups empty
        of_group: list[list[torch.Tensor]] = [[] for _ in self.groups]
        for index, flat in enumerate(wrapper.fp32_partitioned_groups_flat):
            of_group[wrapper.sub_group_to_group_id[index]].append(flat)
        return list(zip(self.groups, of_group, strict=True))

    def trained(self) -> dict[str, nn.Parameter]:
        """What trains, by name, in the model's order."""
        return {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}

    def set_rate(self, factor: float) -> None:
        """Every group's learning rate becomes `factor` times its peak."""
        for group in self.groups:
            group["lr"] = group["peak"] * factor

    def close(self) -> None:
        """Take all hooks off the model, DeepSpeed's and ours, so that it can be opened again."""
        for handle in self.hooks:
            handle.remove()
        self.deepspeed.destroy()


def open_engine(
    model: nn.Module, optim: Optimizer, config: Config, depths: Mapping[str, int], born: Mapping[str, int]
) -> Engine:
    """`model` under DeepSpeed with the filled `config`; `depths` and `born` as in `parameter_groups`."""
    deepspeed = ready_deepspeed()
    groups = parameter_groups(model, optim, depths, born)
    if not groups:
        raise ModelError("no weight trains: --strategy froze all of them")
    optimizer = optim.build(groups, offloads_optimizer(config))
    if "nvme" in offload_devices(config):
        with building("async_io"):
            deepspeed.ops.op_builder.AsyncIOBuilder().load()
    ready_muon()
    config = fitted(config, model)
    if optim.in_backward:
        check_in_backward(config, dist.get_world_size())
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
    _check_gradients(engine.optimizer)
    if not optim.in_backward:
        return Engine(engine, stage_of(config), hold_frozen(model))
    engine.enable_backward_allreduce = False  # it would make a gradient of zeros where it finds none
    moving = InBackward(engine.optimizer, dict(model.named_parameters()))
    return Engine(engine, stage_of(config), [*hold_frozen(model), moving], moving)


def fitted(config: Config, model: nn.Module) -> Config:
    """`config` with a gradient bucket no larger than what trains: ZeRO takes the whole bucket's memory, and an adapter fills
    little of it. The same gradients are summed in the same pieces."""
    zero = config.get("zero_optimization", {})
    if not zero.get("stage"):
        return config
    trained = sum(elements(weight) for weight in model.parameters() if weight.requires_grad)
    bucket = min(int(zero.get("reduce_bucket_size", SIZES["reduce_bucket_size"])), trained)
    return {**config, "zero_optimization": {**zero, "reduce_bucket_size": bucket}}


def _check_gradients(wrapper: Any) -> None:
    """Let ZeRO's stages 1 and 2 look for gradients that are no numbers also where the configuration says they need not."""
    if not getattr(wrapper, "check_grad_overflow", True):
        # In fp32 the gradient's norm, where it is computed, says as much without another reduction over the processes.
        wrapper.check_grad_overflow = wrapper.dtype != torch.float32 or not wrapper.compute_grad_norm


def ready_deepspeed() -> Any:
    """The library, told which device there is and using the process group that stands."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it looks for one, and says so
    own = str(Path(sys.executable).parent)
    if own not in os.environ.get("PATH", "").split(os.pathsep):
        # What it compiles (offloading) needs the environment's own ninja, also where that was not activated.
        os.environ["PATH"] = os.pathsep.join([own, os.environ.get("PATH", "")])
    with uncollected():
        import deepspeed

    # The shared-memory collectives of CPU runs would be compiled for a minute on their first use; gloo does their work.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if dist.is_initialized() and not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(auto_mpi_discovery=False)
    return deepspeed


def choose_precision(wanted: str, config: Config) -> str:
    """fp32, bf16 or fp16: what was asked for if the device computes in it, else a ConfigError that says what it can do."""
    accelerator = ready_deepspeed().accelerator.get_accelerator()
    able = {"fp32": True, "bf16": accelerator.is_bf16_supported(), "fp16": accelerator.is_fp16_supported()}
    if wanted == "auto":
        named = [kind for kind in ("bf16", "fp16") if config.get(kind, {}).get("enabled", "auto") is True]
        wanted = named[0] if named else ("bf16" if able["bf16"] and accelerator.device_name() != "cpu" else "fp32")
    if not able[wanted]:
        can = ", ".join(kind for kind, is_able in able.items() if is_able)
        raise ConfigError(
            f"--precision {wanted}: this device ({accelerator.device_name()}) cannot compute in it; it can in {can}"
        )
    return wanted


def check_config(config: Config) -> None:
    """Raise ConfigError for what DeepSpeed refuses in a filled configuration, or what this machine lacks for it."""
    ready_deepspeed()
    from deepspeed.ops.op_builder import AsyncIOBuilder
    from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError

    rest = {
        key: value for key, value in config.items() if key not in ("train_batch_size", "gradient_accumulation_steps")
    }
    try:
        DeepSpeedConfig(rest)  # without its check of the batch, which needs all processes
    except ValidationError as problem:
        raise ConfigError([f"--deepspeed: {_told(error)}" for error in problem.errors()]) from None
    except (DeepSpeedConfigError, AssertionError, ValueError, TypeError, KeyError) as problem:
        raise ConfigError(f"--deepspeed: DeepSpeed refuses the configuration: {problem}") from None
    if "nvme" in offload_devices(config) and not AsyncIOBuilder().is_compatible(verbose=False):
        raise ConfigError(
            "--deepspeed: offloading to NVMe needs DeepSpeed's async_io, which cannot be built here:"
            " install libaio-dev (or libaio-devel), or offload to the CPU with zero3_offload"
        )


def _told(error: Any) -> str:
    where = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"DeepSpeed knows no {where!r} there"
    return f"{where} is {error['input']!r}: {error['msg']}"


def own_linear_again() -> None:
    """Undo what loading under ZeRO-3 does to torch for the rest of the process: its product asks of weights what not all have."""
    from deepspeed.runtime.zero.partition_parameters import InsertPostInitMethodToModuleSubClasses as Patches

    theirs, own = torch.nn.functional.linear, getattr(Patches, "linear_bk", torch.nn.functional.linear)
    torch.nn.functional.linear = own
    # torchao's tensors know the product by what stood there when they were imported.
    base = getattr(sys.modules.get("torchao.utils"), "TorchAOBaseTensor", None)
    for kind in base.__subclasses__() if base else ():
        for functions in getattr(kind, "_TORCH_FN_TABLE", {}).values():
            if theirs in functions:
                functions.setdefault(own, functions[theirs])


def zero3_guard(config: Config) -> Any:
    """While this lives, transformers loads models already cut into ZeRO-3's partitions; None at other stages."""
    if stage_of(config) != 3:
        return None
    from transformers.integrations import HfDeepSpeedConfig

    return HfDeepSpeedConfig(config)
