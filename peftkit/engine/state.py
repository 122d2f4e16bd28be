"""What a training has become, apart from any process count or ZeRO stage: weights and optimizer state by parameter name.

`capture` reads it from an engine and `restore` puts it into another: a checkpoint on disk, the next stage of a gradual
unfreezing, a run on another number of processes. All of it is fp32 or integer tensors, so it lives in safetensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from peftkit.engine.average import forget, show
from peftkit.engine.open import Engine
from peftkit.engine.statistics import statistics
from peftkit.errors import CheckpointError

SEPARATOR = "|"
"""Between a parameter's name and the name of its state."""


@dataclass
class State:
    """`weights`: name -> fp32 tensor. `optimizer`: "name|exp_avg" -> tensor. `counters`: "group|step" -> 0-dimensional tensor.

    Among the weights are the running statistics of BatchNorm layers that train, as this process has them.

    `local` holds what neither belongs to one parameter nor can be cut elsewhere (the codes and block scales of 8-bit
    optimizers): it fits the same process of the same world at the same ZeRO stage only.
    """

    weights: Mapping[str, Tensor] = field(default_factory=dict)
    optimizer: Mapping[str, Tensor] = field(default_factory=dict)
    counters: dict[str, Tensor] = field(default_factory=dict)
    local: dict[str, Tensor] = field(default_factory=dict)
    scaler: dict[str, Tensor] = field(default_factory=dict)
    """fp16's dynamic loss scale, and what decides when it moves."""


def capture(engine: Engine, mine: Callable[[int], bool] = lambda index: True) -> State:
    """The engine's state; of the tensors only those of the parameters whose index is `mine` (all take part in gathering)."""
    _link(engine)
    kinds = _kinds(engine)
    weights: dict[str, Tensor] = {}
    optimizer: dict[str, Tensor] = {}
    if mine(0):
        weights |= {
            name: _copy(value.float() if value.is_floating_point() else value)
            for name, value in statistics(engine.model).items()
        }
    for index, (name, parameter) in enumerate(engine.trained().items()):
        weight = full_weight(engine, parameter)
        if mine(index):
            weights[name] = _copy(weight)
        for kind, dtype in kinds.get(name, {}).items():
            value = _full_state(engine, parameter, kind)
            if mine(index) and value is not None:
                optimizer[name + SEPARATOR + kind] = _copy(value) if engine.zero == 0 else _copy(value).to(dtype)
    return State(weights, optimizer, _counters(engine), _local_state(engine), _scaler_state(engine))


def restore(engine: Engine, state: State) -> None:
    """Put `state` into an engine over the same parameters (or more: what it does not know stays as it is).

    The engine must have been opened on a model that already holds `state.weights` (see `load_weights`).
    """
    slots: dict[str, list[str]] = {}
    for key in state.optimizer:
        name, kind = key.split(SEPARATOR)
        slots.setdefault(name, []).append(kind)
    _make_optimizer_state(engine, state, slots)
    for name, parameter in engine.trained().items():
        if name in state.weights:
            _set_full(engine, parameter, state.weights[name], None)
        for kind in slots.get(name, ()):
            _set_full(engine, parameter, state.optimizer[name + SEPARATOR + kind], kind)
    for name, buffer in statistics(engine.model).items():
        if name in state.weights:
            buffer.copy_(state.weights[name])
    for name, value in state.scaler.items():
        if engine.loss_scaler:
            setattr(engine.loss_scaler, name, value.item())


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy `weights` into the parameters and buffers of the same names, also where ZeRO-3 has cut them.

    Raises CheckpointError on a name that the model does not have, or another shape.
    """
    parameters = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, value in weights.items():
        if name not in parameters:
            raise CheckpointError(
                f"the checkpoint holds {name}, which this model lacks: is it of another base or strategy?"
            )
        parameter = parameters[name]
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
        if shape != tuple(value.shape):
            raise CheckpointError(f"{name} is {tuple(value.shape)} in the checkpoint and {shape} in the model")
        with gathered(parameter, writing=True), torch.no_grad():
            parameter.copy_(value)


def put_weights(engine: Engine, weights: Mapping[str, Tensor]) -> None:
    """Let an engine compute with `weights`, which name all that trains, in place of its own and of their average."""
    forget(engine)
    for name, parameter in engine.trained().items():
        _set_full(engine, parameter, weights[name], None)
    for name, buffer in statistics(engine.model).items():
        buffer.copy_(weights[name])
    show(engine)


def full_weight(engine: Engine, parameter: nn.Parameter) -> Tensor:
    """A trained parameter's fp32 value, whole, on every process. A collective under ZeRO."""
    from deepspeed.utils import safe_get_full_fp32_param

    if engine.zero == 0:
        return parameter.detach()
    value: Tensor = safe_get_full_fp32_param(parameter)
    return value


def gathered(parameter: Tensor, writing: bool = False) -> Any:
    """A context in which `parameter` is whole, where ZeRO-3 has cut it; what the first process writes there reaches all."""
    if not hasattr(parameter, "ds_id"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0 if writing else None)


def _copy(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True).contiguous()


def _link(engine: Engine) -> None:
    """Let DeepSpeed find every group's state: it looks once, after the first group's first step, and misses the others'."""
    if engine.zero in (1, 2):
        engine.deepspeed.optimizer._hp_optimizer_states_linked = False
        engine.deepspeed.optimizer._lazy_init_hp_params_optimizer_state()


def _flats(engine: Engine) -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
    """(name, tensor, state) of everything that the innermost optimizer updates on this process."""
    for group, flats in engine.flats():
        for index, flat in enumerate(flats):
            yield f"{group['label']}{SEPARATOR}{index}", flat, engine.torch_optimizer.state.get(flat, {})


