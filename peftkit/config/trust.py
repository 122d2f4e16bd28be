"""Settings that run code: in a run's folder, which may be anybody's, they count only where this user has asked for the same."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from peftkit.config.run import Run
from peftkit.config.slurm import Slurm

SHELL = ("setup", "python", "conda", "venv", "modules", "container", "mounts", "environment", "sbatch", "then", "array")
"""Settings of `slurm` that say what a node runs."""


def code_in(run: Run) -> dict[str, Any]:
    """Setting -> what it runs; of a setting that runs nothing, nothing."""
    model, plain = run.model, Slurm()
    found: dict[str, Any] = {
        f"slurm.{name}": value for name in SHELL if (value := getattr(run.slurm, name)) != getattr(plain, name)
    }
    if model.trust_remote_code:
        found["model.trust_remote_code"] = [_place(model.path), model.revision, _place(model.tokenizer)]
    if scripts := [
        _place(getattr(metric, "path", None)) for metric in run.eval.metrics or () if metric.name == "evaluate"
    ]:
        found["eval.metrics"] = scripts
    return found


def remember(run: Run) -> None:
    """Keep, outside of the run's folder, that this user has asked for the code that the run runs."""
    for name, value in code_in(run).items():
        mark = _mark(name, value)
        with suppress(OSError):  # a home that cannot be written: it will have to be asked for again
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()


def unasked(run: Run) -> dict[str, Any]:
    """The code in it that this user has never asked for."""
    return {name: value for name, value in code_in(run).items() if not _mark(name, value).exists()}


def _mark(name: str, value: Any) -> Path:
    said = json.dumps([name, value], sort_keys=True, default=str)
    home = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser()
    return home / "peftkit" / "asked" / hashlib.sha256(said.encode()).hexdigest()


def _place(name: str | None) -> str | None:
    """A folder or script by its whole path: another one may have the same name elsewhere."""
    return str(Path(name).resolve()) if name and Path(name).exists() else name
