"""A watch over the processes of a training: one that has died or hangs is named, and the others end instead of waiting.

A thread of each process puts its pulse into the process group's store; the first process's thread reads them all and
pronounces the verdict, the others read that and look after the first process. Where a collective meets a closed
connection the error comes at once; the watch is for what is silent: a stopped process, a lost node, a deadlock.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch.distributed as dist

from peftkit.engine.pulse import beats
from peftkit.engine.world import World

VERDICT = "peftkit/verdict"
WAITING = (f"torch{os.sep}distributed", f"deepspeed{os.sep}comm")
"""Where a process stands that only waits for another one."""


@dataclass(frozen=True)
class Verdict:
    """Why the run cannot go on, and where this process's main thread stands."""

    text: str
    stack: str
    waits: bool
    """Whether this process only waits for another one."""
    place: str
    """File, line and function of the innermost frame."""


@dataclass
class Pulse:
    """When a process was last heard of, and when it last came further, by this process's own clock."""

    signs: str = ""
    heard: float = field(default_factory=time.monotonic)
    beats: str = ""
    advanced: float = field(default_factory=time.monotonic)

    def read(self, text: str) -> None:
        """`text` is "signs beats": two counters."""
        now = time.monotonic()
        signs, _, count = text.partition(" ")
        if signs != self.signs:
            self.signs, self.heard = signs, now
        if count != self.beats:
            self.beats, self.advanced = count, now


class Watch:
    """While it is open, `end` is called on every process, in a thread, once one of them has died or hangs.

    `silence` is how many seconds a process may give no sign of life, `timeout` how many may pass in which it comes no further.
    All processes open it together.
    """

    def __init__(self, world: World, silence: float, timeout: float, end: Callable[[Verdict], None]) -> None:
        self._world = world
        self._silence, self._timeout = silence, timeout
        self._every = min(5.0, silence / 6)
        self._end = end
        self._over = threading.Event()
        self._main = threading.main_thread().ident
        self._signs = 0
        watched = range(1, world.processes) if world.first else (0,)
        self._pulses = {process: Pulse() for process in watched}

    def __enter__(self) -> Watch:
        if self._world.processes > 1:
            # A client of its own: the main thread may be waiting in the group's.
            self._store = dist.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]
            self._tell()
            self._world.wait()
            threading.Thread(target=self._run, daemon=True, name="peftkit-watch").start()
        return self

    def __exit__(self, *problem: object) -> None:
        self._over.set()

    def _run(self) -> None:
        while not self._over.wait(self._every):
            try:
                self._tell()
                verdict = self._look()
            except (RuntimeError, dist.DistError):
                verdict = "the store of the process group has gone, and with it process 0 or its node"
            if verdict and not self._over.is_set():
                self._end(self._pronounced(verdict))

    def _tell(self) -> None:
        self._signs += 1
        self._store.set(_key(self._world.process), f"{self._signs} {beats()}")

    def _look(self) -> str:
        """The verdict, if there is one."""
        if self._store.check([VERDICT]):
            return str(self._store.get(VERDICT).decode())
        texts = self._store.multi_get([_key(process) for process in self._pulses])
        for pulse, text in zip(self._pulses.values(), texts, strict=True):
            pulse.read(text.decode())
        verdict = self._judge()
        if verdict and self._world.first:
            self._store.set(VERDICT, verdict)
        return verdict

    def _judge(self) -> str:
        now = time.monotonic()
        silent = [process for process, pulse in self._pulses.items() if now - pulse.heard > self._silence]
        if silent:
            return (
                f"{_named(silent)} gave no sign of life for {self._silence:g} s (killed, frozen, or its node is lost)"
            )
        stuck = [process for process, pulse in self._pulses.items() if now - pulse.advanced > self._timeout]
        # The first process judges only what it sees of the others: in a deadlock all of them stand still.
        if stuck and self._world.first:
            return f"{_named(stuck)} came no further for {self._timeout:g} s"
        return ""

    def _pronounced(self, text: str) -> Verdict:
        frame: FrameType | None = sys._current_frames().get(self._main or 0)
        stack = traceback.extract_stack(frame)
        inner = stack[-1] if stack else None
        waits = any(part in one.filename for one in stack[-6:] for part in WAITING)
        place = f"{Path(inner.filename).name}:{inner.lineno}, {inner.name}" if inner else "an unknown place"
        return Verdict(text, "".join(traceback.format_list(stack)), waits, place)


def _key(process: int) -> str:
    return f"peftkit/pulse/{process}"


def _named(processes: list[int]) -> str:
    shown = ", ".join(map(str, processes[:8])) + (", ..." if len(processes) > 8 else "")
    return f"process{'es' * (len(processes) > 1)} {shown}"
