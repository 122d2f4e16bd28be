"""One start of a training: its status, and what its end leaves behind, whichever way it ends.

RUN/status.json says how it stands. Each process that fails writes RUN/errors/attempt-<n>/process-<k>.json, and one of them tells
the first cause: not the many errors that only say that another process has gone.
"""

from __future__ import annotations

import errno
import os
import shlex
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch

from peftkit.engine.watch import Verdict
from peftkit.engine.world import World, lost_a_peer
from peftkit.errors import PeerError, PeftkitError, StoppedError
from peftkit.run_folder import RunFolder
from peftkit.status import (
    Failure,
    Kind,
    State,
    Status,
    first_cause,
    read_failures,
    read_status,
    write_failure,
    write_status,
)
from peftkit.tracking.quiet import speak_at_once

TELL_EVERY = 5.0
"""Seconds after which status.json says anew how far the run is."""
PATIENCE = 5.0
"""Seconds in which the process that failed first will have said why."""
UNTIL_ALL_KNOW = 20.0
"""Seconds after which each process that can has read the watch's verdict and said where it stands."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass
class Attempt:
    """This start of a run, as one process sees it."""

    folder: RunFolder
    world: World
    status: Status

    def tell(self, state: State, reason: str = "") -> None:
        """Let status.json say so, if this is the first process."""
        self._set(replace(self.status, state=state, reason=reason, updated=time.time()))

    def begin(self, step: int, steps: int, checkpoint: int | None) -> None:
        """The first step is about to run."""
        now = time.time()
        self._set(replace(self.status, state="running", step=step, steps=steps, checkpoint=checkpoint, updated=now))

    def advance(self, step: int) -> None:
        """A step is done."""
        now = time.time()
        if now - self.status.updated > TELL_EVERY:
            self._set(replace(self.status, step=step, updated=now))
        else:
            self.status = replace(self.status, step=step)

    def saved(self, step: int) -> None:
        """A checkpoint is complete."""
        self._set(replace(self.status, checkpoint=step, updated=time.time()))

    def _set(self, status: Status) -> None:
        self.status = status
        if self.world.first:
            with suppress(OSError):  # a full disk: the next checkpoint says so, and this ends nothing
                write_status(self.folder.status, status)

    def failed(self, problem: BaseException) -> BaseException:
        """Write down what went wrong on this process; the error to raise, which tells the first cause if that was elsewhere."""
        if self.status.state == "stopped":  # all processes together, as was asked
            return problem
        self._write(
            kind_of(problem), type(problem).__name__, str(problem), "".join(traceback.format_exception(problem))
        )
        if not lost_a_peer(problem):
            self._conclude([])
            return self.stopped(str(problem)) if isinstance(problem, StoppedError) else problem
        told = self._conclude(self._lost())
        cause = first_cause(read_failures(self.folder, self.status.attempt))
        if cause and cause.kind == "stopped":
            return self.stopped(cause.message)
        return PeerError(told, quiet=not told)

    def stopped(self, reason: str) -> StoppedError:
        """What is told of a run that was asked to stop."""
        reached = (
            f"after step {self.status.step} of {self.status.steps}" if self.status.step else "before its first step"
        )
        kept = self.status.checkpoint
        saved = f", saved in {self.folder.checkpoint(kept)}" if kept else ""
        again = f"peftkit train --out {shlex.quote(str(self.folder.path))} --resume"
        return StoppedError(f"{reached} ({reason}){saved}; to go on: {again}")

    def end(self, verdict: Verdict) -> None:
        """End this process, of whose peers one has died or hangs; its main thread may never return."""
        kind: Kind = "peer" if verdict.waits else "code"
        text = verdict.text if verdict.waits else f"{verdict.text}; this one stands at {verdict.place}"
        self._write(kind, "Hang", text, verdict.stack)
        self._lost(UNTIL_ALL_KNOW)
        told = self._conclude([])
        if told:
            speak_at_once(f"peftkit: error: {told}")
        os._exit(PeftkitError.exit_code)

    def _write(self, kind: Kind, name: str, message: str, trace: str) -> None:
        log = str(self.folder.log(self.world.process))
        who = (self.world.process, self.world.processes, self.status.attempt)
        failure = Failure(*who, kind, name, message, trace, self.status.step, log)
        try:
            write_failure(self.folder, failure)
        except OSError:  # a full disk: what is on the terminal has to do
            return

    def _lost(self, patience: float = PATIENCE) -> list[int]:
        """Wait for the others to say what happened; those that said nothing."""
        until = time.monotonic() + patience
        while time.monotonic() < until:
            failures = read_failures(self.folder, self.status.attempt)
            cause = first_cause(failures)
            if cause and cause.kind != "peer":
                return []
            if len(failures) == self.world.processes:
                return []
            time.sleep(0.1)
        spoke = {failure.process for failure in read_failures(self.folder, self.status.attempt)}
        return [process for process in range(self.world.processes) if process not in spoke]

    def _conclude(self, silent: Sequence[int]) -> str:
        """If this is the first of the processes that failed: let status.json have the cause, and return it in words."""
        failures = read_failures(self.folder, self.status.attempt)
        if failures and min(failure.process for failure in failures) != self.world.process:
            return ""
        cause = first_cause(failures)
        reason = words(cause, silent)
        state: State = "stopped" if cause and cause.kind == "stopped" else "failed"
        self.status = replace(self.status, state=state, reason=reason, updated=time.time())
        try:
            write_status(self.folder.status, self.status)
        except OSError:
            return reason
        return reason


def words(cause: Failure | None, silent: Sequence[int]) -> str:
    """What happened first, in a sentence."""
    if silent:
        who = f"process{'es' * (len(silent) > 1)} {', '.join(map(str, silent))}"
        return f"{who} ended without a word: killed (by the system, for want of memory?), or lost with the machine"
    if cause is None:
        return ""
    if cause.kind == "peer" and cause.type == "Hang":
        return cause.message
    name = f"{cause.type}: " if cause.kind in ("code", "peer") and cause.type != "Hang" else ""
    at = f" at step {cause.step}" if cause.step else ""
    where = f"process {cause.process} on {cause.host}{at}: " if cause.processes > 1 else ""
    return f"{where}{name}{cause.message.strip()[:500]}"


def start_attempt(folder: RunFolder, world: World) -> Attempt:
    """The run's next start, the same number on every process."""
    number = world.share(next_number(folder) if world.first else None)
    given = "PEFTKIT_ATTEMPT" in os.environ
    attempt = Attempt(folder, world, Status("starting", number, processes=world.processes, device=device_name()))
    attempt.tell("starting")
    if world.first and not given:
        # A job's script takes the stop file away by itself: there a wish may come while the training starts.
        folder.stop.unlink(missing_ok=True)
    return attempt


def device_name() -> str:
    """What this process computes on."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def next_number(folder: RunFolder) -> int:
    given = os.environ.get("PEFTKIT_ATTEMPT", "")
    if given.isdecimal():
        return int(given)
    last = read_status(folder.status)
    return last.attempt + 1 if last else 0


def kind_of(problem: BaseException) -> Kind:
    """What is to blame."""
    if isinstance(problem, PeftkitError):
        kind: Kind = problem.kind  # type: ignore[assignment]
        return kind
    if isinstance(problem, KeyboardInterrupt):
        return "stopped"
    if isinstance(problem, MemoryError):
        return "memory"
    if isinstance(problem, OSError) and problem.errno in NO_ROOM:
        return "disk"
    return "peer" if lost_a_peer(problem) else "code"
