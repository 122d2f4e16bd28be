"""The numbers of a training: when its splits are scored, what the best score is, when to stop early."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from peftkit.config.run import Run
from peftkit.engine.average import averaged
from peftkit.engine.checkpoint import Progress, read_progress, read_result
from peftkit.engine.open import Engine
from peftkit.engine.state import put_weights
from peftkit.engine.statistics import share_statistics
from peftkit.errors import CheckpointError
from peftkit.evaluation.bootstrap import ends_of_intervals
from peftkit.evaluation.score import Scored, Split, score
from peftkit.flows.job import Job
from peftkit.run_folder import RunFolder
from peftkit.tasks import Task
from peftkit.tracking.teller import Teller

Pause = Callable[[], None]
"""What is called between two batches of an evaluation: a sign of life, and StoppedError if the run is to stop."""


def evaluate_all(
    job: Job, engine: Engine, progress: Progress, teller: Teller, pause: Pause, last: bool = False
) -> bool:
    """Score the validation rows, and those of the old domain if there are any; whether the former is the best so far."""
    better = evaluate(job, engine, "validation", progress, teller, pause, last)
    evaluate(job, engine, "anchor", progress, teller, pause, last)
    return better


def evaluate(
    job: Job, engine: Engine, split: str, progress: Progress, teller: Teller, pause: Pause, last: bool = False
) -> bool:
    """Score a split if there is one, the `last` time with intervals; for validation, whether it is the best score so far.

    Thresholds are set by the validation rows alone, and hold for what is scored until the next validation.
    """
    store = job.prepared.store(split)
    if store is None:
        return False
    rows = job.run.eval.rows if split == "validation" else None
    validates = split == "validation"
    task = job.run.task.model_copy(update=progress.tuned)
    share_statistics(engine.model)
    # Where the weights are averaged, it is the average that is scored, and exported.
    with averaged(engine) if job.run.regularize.ema is not None else nullcontext():
        scored = score(
            engine.deepspeed,
            job.evaluation(store, rows),
            Split(store, job.prepared.rows(split), job.base.processor),
            job.run.task if validates else task,
            job.metrics,
            job.world,
            job.run.generate,
            job.run.eval.by,
            tunes=validates,
            pause=pause,
        )
    better = validates and note(job, progress, scored)
    last = last or gives_up(job.run, progress)
    ends = ends_of_intervals(scored.records, job.metrics, scored.task, job.run.eval.bootstrap if last else 0)
    teller.evaluation(split, progress.step, {**scored.numbers, **ends})
    return better


def score_test(job: Job, engine: Engine, folder: RunFolder, progress: Progress, teller: Teller, pause: Pause) -> None:
    """Score the test rows once, with the weights and the thresholds that are exported."""
    from peftkit.flows.export import find_checkpoints

    chosen = job.run.checkpoint
    if job.prepared.test is not None and chosen.final != "last":
        taken = find_checkpoints(folder, chosen.final, chosen.average)
        try:
            weights = read_result(taken, averaged=job.run.regularize.ema is not None)
        except CheckpointError as problem:  # told again by the export
            teller.warn(str(problem))
            weights = {}
        if engine.trained().keys() <= weights.keys():
            put_weights(engine, weights)
            progress = read_progress(taken[-1])
        else:  # what trains by now was the base's then
            teller.warn(
                f"--checkpoint.final {chosen.final}: less was trained there, so the last step's weights are tested"
            )
    evaluate(job, engine, "test", progress, teller, pause, last=True)


def note(job: Job, progress: Progress, scored: Scored) -> bool:
    """Keep what a validation says; whether it is the best score so far (before the first step there is nothing to keep)."""
    progress.tuned = changes(job.run.task, scored.task)
    if not progress.step:
        return False
    progress.evals.append(scored.numbers["loss"])
    value = scored.numbers[job.run.eval.best]
    if progress.best is not None and not is_better(value, progress.best, job):
        progress.waited += 1
        return False
    progress.best, progress.best_step, progress.waited = value, progress.step, 0
    return True


def changes(task: Task, tuned: Task) -> dict[str, Any]:
    """The settings in which `tuned` differs."""
    before = task.model_dump(mode="json")
    return {name: value for name, value in tuned.model_dump(mode="json").items() if value != before[name]}


def is_better(value: float, best: float, job: Job) -> bool:
    (metric,) = [metric for metric in job.metrics if metric.called == job.run.eval.best]
    lower = not metric.higher_is_better
    better = value < best if lower else value > best
    return better or (math.isnan(best) and not math.isnan(value))


def evaluates(job: Job, step: int) -> bool:
    """Whether the validation rows are scored after `step`."""
    return step % (job.run.eval.every or job.epoch) == 0 or step == job.steps


def gives_up(run: Run, progress: Progress) -> bool:
    """Whether early stopping has waited long enough."""
    return run.eval.patience is not None and progress.waited >= run.eval.patience
