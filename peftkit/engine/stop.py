"""Wishes to stop: a signal, a file, a deadline, a launcher that has gone. The loop makes all processes agree on a step.

with Stopper(...) as stopper:
    ...                     # what can be lost is nothing yet: a signal raises StoppedError at once
    stopper.hold()
    for step in steps(..., wish=stopper.wish):
        if step.asked: ...  # the same step on every process: save, and leave

A second signal ends the program at once; what was saved before stays good.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from peftkit.errors import StoppedError

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
ONE_REQUEST = 2.0
"""Seconds within which a second signal is the same request: a launcher hands on what the terminal has sent already."""
LOOK_EVERY = 0.5
"""Seconds between two looks for the stop file."""
LAUNCHERS = ("deepspeed", "torch.distributed", "torchrun")


class Stopper:
    """What this process knows of a wish to stop; `reason` says it in words, and is empty as long as there is none.

    `stop_file` is looked for if it is given; `deadlines` has what each is called and its time in seconds since 1970.
    """

    def __init__(self, say: Callable[[str], None] = lambda text: None) -> None:
        self.reason = ""
        self.stop_file: Path | None = None
        self.deadlines: dict[str, float] = {}
        self._say = say
        self._held = False
        self._signalled = False
        self._looked = 0.0
        self._paces: deque[float] = deque(maxlen=20)
        self._saving = 0.0
        self._launchers = launchers()
        self._old: dict[int, Any] = {}
        self._pipe: tuple[int, int] | None = None

    def __enter__(self) -> Stopper:
        if threading.current_thread() is not threading.main_thread():
            return self  # Python leaves signals to the main thread
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        # Python runs a handler between two steps of the main thread, which may be waiting in C++ for a process that
        # hangs. The number of a signal reaches this pipe at once, and a thread that reads it can end the program.
        self._old_wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        self._old = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        threading.Thread(target=_end_at_second, args=(self._pipe[0],), daemon=True).start()
        _active.append(self)
        return self

    def __exit__(self, *problem: object) -> None:
        if self._pipe is None:
            return
        _active.remove(self)
        for number, handler in self._old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_wakeup)
        os.close(self._pipe[1])  # the reading thread meets the end, and closes the other one
        self._pipe = None

    def hold(self) -> None:
        """From now on a wish is only noted, for `wish` to tell."""
        self._held = True
        if self._signalled:  # and what it raised was caught on the way
            raise StoppedError(self.reason)

    def release(self) -> None:
        """From now on there is nothing to save any more: a signal raises StoppedError at once."""
        self._held = False

    def wish(self) -> bool:
        """Whether this process wants to stop at the end of the step."""
        if not self.reason:
            self.reason = self._looked_for()
        return bool(self.reason)

    def took(self, step: float) -> None:
        """How many seconds a step took: a deadline is kept with room for two more of the longest."""
        self._paces.append(step)

    def saved(self, seconds: float) -> None:
        """How long a checkpoint took."""
        self._saving = max(self._saving, seconds)

    def _looked_for(self) -> str:
        now = time.time()
        room = 2 * max(self._paces, default=0) + 1.5 * self._saving
        for name, deadline in self.deadlines.items():
            if now + room >= deadline:
                return f"{name} is near"
        if now - self._looked < LOOK_EVERY:
            return ""
        self._looked = now
        if self.stop_file and os.path.exists(self.stop_file):  # noqa: PTH110  unlike pathlib's, it bears with NFS
            return f"there is a file {self.stop_file}"
        gone = [name for process, name in self._launchers if not process.is_running()]
        return f"{gone[0]}, which started this process, has gone" if gone else ""

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        name, first = signal.Signals(number).name, not self._signalled
        self._signalled = True
        self.reason = self.reason or f"{name} to process {os.environ.get('RANK', '0')}"
        if not self._held:
            raise KeyboardInterrupt if number == signal.SIGINT else StoppedError(self.reason)
        if first:
            self._say(f"{name}: saving after this step; a second signal ends at once")


def _end_at_second(pipe: int) -> None:
    """Read the numbers of signals; end the program at the second request."""
    first: float | None = None
    while numbers := os.read(pipe, 16):
        for number in filter(SIGNALS.__contains__, numbers):  # others may have handlers of their own
            if first is not None and time.monotonic() - first > ONE_REQUEST:
                os._exit(128 + number)
            first = first or time.monotonic()
    os.close(pipe)


_active: list[Stopper] = []


def _forget_in_child() -> None:
    """A forked process must neither answer to its parent's signals nor tell its parent of its own."""
    if _active:
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        _active.clear()


os.register_at_fork(after_in_child=_forget_in_child)


def launchers() -> list[tuple[psutil.Process, str]]:
    """The launchers above this process, with their names. DeepSpeed's, told to end, leaves its processes behind."""
    if "LOCAL_RANK" not in os.environ:
        return []
    found = []
    for process in psutil.Process().parents():
        try:
            words = process.cmdline()
        except psutil.Error:
            break
        name = next((one for one in LAUNCHERS if any(one in word for word in words[:4])), None)
        if name is None:
            break
        found.append((process, f"{name} (process {process.pid})"))
    return found
