"""`peftkit jobs`: every job that peftkit submitted for this user, how it stands, and why it waits or failed."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from peftkit.slurm.ask import ask as ask_slurm
from peftkit.slurm.hopeless import end_hopeless
from peftkit.slurm.ledger import entries
from peftkit.slurm.reasons import span
from peftkit.slurm.states import Ask
from peftkit.slurm.work import Work, look_at

RECENT = 2 * 86400
"""What ended longer ago is listed with --all alone."""


@dataclass(frozen=True)
class Row:
    """A job as it is listed."""

    job: str
    run: str
    what: str
    state: str
    step: int
    steps: int
    left: int | None
    """Seconds until the job's time limit."""
    nodes: str
    restarts: int
    reason: str
    starts: float | None = None
    """When a job that waits is expected to begin."""

    @property
    def cells(self) -> list[str]:
        """Job, state, step, time left and run, as they are shown."""
        progress = f"{self.step}/{self.steps}" if self.steps else ""
        left = span(self.left) if self.left is not None and self.state in ("starting", "running") else ""
        what = "" if self.what == "train" else f" ({self.what})"
        return [self.job, self.state, progress, left, f"{_near(self.run)}{what}"]

    @property
    def told(self) -> str:
        """Why it stands so, as it is shown."""
        return self.reason + self._expected()

    def _expected(self) -> str:
        if self.state != "waiting" or not self.starts or self.starts < time.time() + 60:
            return ""
        return f" (expected {datetime.fromtimestamp(self.starts):%Y-%m-%d %H:%M})"


@dataclass(frozen=True)
class Listing:
    rows: list[Row]
    told: list[str]
    """What was done about jobs that can never start."""
    problem: str = ""

    def as_json(self) -> dict[str, Any]:
        return {"jobs": [asdict(row) for row in self.rows], "cancelled": self.told, "problem": self.problem}


def listing(everything: bool = False, ask: Ask = ask_slurm) -> Listing:
    """All jobs that are not over, and those that ended lately. What can never start is cancelled, and said."""
    named = [entry for entry in entries() if everything or entry.submitted > time.time() - 30 * 86400]
    works = look_at(named, ask)
    told = list(end_hopeless(works, ask))
    if told:
        works = look_at(named, ask)
    deaf = any(not work.heard for work in works)
    rows = [row(work) for work in works if everything or not work.state.is_over or _ended(work) > time.time() - RECENT]
    return Listing(rows, told, "SLURM gives no answer; states are what the runs themselves say" if deaf else "")


def row(work: Work) -> Row:
    status, job = work.status, work.job
    return Row(
        job=work.entry.job, run=work.entry.run, what=work.entry.what, state=work.state.state,
        step=status.step if status else 0, steps=status.steps if status else 0, left=job.left if job else None,
        nodes=job.nodes if job else "", restarts=job.restarts if job else 0, reason=work.reason,
        starts=job.starts if job and job.phase == "waiting" else None,
    )  # fmt: skip


def _ended(work: Work) -> float:
    times = [work.entry.submitted, work.status.updated if work.status else 0.0]
    return max([*times, work.job.ends or 0.0 if work.job else 0.0])


def _near(path: str) -> str:
    """The path from here, where that is shorter."""
    here = os.path.relpath(path)
    return here if len(here) < len(path) and not here.startswith("../..") else str(Path(path))
