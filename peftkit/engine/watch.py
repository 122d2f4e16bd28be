"""A watch over the processes of a training: one that has died or hangs is named, and the others end instead of waiting.

A thread of each process puts its pulse into the process group's store; the first process's reads them all and pronounces
the verdict, the others' read that and look after the first process. Another thread looks at what was read, for the store may
be silent itself. Where a collective meets a closed connection the error comes at once; the watch is for a process that is
frozen, a node that is lost, a deadlock.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
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
        self._every = min(2.0, silence / 6)
        self._end = end
        self._over = threading.Event()
        self._main = threading.main_thread().ident
        self._signs = 0
        self._verdict = ""
        self._answered = time.monotonic()
        watched = range(1, world.processes) if world.first else (0,)
        self._pulses = {process: Pulse() for process in watched}

    def __enter__(self) -> Watch:
        if self._world.processes > 1:
            # A client of its own: the main thread may be waiting in the group's.
            self._store = dist.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]
            self._tell()
            self._world.wait()
            self._answered = time.monotonic()
            for task in (self._listen, self._look_after):
                threading.Thread(target=task, daemon=True, name=f"peftkit{task.__name__}").start()
        return self

    def __exit__(self, *problem: object) -> None:
        self._over.set()

    def _listen(self) -> None:
        """Exchange signs of life. It ends, or waits for ever, if the store does not answer."""
        with suppress(RuntimeError, dist.DistError):
            while not self._over.wait(self._every):
                self._tell()
                texts = self._store.multi_get([_key(process) for process in self._pulses])
                for pulse, text in zip(self._pulses.values(), texts, strict=True):
                    pulse.read(text.decode())
                if self._store.check([VERDICT]):
                    self._verdict = self._store.get(VERDICT).decode()
                elif self._verdict and self._world.first:
                    self._store.set(VERDICT, self._verdict)
                self._answered = time.monotonic()

    def _look_after(self) -> None:
        while not self._over.wait(self._every):
            self._verdict = self._verdict or self._judge()
            if self._verdict and not self._over.wait(2 * self._every):  # until the others know
                self._end(self._pronounced(self._verdict))

    def _tell(self) -> None:
        self._signs += 1
        self._store.set(_key(self._world.process), f"{self._signs} {beats()}")

    def _judge(self) -> str:
        now = time.monotonic()
        if now - self._answered > self._silence:
            return f"process 0, which keeps the store of the process group, {self._silent()}"
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

    def _silent(self) -> str:
        return f"gave no sign of life for {self._silence:g} s (killed, frozen, or its node is lost)"

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
