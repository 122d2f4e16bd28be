"""The user's own list of submitted jobs: a small file for each, in peftkit's cache.

SLURM forgets a job minutes after its end, and a job's number alone says nothing of the run's folder.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from peftkit.atomic import write_whole
from peftkit.cache import cache_root

JOB = re.compile(r"\d+(?:_\d+)?")


@dataclass(frozen=True)
class Entry:
    """A job that peftkit has submitted."""

    job: str
    run: str
    """The run's folder; for an array, the folder that its tasks' folders are in."""
    what: str = "train"
    """What the job does: train, or a command that follows, such as `export RUN --to merged`."""
    log: str = ""
    """Its log, where that is not the run's own."""
    after: str = ""
    """The job on whose success it depends."""
    cancelled: str = ""
    """Why peftkit itself has cancelled it, in a sentence."""
    tasks: tuple[str, ...] = ()
    """An array's run folders, by the number of the task."""
    submitted: float = field(default_factory=time.time)

    @property
    def trains(self) -> bool:
        return self.what == "train"


def enter(entry: Entry) -> None:
    """Remember the job."""
    write_whole(_folder() / f"{entry.job}.json", json.dumps(asdict(entry), indent=1))


def entries() -> list[Entry]:
    """All that are remembered, the oldest first."""
    found = (_read(path) for path in _folder().glob("*.json"))
    return sorted((one for one in found if one), key=lambda entry: (entry.submitted, int(entry.job)))


def forget(jobs: Iterable[str]) -> None:
    """No longer list these."""
    for job in jobs:
        (_folder() / f"{job}.json").unlink(missing_ok=True)


def split(entry: Entry) -> list[Entry]:
    """The entry of each task of an array; the entry itself where it is none."""
    if not entry.tasks:
        return [entry]
    return [replace(entry, job=f"{entry.job}_{number}", run=run, tasks=()) for number, run in enumerate(entry.tasks)]


def _folder() -> Path:
    return cache_root(None) / "jobs"


def _read(path: Path) -> Entry | None:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        known = {one.name for one in fields(Entry)}
        read = Entry(**{name: value for name, value in told.items() if name in known})
        entry = replace(read, tasks=tuple(map(str, read.tasks)))
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    whole = isinstance(entry.job, str) and entry.job.isdigit() and isinstance(entry.run, str)
    return entry if whole else None
