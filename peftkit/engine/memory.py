"""What a training holds in memory, as DeepSpeed really holds it, and how much more this process may take."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import resource
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from peftkit.engine.open import Engine
from peftkit.engine.world import World

SAYINGS = ("out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc", "not enough memory")
"""How torch, its allocators and the system say that there is no more; C++ hands it on as a RuntimeError."""
OF_GRADIENTS = ("grad", "ipg")
"""Parts of the names under which DeepSpeed keeps gradients and the buffers that they are reduced in."""
DEPTH = 4
"""DeepSpeed keeps tensors in lists of dictionaries of lists at the deepest."""


@dataclass(frozen=True)
class Held:
    """Bytes on the device of one process; what is offloaded to the host is not among them."""

    weights: int
    gradients: int
    optimizer: int
    """Moments, and the fp32 copy of the weights where there is one."""
    moments: int
    """Of `optimizer`, what the optimizer itself keeps."""

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer


def held(engine: Engine | None, model: nn.Module) -> Held:
    """What is held now. A storage counts once, whatever looks into it, for what comes first: weights, gradients, optimizer."""
    seen: set[tuple[torch.device, int]] = set()
    device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")

    def new(tensors: Iterable[Tensor]) -> int:
        return sum(_storages(tensors, seen, device))

    weights = new(_weights(model))
    if engine is None:
        return Held(weights, new(_gradients(model)), 0, 0)
    wrapper = vars(engine.deepspeed.optimizer)
    kept = {name: value for name, value in wrapper.items() if any(part in name for part in OF_GRADIENTS)}
    flats = [flat for _, flats in engine.flats() for flat in flats]
    reduced = [flat.grad for flat in flats if flat.grad is not None]
    gradients = new(_gradients(model)) + new(_tensors(kept)) + new(reduced)
    moments = new(_tensors(engine.torch_optimizer.state))
    rest = new(flats) + new(_tensors({name: value for name, value in wrapper.items() if name not in kept}))
    return Held(weights, gradients, moments + rest, moments)


def _weights(model: nn.Module) -> Iterator[Tensor]:
    for weight in [*model.parameters(), *model.buffers()]:
        yield weight
        if isinstance(part := getattr(weight, "ds_tensor", None), Tensor):  # ZeRO-3's share of it
            yield part
        if quantised := getattr(weight, "quant_state", None):  # of bitsandbytes: block scales and codes
            yield from _tensors(vars(quantised))


def _gradients(model: nn.Module) -> Iterator[Tensor]:
    for weight in model.parameters():
        yield from (one for one in (weight.grad, getattr(weight, "grad_accum", None)) if one is not None)


def _tensors(value: Any, depth: int = DEPTH) -> Iterator[Tensor]:
    """The tensors in containers, and in what DeepSpeed keeps as objects of its own."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, Mapping):
        for inner in value.values():
            yield from _tensors(inner, depth - 1)
    elif depth and isinstance(value, (list, tuple, set)):
        for inner in value:
            yield from _tensors(inner, depth - 1)
    elif depth and type(value).__module__.startswith("deepspeed.") and hasattr(value, "__dict__"):
        yield from _tensors(vars(value), depth - 1)


def _storages(tensors: Iterable[Tensor], seen: set[tuple[torch.device, int]], device: torch.device) -> Iterator[int]:
    """Bytes of the storages on the device that were not seen before."""
    for tensor in tensors:
        if tensor.device.type == device.type and tensor.layout == torch.strided:
            storage = tensor.untyped_storage()
            key = (tensor.device, storage.data_ptr())
            if storage.data_ptr() and key not in seen:
                seen.add(key)
                yield storage.nbytes()


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether an error says that there is no more memory, in any of the ways in which that is said."""
    if isinstance(problem, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(problem, OSError):
        return problem.errno == errno.ENOMEM
    told = str(problem).lower()
    return isinstance(problem, Exception) and any(saying in told for saying in SAYINGS)


def used() -> int:
    """Bytes that this process holds now: on its GPU, else in main memory."""
    if torch.cuda.is_available():
        return int(torch.cuda.memory_allocated())
    return int(psutil.Process().memory_info().rss)


def give_back() -> None:
    """Return to the system what nobody holds any more: objects in circles, and what allocators keep for later."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):  # not every C library has it
        ctypes.CDLL(None).malloc_trim(0)


def forget_peak() -> None:
    """Let `peak` begin anew."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        with suppress(OSError):  # a kernel without it: the peak is that of the whole process
            Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """The most bytes that this process held since `forget_peak`."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def vm_peak() -> int:
    """The most address space that this process ever had; 0 where the system does not say."""
    return _status("VmPeak")


def _status(name: str) -> int:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return 0


def available(world: World) -> int:
    """Bytes that this process can still take; what the processes of a machine share is divided among them.

    On a GPU what is free there; else the least of what the machine has, what the control group (a container, a job) may
    still take, and what the limit of the address space leaves.
    """
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return int(free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated())
    neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", world.processes))
    rooms: list[int] = [min(psutil.virtual_memory().available, *_group_rooms()) // neighbours]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        rooms.append(soft - int(psutil.Process().memory_info().vms))
    return max(0, min(rooms))


def _group_rooms(root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """What the control groups around this process leave, the second version's and the first's; files kept in memory can go."""
    yield psutil.virtual_memory().total
    places = [(root, "memory.max", "memory.current", "inactive_file")]
    places += [(root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")]
    for named in _own_groups():
        places += [(root / named, "memory.max", "memory.current", "inactive_file")]
    for place, most, now, files in places:
        with suppress(OSError, ValueError):
            limit, current = int((place / most).read_text()), int((place / now).read_text())
            yield limit - current + _stat(place, files)


def _own_groups() -> list[str]:
    with suppress(OSError):
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        return [line.split("::/", 1)[1] for line in lines if line.startswith("0::/") and line != "0::/"]
    return []


def _stat(place: Path, name: str) -> int:
    for line in (place / "memory.stat").read_text().splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def size(count: float) -> str:
    """
    >>> size(3 * 2**30), size(5_000_000), size(2048)
    ('3.0 GiB', '5 MiB', '2 KiB')
    """
    if count >= 2**30:
        return f"{count / 2**30:.1f} GiB"
    return f"{count / 2**20:.0f} MiB" if count >= 2**20 else f"{count / 2**10:.0f} KiB"
