"""The processes of this run: who they are, and the few things that they tell each other."""

from __future__ import annotations

import atexit
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from peftkit.engine.pulse import beat
from peftkit.errors import ConfigError

PORTS = 3
"""So many are tried by a process that is alone: the first may be that of whoever started it, or be taken meanwhile."""
LONGEST_WAIT = timedelta(minutes=30)
"""How long a process waits for the others, where nothing watches over them yet: one may be loading a large model."""


@dataclass(frozen=True)
class World:
    """`process` of `processes`, the `local`-th on its machine."""

    process: int
    processes: int
    local: int

    @property
    def first(self) -> bool:
        """Whether this process writes what only one may write."""
        return self.process == 0

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", self.local) if torch.cuda.is_available() else torch.device("cpu")

    def sum(self, *values: float) -> list[float]:
        """Sums over all processes, in fp64."""
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        beat()
        return [float(value) for value in total.tolist()]

    def gather(self, value: Any) -> list[Any]:
        """Every process's `value`, in order of processes, on the first one; elsewhere nothing."""
        gathered: list[Any] | None = [None] * self.processes if self.first else None
        dist.gather_object(value, gathered)
        beat()
        return gathered or []

    def share(self, value: Any) -> Any:
        """The first process's `value`, everywhere."""
        holder = [value]
        dist.broadcast_object_list(holder)
        beat()
        return holder[0]

    def wait(self) -> None:
        """Until every process is here."""
        dist.barrier()
        beat()


@dataclass(frozen=True)
class Alone(World):
    """A process that asks no other, whatever group it is in: what the first one computes by itself."""

    place: torch.device

    @property
    def device(self) -> torch.device:
        return self.place

    def sum(self, *values: float) -> list[float]:
        return list(values)

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def share(self, value: Any) -> Any:
        return value

    def wait(self) -> None:
        """Nobody is waited for."""


LOST = (
    "connection closed by peer", "connection reset by peer", "connection refused", "broken pipe", "socket closed",
    "pair closure", "remote process exited", "waiting for recv", "waiting for send", "network error", "wait timeout", "timed out",
)  # fmt: skip
"""What gloo, NCCL and the store say, in small letters, when another process has gone."""


def lost_a_peer(problem: BaseException) -> bool:
    """Whether the error only says that another process of the world no longer answers."""
    told = str(problem).lower()
    of_torch = isinstance(problem, (dist.DistError, RuntimeError)) and not isinstance(problem, torch.OutOfMemoryError)
    return of_torch and any(words in told for words in LOST)


def identity() -> World:
    """Who this process is, by what its launcher said; alone if there was none."""
    read = {
        name: int(os.environ.get(name, alone)) for name, alone in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    }
    return World(read["RANK"], read["WORLD_SIZE"], read["LOCAL_RANK"])


@contextmanager
def joined(timeout: timedelta = LONGEST_WAIT) -> Iterator[World]:
    """This process's place in the world, its process group open.

    DeepSpeed keeps hold of the first group that it meets, so one group serves all trainings of a process (a notebook's),
    and is closed when the program ends well. After an error it is left: closing it would wait for the others, who wait
    for this process.
    """
    world = identity()
    threads = torch.get_num_threads()
    share_cores(world)
    opened = not dist.is_initialized()
    if opened:
        _open_group(world, timeout)
    yield world
    if opened:
        atexit.register(_close_group)
    torch.set_num_threads(threads)  # what follows, on the first process, has the machine to itself


def _open_group(world: World, timeout: timedelta) -> None:
    alone = world.processes == 1
    if alone:
        given = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        for name, value in given.items():
            os.environ.setdefault(name, value)
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(world.local)
    last = PORTS - 1 if alone else 0
    for turn in range(last + 1):
        if alone and (turn or "MASTER_PORT" not in os.environ):
            os.environ["MASTER_PORT"] = str(_free_port())
        try:
            dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=timeout)
            return
        except (dist.DistError, ValueError) as problem:
            if turn == last:
                raise ConfigError(
                    f"process {world.process} of {world.processes} could not meet the others at "
                    f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}: {problem}"
                ) from problem


def _close_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def share_cores(world: World) -> None:
    """Give each process of a CPU machine its share of the cores: more threads than cores spin and slow all down."""
    if "OMP_NUM_THREADS" not in os.environ and not torch.cuda.is_available():
        local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", world.processes))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_processes))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
