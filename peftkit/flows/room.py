"""Whether a run's folder can take what the run will write: told on every process, before the first step."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from peftkit.engine.space import Writing, checkpoint_bytes, is_of_disk, lacking, more_at_once, saves_left, unwritable
from peftkit.engine.space import size as told
from peftkit.engine.world import World
from peftkit.errors import DiskError
from peftkit.flows.job import Job
from peftkit.run_folder import RunFolder

ROW = 300
"""Bytes of a step in metrics.jsonl."""
PROCESSOR = ("tokenizer*", "*.json", "*.txt", "*.model")
"""Files of a base that an export has, too."""


def check_writable(folder: Path, world: World) -> None:
    """Raises DiskError, on every process, if one of them cannot write into the folder."""
    mine = unwritable(folder)
    everyones = world.gather(f"{mine} on {socket.gethostname()}" if mine else None)
    problem = world.share(next(filter(None, everyones), None))
    if problem:
        raise DiskError(f"--out {folder} cannot be written ({problem}); mend that, or name a folder elsewhere")


@contextmanager
def told_when_no_room(folder: Path) -> Iterator[None]:
    """A disk that is full wherever something is written becomes a DiskError, which is a sentence."""
    try:
        yield
    except (OSError, SafetensorError) as problem:
        if not is_of_disk(problem):
            raise
        where = getattr(problem, "filename", None) or folder
        what = getattr(problem, "strerror", None) or problem
        raise DiskError(
            f"{where} cannot be written: {what}; make room on that disk, and do the same again"
        ) from problem


def check_room(job: Job, folder: RunFolder, done: int) -> None:
    """Raises DiskError, on every process, if what will be written after the step `done` does not fit."""
    problem = job.world.share(_lacking(job, folder, done) if job.world.first else None)
    if problem:
        raise DiskError(problem)


def _lacking(job: Job, folder: RunFolder, done: int) -> str | None:
    writing = to_write(job, folder, done)
    problem = lacking(folder.path, writing)
    if not problem:
        return None
    return (
        f"--out {folder.path}: this run will write {told(writing.total)} ({writing}), and {problem},"
        f" lower --checkpoint.keep (it is {job.run.checkpoint.keep or 'all'}), or name a folder on another disk"
    )


def to_write(job: Job, folder: RunFolder, done: int) -> Writing:
    """What the run will write after the step `done`, at most."""
    run = job.run
    every = [run.checkpoint.every or job.epoch]
    if job.prepared.validation is not None:
        every.append(run.eval.every or job.epoch)  # a better score is saved
    saves = saves_left(done, job.steps, every)
    there = sum(step <= done for step in folder.checkpoint_steps())
    weights = trained_weights(job)
    of_each = 4 + run.optim.state_bytes + 4 * (run.regularize.ema is not None) + 4 * bool(run.regularize.pull)
    return Writing(
        checkpoint=checkpoint_bytes(weights, of_each, job.world.processes),
        checkpoints=more_at_once(there, saves, run.checkpoint.keep),
        export=4 * weights + _processor(Path(job.base.source)) if run.strategy.makes_adapter else 0,
        rows=ROW * (job.steps - done),
    )


def trained_weights(job: Job) -> int:
    """How many weights train in the end; where more are unfrozen on the way, at most."""
    grows = job.stage(job.steps) > 0
    weights = (one for one in job.model.parameters() if one.requires_grad or (grows and one.is_floating_point()))
    return sum(int(getattr(one, "ds_numel", one.numel())) for one in weights)


def _processor(base: Path) -> int:
    files = {file for pattern in PROCESSOR for file in base.glob(pattern)} if base.is_dir() else ()
    return sum(file.stat().st_size for file in files)
