"""Asking SLURM's own commands: without a shell, within a time, and not in a format of the user's."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

SECONDS = 30
"""A controller that is away is given up by its commands after about 10 s; one that is busy may take longer."""
NOT_THERE, TOO_LATE = 127, 124
FORMATS = ("SQUEUE_", "SACCT_", "SINFO_", "SLURM_TIME_FORMAT", "SLURM_BITSTR_LEN")
"""Variables by which users change what the commands print."""
AWAY = ("unable to contact", "timed out", "connection refused", "communication", "could not establish", "zero bytes")


@dataclass(frozen=True)
class Said:
    """What a command said, and its exit code."""

    code: int
    out: str = ""
    err: str = ""

    @property
    def is_away(self) -> bool:
        """Whether nobody was there to answer: no such command, no time left, or no controller."""
        return self.code in (NOT_THERE, TOO_LATE) or (self.code != 0 and _speaks_of_absence(self.err))

    @property
    def complaint(self) -> str:
        """The last thing that it complained of, on one line."""
        lines = [line for line in self.err.splitlines() if line.strip()]
        return lines[-1].strip() if lines else f"exit code {self.code}"


def ask(*words: str, seconds: float = SECONDS) -> Said:
    """Run a command of SLURM's; what goes wrong is in what it `Said`, never an exception."""
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, errors="replace", timeout=seconds, env=_plain(), check=False
        )
    except FileNotFoundError:
        return Said(NOT_THERE, err=f"{words[0]} is not installed on this machine")
    except subprocess.TimeoutExpired:
        return Said(TOO_LATE, err=f"{words[0]} gave no answer within {seconds:g} s")
    except OSError as problem:
        return Said(NOT_THERE, err=f"{words[0]}: {problem.strerror}")
    return Said(done.returncode, done.stdout, done.stderr)


def _plain() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(FORMATS)}


def _speaks_of_absence(text: str) -> bool:
    return any(sign in text.lower() for sign in AWAY)
