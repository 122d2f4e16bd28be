"""What does not go with rows that several processes share (`--batch.sequence_parallel`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def clashes(run: Any) -> Iterator[str]:
    """A sentence each."""
    shared = f"--batch.sequence_parallel {run.batch.sequence_parallel} gives each process a part of a row"
    if not run.task.splits_rows:
        yield f"{shared}, and --task {run.task.name} learns from whole rows; leave it out"
    if run.regularize.r_drop:
        yield f"{shared}, and --regularize.r_drop compares whole rows; leave out one of them"
    if getattr(run.strategy, "cache_trunk", False):
        yield f"{shared}, and --strategy.cache_trunk keeps whole rows; leave out one of them"
    if run.speed.unpad == "on":
        yield f"{shared}, padding included, and --speed.unpad on leaves no padding; leave out one of them"
    if run.model.attention not in ("auto", "sdpa"):
        yield f"{shared} and puts sdpa's attention together; it has none of --model.attention {run.model.attention}"
