"""Between the loaded model and its first step: how many rows a forward pass may have, where the run leaves that open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch

from peftkit.config.read import load
from peftkit.config.run import Run
from peftkit.data.batches import longest_batch
from peftkit.engine.ds_config import offloads_optimizer, stage_of
from peftkit.engine.memory import give_back, size
from peftkit.engine.micro import SHARE, SPARE, Probe, largest
from peftkit.flows.job import Job, engine_config
from peftkit.flows.stages import learnt, opened
from peftkit.models.inspect import count
from peftkit.run_folder import RunFolder
from peftkit.tracking.teller import Teller


def fitted(job: Job, folder: RunFolder, teller: Teller) -> Job:
    """The job with a number where `--batch.micro` is auto: what the run began with, or what is found now.

    Every process calls it, and gets the same. No weight, no random number of the training and no statistics are changed.
    """
    if job.run.batch.micro != "auto":
        return job
    begun = job.world.share(_begun_with(job.run, folder) if job.world.first else None)
    batch = job.run.batch.model_copy(update=begun or find(job, teller))
    run = job.run.model_copy(update={"batch": batch})
    return replace(job, run=run, deepspeed=engine_config(run, job.world.processes)[1])


def _begun_with(run: Run, folder: RunFolder) -> dict[str, int | None] | None:
    """A run that goes on does so with the number that was found first: with another one it would not be the same to the bit."""
    if not run.resume or not folder.config.exists():
        return None
    begun = load(folder.config).batch
    return None if begun.micro == "auto" else {"micro": begun.micro, "tokens": begun.tokens}


def find(job: Job, teller: Teller) -> dict[str, int | None]:
    """Try it out, on an engine of its own over everything that will ever train: what fits of the longest rows, in tokens."""
    with everything_unfrozen(job):
        found, free = _tried(job)
    give_back()
    teller.note(
        f"--batch.micro auto: {found} of the longest rows, or as many tokens, in a forward pass ({size(free)} were free)"
    )
    longest = max(job.prepared.train.lengths)
    return {"micro": found} if longest == 1 else {"micro": None, "tokens": found * longest}


def _tried(job: Job) -> tuple[int, int]:
    """The rows that fit, and the bytes that were free for them."""
    store, task = job.prepared.train, job.run.task.learning()
    engine = opened(job)
    probe = Probe(engine, learnt(job.run), job.world, partial(longest_batch, store, task, job.base.processor))
    room = int(probe.room * SHARE) - SPARE - kept_later(job)
    most = -(-job.run.batch.total * job.run.batch.sequence_parallel // job.world.processes)
    found = largest(probe.take, room, most, probe.agree)
    engine.close()
    return found, probe.room


@contextmanager
def everything_unfrozen(job: Job) -> Iterator[None]:
    """The model as its last stage trains it, meanwhile."""
    before = {name: weight.requires_grad for name, weight in job.model.named_parameters()}
    born = dict(job.born)
    job.unfreeze(job.last_stage)
    try:
        yield
    finally:
        for name, weight in job.model.named_parameters():
            weight.requires_grad_(before[name])
        job.born = born


def kept_later(job: Job) -> int:
    """Bytes on the device that passes alone do not make: the optimizer's state, the average, where the weights began.

    Where the host computes, a checkpoint that is being written holds all of that once more, with the weights in fp32.
    """
    of_ours = 4 * ((job.run.regularize.ema is not None) + bool(job.run.regularize.pull))
    trainable = count(job.model).trainable
    state = 0 if offloads_optimizer(job.deepspeed) else job.run.optim.state_bytes + of_ours
    kept = state * trainable / (job.world.processes if stage_of(job.deepspeed) else 1)
    copied = 0 if torch.cuda.is_available() else (4 + state) * trainable / job.world.processes
    return int(kept + copied)
