"""What a run's numbers were, before its first step and at its end."""

from __future__ import annotations

import json
from pathlib import Path


def before_and_after(run: Path, name: str) -> tuple[float, float]:
    """A number of the validation rows, of the base model and of the trained one."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [line[name] for line in lines if line.get("split") == "validation"]
    return found[0], found[-1]
