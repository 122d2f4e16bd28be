"""`peftkit watch RUN|JOB`: its state and its log until the end; the exit code says how it ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from peftkit.slurm.ask import ask as ask_slurm
from peftkit.slurm.hopeless import end_hopeless, is_hopeless
from peftkit.slurm.ledger import Entry
from peftkit.slurm.states import GRACE, Ask
from peftkit.slurm.work import Work, find, look_at

Say = Callable[[str], None]
CODES = {"done": 0, "stopped": 75, "cancelled": 130, "unknown": 1, "failed": 1}
WORST = (0, 75, 130, 1, 2)
"""Of several runs the worst end is told."""
REFUSED = ("settings", "data", "model")
"""What a user can mend has exit code 2, as everywhere in peftkit."""
FOREVER = float("inf")


def watch(
    word: str,
    say: Say,
    every: float = 5,
    log: bool = True,
    from_end: bool = False,
    limit: float = FOREVER,
    ask: Ask = ask_slurm,
) -> int:
    """Follow all that `word` names (an array: its tasks) until it is over; returns the worst end's exit code.

    `from_end` tells of the logs only what is added from now on. What nobody knows anything of for GRACE seconds is given up,
    and all after `limit` seconds.
    """
    followed = [Followed(entry, log, from_end) for entry in find(word)]
    several, end = len(followed) > 1, time.monotonic() + limit
    while True:
        for one, work in zip(followed, look_at([one.entry for one in followed], ask), strict=True):
            for line in one.news(work):
                say(f"{work.entry.job}: {line}" if several else line)
            if is_hopeless(work):
                for line in end_hopeless([work], ask):
                    say(line)
        if all(one.is_over for one in followed) or time.monotonic() > end:
            return max((one.code for one in followed), key=WORST.index)
        time.sleep(every)


@dataclass
class Followed:
    """One run, and what of it has been told."""

    entry: Entry
    shows_log: bool = True
    from_end: bool = False
    told: tuple[str, str] = ("", "")
    code: int = 1
    is_over: bool = False
    _read: dict[Path, int] = field(default_factory=dict)
    _silent: float | None = None
    """Since when nobody has known anything."""

    def news(self, work: Work) -> Iterator[str]:
        """What is new, a line each."""
        if self.is_over:
            return
        if self.shows_log and work.logs:
            yield from self._lines(work.logs[0])
        state = work.state.state
        lost = self._is_lost(work)
        if (state, work.reason) != self.told:
            self.told = (state, work.reason)
            yield headline(work)
        if work.state.is_over or lost:
            self.is_over, self.code = True, code(work)
            yield from _last_words(work)

    def _lines(self, path: Path) -> Iterator[str]:
        """What the log has got since it was last looked at; one that is shorter than it was has been begun anew."""
        size = path.stat().st_size
        at = self._read.get(path, size if self.from_end else 0)
        self.from_end = False  # a log that appears later is new
        with path.open("rb") as file:
            at = at if at <= size else 0
            file.seek(at)
            # A line that is still being written is told when it is whole.
            whole, newline, _ = file.read().rpartition(b"\n")
        self._read[path] = at + len(whole + newline)
        yield from whole.decode(errors="replace").splitlines()

    def _is_lost(self, work: Work) -> bool:
        if work.state.state != "unknown" or not work.heard:
            self._silent = None
            return False
        now = time.monotonic()
        self._silent = self._silent or now
        # A status that is as old as GRACE was waited for already; a job that was just submitted may not be listed yet.
        return work.status is not None or now - self._silent > GRACE


def headline(work: Work) -> str:
    """`running on node[1-2]: step 7 of 40`, `waiting: other jobs come before it`."""
    state, status, job = work.state.state, work.status, work.job
    nodes = f" on {job.nodes}" if job and job.nodes and state in ("starting", "running") else ""
    steps = f": step {status.step} of {status.steps}" if status and status.steps and state == "running" else ""
    return f"== {state}{nodes}{steps}" + (f": {work.reason}" if work.reason else "")


def code(work: Work) -> int:
    """0 done, 1 failed, 2 settings, data or model are wrong, 75 stopped and saved, 130 cancelled."""
    state = work.state.state
    if state == "failed" and work.verdict.kind in REFUSED:
        return 2
    return CODES.get(state, 1)


def _last_words(work: Work) -> Iterator[str]:
    if work.state.state in ("failed", "stopped", "cancelled") and work.verdict.remedy:
        yield work.verdict.remedy
    if work.state.state == "failed" and work.entry.job:
        yield f"every process's own words: peftkit logs {work.entry.job}"
