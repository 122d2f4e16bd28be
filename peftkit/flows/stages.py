"""The steps of a training, and the engine that takes them: opened anew for each stage of an unfreezing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from peftkit.config.run import Run
from peftkit.data.batches import shortest_batch
from peftkit.engine.ahead import with_ahead
from peftkit.engine.average import follow
from peftkit.engine.checkpoint import Progress, Saved, resume
from peftkit.engine.loop import Learnt, Step, forward, on_device, steps
from peftkit.engine.noise import add_noise
from peftkit.engine.open import Engine, open_engine
from peftkit.engine.pull import pull_back
from peftkit.engine.pulse import beat
from peftkit.engine.random_state import seed_all
from peftkit.engine.state import capture, load_weights, restore
from peftkit.evaluation.reference import join_reference
from peftkit.flows.job import Job
from peftkit.flows.scores import gives_up
from peftkit.flows.trunk import hang_cache
from peftkit.kernels.quicken import quicken
from peftkit.kernels.sequence import share_rows
from peftkit.kernels.trunk import free_trunk
from peftkit.run_folder import RunFolder
from peftkit.tasks.base import IGNORED
from peftkit.tasks.r_drop import RDrop, check_dropout


def all_steps(
    job: Job, engine: Engine, progress: Progress, wish: Callable[[], bool] = lambda: False
) -> Iterator[tuple[Engine, Step]]:
    """Every step from `progress.step` on, with the engine that took it: a new stage of unfreezing opens another."""
    schedule, run = job.run.schedule, job.run
    task = learnt(run)

    def rate(step: int) -> float:
        return schedule.factor(step, job.steps, progress.evals)

    while progress.step < job.steps and not gives_up(run, progress):  # one that is resumed may have stopped early
        stage, end = job.stage(progress.step), progress.step
        while end < job.steps and job.stage(end) == stage:
            end += 1
        batches: Iterator[Sequence[dict[str, Any]]] = job.batches(progress.step, end)
        if run.task.looks_ahead:
            batches = with_ahead(engine, batches, run.task, job.world)
        for step in steps(engine, batches, task, job.world, rate, progress.step, wish):
            progress.step = step.step
            yield engine, step
        if end < job.steps:
            engine = open_next_stage(job, engine, job.stage(end))


def learnt(run: Run) -> Learnt:
    """The task as the loop learns it."""
    return RDrop(run.task, run.regularize.r_drop) if run.regularize.r_drop else run.task


def open_at(job: Job, step: int, saved: Saved | None) -> Engine:
    """The engine as it stands before `step` (0 is the first): new, or as the checkpoint left it."""
    seed_all(job.run.seed, job.world.process)
    if saved:
        load_weights(job.model, saved.trained)
    # A checkpoint is written after its last step: the next one may belong to another stage, which then starts here.
    stage = job.stage(max(0, step - 1))
    job.unfreeze(stage)
    engine = opened(job)
    if saved:
        resume(engine, saved, job.world, job.run.seed)
        if job.stage(step) != stage and step < job.steps:
            engine = open_next_stage(job, engine, job.stage(step))
    return engine


def open_next_stage(job: Job, engine: Engine, stage: int) -> Engine:
    """An engine over more parameters; those that trained before keep their optimizer state.

    DeepSpeed ignores what is unfrozen after `initialize`, so the old engine is closed and another one opened.
    """
    state = capture(engine)
    engine.close()
    job.unfreeze(stage)
    engine = opened(job)
    restore(engine, state)
    return engine


def opened(job: Job) -> Engine:
    """An engine over what trains by now, with the run's regularisation."""
    chosen = job.run.regularize
    if chosen.r_drop:
        check_dropout(job.model)
    noise = add_noise(job.model, chosen.neftune) if chosen.neftune else []
    shared, speed = job.run.batch.sequence_parallel, job.run.speed
    quick = quicken(job.model, job.run.task, speed.model_copy(update={"unpad": "off"}) if shared > 1 else speed)
    rows = [share_rows(job.model, shared, job.world.process, job.world.processes)] if shared > 1 else []
    freed, kept = free_trunk(job.model), hang_cache(job)
    engine = open_engine(job.model, job.run.optim, job.deepspeed, job.depths, job.born)
    engine.hooks.extend([*noise, quick, freed, *kept, *rows])
    quick.prove(partial(few_rows, job, engine))
    job.quickened = quick.words
    if chosen.pull:
        pull_back(engine, chosen.pull)
    if chosen.ema is not None:
        follow(engine, chosen.ema)  # after the pull, so that it is in the average
    return engine


def few_rows(job: Job, engine: Engine) -> None:
    """A forward pass over two short rows, the same ones on every process; one is shorter than the other, also for a decoder."""
    task = learnt(job.run)
    batch = on_device(shortest_batch(job.prepared.train, job.run.task, job.base.processor), job.world.device)
    mask = batch.get("attention_mask")
    if mask is not None and mask.all() and mask.shape[-1] > 1:
        mask[0, ..., -1] = 0
    if "decoder_input_ids" in batch and (labels := batch["labels"]).shape[1] > 1 and (labels[:, -1] != IGNORED).all():
        labels[0, -1] = IGNORED
    forward(engine.deepspeed, task, batch)


def join_references(
    job: Job, engine: Engine, folder: RunFolder, first_time: bool, pause: Callable[[], None] = beat
) -> None:
    """The numbers of the model before its first step, for a task that learns against it."""
    for split in ("train", "validation", "test", "anchor"):
        store, task = job.prepared.store(split), job.run.task
        if store is not None:
            batches = job.evaluation(store, None)
            join_reference(
                engine.deepspeed, batches, store, task, job.world, folder.reference / split, first_time, pause
            )