def _is_elementwise(engine: Engine, value: Any, flat: Tensor) -> bool:
    """Whether a state belongs to the parameter: of any shape without ZeRO, of the flat partition's shape with it.

    A partition of 8-bit codes goes with its block scales, and the code of its padding is not 0: such state stays as it is.
    """
    if not isinstance(value, Tensor) or value.ndim == 0:
        return False
    return engine.zero == 0 or (value.shape == flat.shape and value.is_floating_point())


def _kinds(engine: Engine) -> dict[str, dict[str, torch.dtype]]:
    """Parameter -> the kinds of state that it has by now, with their types; the same on all processes.

    A process may own no element of a parameter, and a group that was unfrozen just now has no state at all, while
    gathering is a collective: so the processes first agree on what there is.
    """
    mine = {
        (group["label"], kind): str(value.dtype).removeprefix("torch.")
        for group, flats in engine.flats()
        for flat in flats
        for kind, value in engine.torch_optimizer.state.get(flat, {}).items()
        if _is_elementwise(engine, value, flat)
    }
    everyones: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, mine)
    found = {key: dtype for theirs in everyones for key, dtype in theirs.items()}
    return {
        name: {kind: getattr(torch, dtype) for (label, kind), dtype in sorted(found.items()) if label == group["label"]}
        for group in engine.groups
        for name in group["names"]
    }


def _counters(engine: Engine) -> dict[str, Tensor]:
    """The steps that each flat tensor has taken. A plain number is kept as int64, so that it comes back as one."""
    return {
        flat_name + SEPARATOR + kind: torch.tensor(value, dtype=torch.int64) if isinstance(value, int) else _copy(value)
        for flat_name, _, state in _flats(engine)
        for kind, value in state.items()
        if isinstance(value, int) or (isinstance(value, Tensor) and value.ndim == 0)
    }


def _local_state(engine: Engine) -> dict[str, Tensor]:
    return {
        flat_name + SEPARATOR + kind: _copy(value)
        for flat_name, flat, state in _flats(engine)
        for kind, value in state.items()
        if isinstance(value, Tensor) and value.ndim > 0 and not _is_elementwise(engine, value, flat)
    }


def _scaler_state(engine: Engine) -> dict[str, Tensor]:
    names = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
    return {name: torch.tensor(getattr(engine.loss_scaler, name)) for name in names if engine.loss_scaler}


def _full_state(engine: Engine, parameter: nn.Parameter, kind: str) -> Tensor | None:
    from deepspeed.utils import safe_get_full_optimizer_state

    if engine.zero == 0:
        # Adafactor keeps other kinds of vectors than of matrices.
        return cast("Tensor | None", engine.torch_optimizer.state[parameter].get(kind))
    return cast(Tensor, safe_get_full_optimizer_state(parameter, kind))


def _make_optimizer_state(engine: Engine, state: State, slots: Mapping[str, Sequence[str]]) -> None:
    """Optimizers make their state at their first step; make it now, so that there is something to fill."""
    for group, flats in engine.flats():
        for index, flat in enumerate(flats):
            names = group["names"] if engine.zero else [group["names"][index]]
            kinds = {
                kind: state.optimizer[name + SEPARATOR + kind].dtype for name in names for kind in slots.get(name, ())
            }
            flat_name = f"{group['label']}{SEPARATOR}{index}"
            made: dict[str, Any] = {kind: torch.zeros_like(flat, dtype=dtype) for kind, dtype in kinds.items()}
            made |= {kind: value.to(flat.device, copy=True) for kind, value in _below(state.local, flat_name).items()}
            if made:
                engine.torch_optimizer.state[flat] = made | _counters_of(state, group["label"], flat_name)
    _link(engine)


def _counters_of(state: State, label: str, flat_name: str) -> dict[str, Any]:
    """The flat tensor's own; where the parameters were laid out otherwise, those of its group, which took the same steps."""
    found = _below(state.counters, flat_name) or {
        key.rsplit(SEPARATOR, 1)[1]: value for key, value in state.counters.items() if key.startswith(label + SEPARATOR)
    }
    return {kind: int(value) if value.dtype == torch.int64 else value.clone() for kind, value in found.items()}


def _below(tensors: Mapping[str, Tensor], flat_name: str) -> dict[str, Tensor]:
    prefix = flat_name + SEPARATOR
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _set_full(engine: Engine, parameter: nn.Parameter, value: Tensor, kind: str | None) -> None:
    """Set a trained parameter's fp32 value, or one kind of its optimizer state, from the whole tensor."""
    if engine.zero == 0:
        if kind is None:
            parameter.data.copy_(value)
        else:
            engine.torch_optimizer.state[parameter][kind] = value.clone().to(parameter.device)
    elif engine.zero == 3:
        _set_zero3(parameter, value, kind)
    elif kind is None:
        parameter.set_full_hp_param(value.to(parameter.device))  # type: ignore[attr-defined]
    else:
        parameter.set_full_hp_param(value.to(parameter.device), kind)  # type: ignore[attr-defined]


def _set_zero3(parameter: Any, value: Tensor, kind: str | None) -> None:
    # DeepSpeed's setter of whole tensors fails where the last partition is padded: cut this process's part here.
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    size = parameter.ds_tensor.numel()
    padded = torch.zeros(size * dist.get_world_size(), dtype=value.dtype)
    padded[: value.numel()] = value.flatten()
    part = padded.narrow(0, size * dist.get_rank(), size).to(parameter.device)
    if kind is None:
        safe_set_local_fp32_param(parameter, part)
    else:
        safe_set_local_optimizer_state(parameter, part, kind)
