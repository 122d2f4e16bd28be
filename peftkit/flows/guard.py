"""What a run does about steps that are no good: it counts losses that are no numbers, flags sudden ones, and gives up in time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from peftkit.data.batches import deal, step_rows
from peftkit.engine.checkpoint import Progress, read_trained
from peftkit.engine.loop import Step
from peftkit.engine.nonfinite import weights_are_finite
from peftkit.engine.open import Engine
from peftkit.engine.spikes import WINDOW, spike
from peftkit.engine.world import World
from peftkit.errors import CheckpointError, NonFiniteError
from peftkit.flows.job import Job
from peftkit.run_folder import RunFolder
from peftkit.tracking.teller import Teller


def tell_step(job: Job, folder: RunFolder, progress: Progress, step: Step, teller: Teller) -> None:
    """Tell a step, and what is wrong with it; all processes take part.

    Raises NonFiniteError on each of them when `--guard` says that there were enough steps without a number.
    """
    times = note(progress, step, job.run.guard.spike)
    teller.step({**step.row(), **({"spike": times} if times else {})})
    if step.skipped:
        answer_for(job, folder, progress, step, teller)
    elif times:
        rows = job.prepared.places("train", rows_of(job, step, None)) if job.world.first else ""
        teller.warn(
            f"step {step.step}: the loss jumps to {step.loss:.4g}, {times:.0f} times the usual spread; its rows: {rows}"
        )


def note(progress: Progress, step: Step, threshold: float) -> float | None:
    """Count the step in `progress`; how far its loss jumps, if it does."""
    if step.skipped:
        progress.skipped += 1
        progress.nonfinite += 1
        return None
    progress.nonfinite = 0
    if not math.isfinite(step.grad_norm):  # fp16 looking for the scale of its loss
        return None
    times = spike(step.loss, progress.losses, threshold)
    progress.losses = [*progress.losses, step.loss][-WINDOW:]
    return times


def answer_for(job: Job, folder: RunFolder, progress: Progress, step: Step, teller: Teller) -> None:
    """Warn of a step that was skipped, or end the run."""
    guard, world = job.run.guard, job.world
    bad = world.share(world.gather(step.bad))
    what = "gradient" if math.isfinite(step.loss) else "loss"
    rows = job.prepared.places("train", rows_of(job, step, bad if any(bad) else None))
    told = (
        f"step {step.step}: its {what} is not finite, so it moved nothing; {'its' if any(bad) else 'the'} rows: {rows}"
    )
    limit = 1 if guard.nonfinite == "stop" else guard.nonfinite_limit
    if progress.nonfinite < limit:
        teller.warn(f"{told} ({progress.nonfinite} in a row; {limit} end the run)")
        return
    row = (
        f"{progress.nonfinite} steps in a row had no finite loss or gradient, the last is "
        if progress.nonfinite > 1
        else ""
    )
    raise NonFiniteError(
        "\n".join([f"{row}{told}", last_good(folder, world), f"try: {'; '.join(remedies(job, what))}"])
    )


def rows_of(job: Job, step: Step, bad: Sequence[Sequence[int]] | None) -> list[int]:
    """The numbers of a step's rows in their split; with `bad`, those of each process's micro-batches of these numbers."""
    store, batch, processes = job.prepared.train, job.run.batch, job.world.processes
    windows = step_rows(step.step - 1, store.epoch, batch.total, job.run.seed, store.draws)
    if bad is not None:
        dealt = (deal(windows, store.lengths, batch, processes, process) for process in range(processes))
        windows = [row for mine, numbers in zip(dealt, bad, strict=True) for index in numbers for row in mine[index]]
        windows = list(dict.fromkeys(windows))  # processes that share rows have the same
    return [int(store.row[window]) for window in windows]


def remedies(job: Job, what: str) -> Iterator[str]:
    """What may help, the likeliest first."""
    run = job.run
    if what == "loss" and run.data.first is not None:
        yield "look at these rows, or let `peftkit data check` do so"
    yield f"a lower --optim.lr (it is {run.optim.lr:g})"
    if not run.optim.clip:
        yield "--optim.clip 1 (it is off)"
    if job.precision != "fp32":
        yield f"--precision fp32 (it is {job.precision})"
    yield "a larger --guard.nonfinite_limit, with which --resume goes on past these rows"


def last_good(folder: RunFolder, world: World) -> str:
    """The newest checkpoint that verifies and has numbers in it alone, in a sentence; the same on every process."""
    found: str = world.share(_last_good(folder) if world.first else None)
    return found


def _last_good(folder: RunFolder) -> str:
    for step in reversed(folder.checkpoint_steps()):
        try:
            weights = read_trained(folder.checkpoint(step))
        except CheckpointError:
            continue
        if all(bool(torch.isfinite(weight).all()) for weight in weights.values()):
            return f"the last good checkpoint is {folder.checkpoint(step)}"
    return "there is no checkpoint yet"


def check_weights(engine: Engine, folder: RunFolder, progress: Progress, world: World) -> None:
    """Before a checkpoint: weights that are no numbers are not saved, and could never be learnt back."""
    (broken,) = world.sum(not weights_are_finite(engine))
    if broken:
        raise NonFiniteError(
            f"the weights are not finite any more after step {progress.step}; they are not saved.\n"
            f"{last_good(folder, world)}\ntry: a lower --optim.lr; a smaller --optim.clip; --precision fp32"
        )
