"""Where a run goes by itself; files that a command is told to write: refused before any work where they cannot be."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peftkit.config.run import Run
from peftkit.errors import ConfigError, PeftkitError
from peftkit.run_folder import free_folder


def default_folder(run: Run) -> Path:
    """Where the run goes if it is not told."""
    return free_folder(named_folder(run))


def named_folder(run: Run) -> Path:
    """The same without a number behind it, whether it is taken or not."""
    base = Path(run.model.path or "SmolLM2-135M-Instruct").name
    return Path("runs") / f"{base}-{run.task.name}-{run.strategy.name}"


def check_new(out: Path, flag: str = "--out") -> None:
    """ConfigError if the file that `flag` names is there already, or its folder is not, or may not be written."""
    if out.exists():
        raise ConfigError(f"{flag} {out} exists already; nothing is overwritten")
    if not out.parent.is_dir():
        raise ConfigError(f"{flag} {out}: there is no folder {out.parent}")
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise ConfigError(f"{flag} {out}: the folder {out.parent} may not be written; name a file elsewhere")


@contextmanager
def written_to(out: Path, kept: str = "", flag: str = "--out") -> Iterator[None]:
    """What the operating system refuses while `out` is written, in a sentence; `kept` says what is not lost."""
    try:
        yield
    except OSError as problem:
        raise PeftkitError(f"{flag} {out} cannot be written ({problem.strerror or problem}){kept}") from problem
