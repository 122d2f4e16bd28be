"""How a run stands, and why a process of it failed: small JSON files that any machine can read, whole at every moment."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from peftkit.atomic import write_whole
from peftkit.redact import redact, redact_all
from peftkit.run_folder import RunFolder

State = Literal["starting", "running", "stopped", "done", "failed"]
Kind = Literal[
    "settings", "data", "model", "memory", "disk", "nonfinite", "checkpoint", "export", "peer", "stopped", "code"
]
CONSEQUENCES = ("peer", "stopped")
"""Kinds of failures that only follow from what happened elsewhere."""


@dataclass(frozen=True)
class Status:
    """RUN/status.json, written by the first process. Times are seconds since 1970."""

    state: State
    attempt: int = 0
    """How often the run was started before this start."""
    step: int = 0
    steps: int = 0
    checkpoint: int | None = None
    """Step of the newest checkpoint."""
    processes: int = 1
    reason: str = ""
    """Why it stopped or failed, in a sentence."""
    device: str = ""
    """What each process computes on: `NVIDIA H100 80GB HBM3`, `CPU`."""
    job: str = field(default_factory=lambda: os.environ.get("SLURM_JOB_ID", ""))
    host: str = field(default_factory=socket.gethostname)
    started: float = field(default_factory=time.time)
    updated: float = field(default_factory=time.time)


@dataclass(frozen=True)
class Failure:
    """RUN/errors/attempt-0/process-1.json: what went wrong on a process."""

    process: int
    processes: int
    attempt: int
    kind: Kind
    type: str
    message: str
    traceback: str = ""
    step: int = 0
    log: str = ""
    """The file with everything that the process had to say."""
    pid: int = field(default_factory=os.getpid)
    host: str = field(default_factory=socket.gethostname)
    time: float = field(default_factory=time.time)


def write_status(path: Path, status: Status) -> None:
    """Replace the file by one that is whole."""
    write_whole(path, json.dumps(redact_all(asdict(status), redact), indent=1))


def read_status(path: Path) -> Status | None:
    """The file's content; None if there is none, or it is no status."""
    return _read(Status, path)


def write_failure(folder: RunFolder, failure: Failure) -> None:
    """Write the process's error file."""
    write_whole(
        folder.error(failure.attempt, failure.process), json.dumps(redact_all(asdict(failure), redact), indent=1)
    )


def read_failures(folder: RunFolder, attempt: int) -> list[Failure]:
    """What went wrong in an attempt, the earliest first."""
    found = (_read(Failure, path) for path in folder.errors(attempt).glob("process-*.json"))
    return sorted((one for one in found if one), key=lambda failure: failure.time)


def first_cause(failures: Sequence[Failure]) -> Failure | None:
    """The earliest failure that does not only follow from another one; the earliest at all if there is none such."""
    causes = [failure for failure in failures if failure.kind not in CONSEQUENCES]
    return next(iter([*causes, *failures]), None)


Record = TypeVar("Record", Status, Failure)


def _read(kind: type[Record], path: Path) -> Record | None:
    try:
        read: Any = json.loads(path.read_text(encoding="utf-8"))
        known = {one.name for one in fields(kind)}
        return kind(**{name: value for name, value in read.items() if name in known})
    except (OSError, ValueError, TypeError, AttributeError):
        return None
