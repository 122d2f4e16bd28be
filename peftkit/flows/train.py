"""`peftkit train`: one training, from its settings to its folder."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import closing, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import NoReturn

import psutil

from peftkit.atomic import PART, put_aside, write_whole
from peftkit.config.read import write
from peftkit.config.run import Run
from peftkit.config.trust import remember
from peftkit.data.batches import steps_per_epoch
from peftkit.engine.checkpoint import PARTIAL, Progress, newest, prune
from peftkit.engine.ds_config import ACCUMULATION, MICRO
from peftkit.engine.open import Engine, own_linear_again
from peftkit.engine.saver import Saver
from peftkit.engine.stop import Stopper
from peftkit.engine.watch import Watch
from peftkit.engine.world import LONGEST_WAIT, World, identity, joined
from peftkit.errors import ConfigError, StoppedError
from peftkit.flows.attempt import Attempt, start_attempt
from peftkit.flows.describe import (
    batch_words,
    engine_words,
    header_of,
    parameters,
    summary_of,
    trainable,
    useful_tokens,
)
from peftkit.flows.fit import fitted
from peftkit.flows.guard import check_weights, tell_step
from peftkit.flows.job import Job, check_base, check_settings, make_job, sketch, total_steps
from peftkit.flows.memory import Meter, told_when_full
from peftkit.flows.out import default_folder
from peftkit.flows.room import check_room, check_writable, told_when_no_room
from peftkit.flows.scores import evaluate_all, evaluates, gives_up, score_test
from peftkit.flows.sole import sole_writer
from peftkit.flows.stages import all_steps, join_references, open_at
from peftkit.run_folder import RunFolder
from peftkit.tracking.jsonl import append_row, truncate_after
from peftkit.tracking.quiet import chatter_to, speak_at_once
from peftkit.tracking.teller import Teller

END_MARGIN = 30.0
"""Seconds before the scheduler ends the job by which the run has ended by itself."""
BEFORE_IT_BEGAN = {"logs", "status.json", "errors", "stop", "lock", "slurm"}
"""What may lie in the folder of a run that is new."""


def train(run: Run) -> Path:
    """Train as `run` says and return the run folder. Every process of the world calls it.

    Raises ConfigError, DataError or ModelError before the first step, CheckpointError or ExportError after it, and
    StoppedError once it has saved what was reached, if it was asked to stop.

    >>> folder = train(Run(model="gpt2", data="texts.jsonl", task="causal_lm"))  # doctest: +SKIP
    """
    check_settings(run)
    with Stopper(say) as stopper, joined(max(LONGEST_WAIT, 2 * timedelta(seconds=run.guard.timeout))) as world:
        folder = claim(run, world)
        with sole_writer(folder, world):
            attempt = start_attempt(folder, world)
            try:
                carry_through(run, attempt, stopper)
            except BaseException as problem:
                told = attempt.failed(problem)
                if told is problem:
                    raise
                raise told from problem
    return folder.path


def carry_through(run: Run, attempt: Attempt, stopper: Stopper) -> None:
    """From the data to the export."""
    folder, world = attempt.folder, attempt.world
    meter = Meter()
    with (
        closing(Teller(world.first)) as teller,
        chatter_to(folder.log(world.process), run.verbose),
        told_when_no_room(folder.path),
        told_when_full(run, world, meter, lambda: attempt.status.step),
    ):
        meter.job = make_job(run.model_copy(update={"out": folder.path}), world)
        job = fitted(meter.job, folder, teller)
        progress = carry_out(
            Underway(job, folder, teller, attempt, stopper, saver_of(job, attempt, stopper, teller), meter)
        )
    stopper.release()
    if world.first:
        with chatter_to(folder.log(0), run.verbose), told_when_no_room(folder.path):
            finish(job, folder, progress, teller)
    attempt.tell("done")


@dataclass
class Underway:
    """A training between its first step and its last."""

    job: Job
    folder: RunFolder
    teller: Teller
    attempt: Attempt
    stopper: Stopper
    saver: Saver
    meter: Meter = field(default_factory=Meter)
    progress: Progress = field(default_factory=Progress)

    def pause(self) -> None:
        """Between two batches of an evaluation. Raises StoppedError, on all processes at once, if one asks to stop."""
        (asked,) = self.job.world.sum(self.stopper.wish())
        if asked:
            raise StoppedError("")


def carry_out(now: Underway) -> Progress:
    """All steps, with evaluations and checkpoints between them."""
    job, folder, teller = now.job, now.folder, now.teller
    run, world = job.run, job.world
    saved = newest(folder, world, job.identity) if run.resume else None
    if saved:
        check_base(saved.folder, job.base)
        now.progress = saved.progress
    teller.header("train", header_of(job, folder))
    for line in job.prepared.report.lines():
        teller.note(line)
    if saved:
        for damage in saved.passed_over:
            teller.warn(damage)
        teller.note(f"going on from {saved.folder}")
    check_room(job, folder, now.progress.step)
    now.meter.job = job
    engine = open_at(job, now.progress.step, saved)
    for line in job.quickened:
        teller.note(line)
    now.meter.begin(job, engine)
    begin_folder(job, folder, now.progress, world)  # what cannot be resumed was left as it is
    teller.log_to(folder.metrics)
    watch_for_wishes(now)
    now.attempt.begin(now.progress.step, job.steps, now.progress.step if saved else None)
    with Watch(world, run.guard.silence, run.guard.timeout, now.attempt.end), now.saver:
        engine = all_between(now, engine, fresh=saved is None)
    engine.close()
    own_linear_again()
    return now.progress


def all_between(now: Underway, engine: Engine, fresh: bool) -> Engine:
    """From the first evaluation to the last one, with all steps; the engine that took the last step."""
    job, progress = now.job, now.progress
    if job.run.task.reference:
        try:
            join_references(job, engine, now.folder, fresh, now.pause)
        except StoppedError:
            stop(now)
    now.teller.start(job.steps, progress.step)
    if not progress.step:
        before_first(now, engine)
        last = False
    else:  # a run that was stopped in its evaluation owes it
        last = progress.scored != progress.step and evaluates(job, progress.step) and between(now, engine)
    if not last:
        for current, step in all_steps(job, engine, progress, now.stopper.wish):
            engine = now.meter.engine = current  # a stage of unfreezing opens another one
            if step.skipped:
                now.saver.join()  # it may be the last good one
            tell_step(job, now.folder, progress, step, now.teller)
            now.attempt.advance(step.step)
            now.stopper.took(step.seconds)
            now.saver.look()
            if step.asked:
                stop(now, engine)
            if between(now, engine):
                break
    now.saver.join()
    try:
        score_test(job, engine, now.folder, progress, now.teller, now.pause)
    except StoppedError:
        stop(now)
    return engine


def before_first(now: Underway, engine: Engine) -> None:
    """The base model's scores."""
    if now.job.run.eval.before:
        try:
            evaluate_all(now.job, engine, now.progress, now.teller, now.pause)
        except StoppedError:
            stop(now)


def between(now: Underway, engine: Engine) -> bool:
    """What is due after a step: scores, and a checkpoint. Whether it was the last step."""
    job, progress = now.job, now.progress
    last, better = progress.step == job.steps, False
    if evaluates(job, progress.step):
        before = deepcopy(vars(progress))
        try:
            better = evaluate_all(job, engine, progress, now.teller, now.pause, last)
        except StoppedError:
            vars(progress).update(before)
            stop(now, engine)
        progress.scored = progress.step
    last = last or gives_up(job.run, progress)
    if better or last or progress.step % (job.run.checkpoint.every or job.epoch) == 0:
        save_now(now, engine)
    return last


def save_now(now: Underway, engine: Engine) -> None:
    """Begin a checkpoint of where the run stands."""
    now.saver.join()
    check_weights(engine, now.folder, now.progress, now.job.world)
    now.saver.save(engine, now.progress)


def saver_of(job: Job, attempt: Attempt, stopper: Stopper, teller: Teller) -> Saver:
    """Writes this run's checkpoints, and tells what that takes."""
    base, chosen = {"source": job.base.source, "fingerprint": job.base.fingerprint}, job.run.checkpoint

    def done(step: int, seconds: float) -> None:
        attempt.saved(step)
        stopper.saved(seconds)

    return Saver(
        attempt.folder, job.world, base, job.identity,
        keep=chosen.keep, asynchronous=chosen.asynchronous,
        tell=teller.note, log=partial(append_row, attempt.folder.saves), done=done,
    )  # fmt: skip


def stop(now: Underway, engine: Engine | None = None) -> NoReturn:
    """Leave, all processes together; with an engine, save first what it has learnt."""
    world = now.job.world
    reason = world.share(next(filter(None, world.gather(now.stopper.reason)), ""))
    if engine:
        save_now(now, engine)
    now.saver.join()
    now.attempt.tell("stopped", reason)
    world.wait()
    raise now.attempt.stopped(reason)


def watch_for_wishes(now: Underway) -> None:
    """From here on a wish to stop is granted between two steps."""
    if now.job.world.first:
        now.stopper.stop_file = now.folder.stop
    if deadline := now.job.run.checkpoint.deadline:
        now.stopper.deadlines[f"--checkpoint.deadline {deadline:g} s"] = psutil.Process().create_time() + deadline
    if end := os.environ.get("PEFTKIT_END_TIME"):
        now.stopper.deadlines["the end of the job's time"] = float(end) - END_MARGIN
    now.stopper.hold()


def say(text: str) -> None:
    """To the user, once for all processes."""
    if identity().first:
        speak_at_once(text)


def claim(run: Run, world: World) -> RunFolder:
    """The run's folder, the same on every process: a new one, or with `--resume` the one that is there."""
    answer = world.share(_claim(run) if world.first else None)
    if isinstance(answer, str):
        raise ConfigError(answer)
    check_writable(answer, world)
    return RunFolder(answer)


def _claim(run: Run) -> Path | str:
    if run.out is None:
        return default_folder(run)
    if run.resume:
        return _unlinked(run.out)
    if RunFolder(run.out).config.exists():
        return f"--out {run.out} belongs to another run; go on with that one with --resume, or name another folder"
    if run.out.exists() and (not run.out.is_dir() or _begun(run.out)):
        return f"--out {run.out} holds something else; name a new folder"
    try:
        run.out.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        return f"--out {run.out} cannot be made ({problem.strerror or problem}); name a folder elsewhere"
    return run.out


def _begun(folder: Path) -> set[str]:
    """What lies in a folder beyond what a start leaves that came to nothing."""
    return {entry.name for entry in folder.iterdir() if not entry.name.endswith(PART)} - BEFORE_IT_BEGAN


def _unlinked(folder: Path) -> Path | str:
    try:
        RunFolder(folder).check_links()
    except ConfigError as problem:
        return str(problem)
    return folder


def begin_folder(job: Job, folder: RunFolder, progress: Progress, world: World) -> None:
    """Write the resolved run, and drop what an interrupted attempt left behind the point where this one starts."""
    if world.first:
        folder.path.mkdir(parents=True, exist_ok=True)
        write_whole(folder.config, write(job.run.model_copy(update={"resume": False})))
        remember(job.run)
        write_whole(folder.splits, job.prepared.splits.read_text(encoding="utf-8"))
        truncate_after(folder.metrics, progress.step or -1, progress.scored)
        for half_written in folder.path.glob(f"*{PART}"):
            half_written.unlink()
        for leftover in folder.checkpoints.glob(f"*{PARTIAL}"):
            shutil.rmtree(leftover, ignore_errors=True)
        for step in folder.checkpoint_steps():
            if step > progress.step:  # none that could be gone on from: maybe another version's
                put_aside(folder.checkpoint(step))
        with suppress(OSError):
            # What killed the last start may have come before that.
            prune(folder, job.run.checkpoint.keep, progress.best_step)
    world.wait()


def finish(job: Job, folder: RunFolder, progress: Progress, teller: Teller) -> None:
    """On the first process, when the others are done: the adapter's export, and what to do next."""
    if job.run.strategy.makes_adapter:
        from peftkit.flows.export import export

        teller.note("writing and verifying export/adapter ...")
        export(folder.path, to="adapter", trust=job.run.model.trust_remote_code)
    teller.summary(*summary_of(job, folder, progress))


def dry_run(run: Run) -> None:
    """Show the resolved run, what would train, and DeepSpeed's configuration; nothing is trained or written."""
    check_settings(run)
    world = identity()
    teller = Teller(world.first)
    with chatter_to(None, run.verbose):
        run, precision, config, prepared, size = sketch(run, world.processes)
    if run.batch.micro == "auto":
        config = config | dict.fromkeys((MICRO, ACCUMULATION), "auto")
    epoch = steps_per_epoch(prepared.train.epoch, run.batch.total)
    steps = total_steps(run, epoch)
    tokens = round(sum(prepared.train.lengths) * steps / epoch)
    pairs = [
        ("model", f"{run.model.path or 'SmolLM2-135M-Instruct'}  ({parameters(size)})"),
        ("strategy", f"{run.strategy.name}  ({trainable(size)})"),
        ("engine", engine_words(config, precision, world.processes)),
        ("batch", batch_words(run.batch, world.processes, useful_tokens(run, prepared, world.processes))),
        ("steps", f"{steps}  ({steps / epoch:.2f} epochs, about {tokens:,} tokens)"),
        ("folder", run.out or default_folder(run)),
        *[("data", line) for line in prepared.report.lines()],
    ]
    teller.header("this would be done", pairs)
    teller.header("DeepSpeed's configuration", [("", line) for line in json.dumps(config, indent=1).splitlines()])
    teller.header("all settings", [("", line) for line in write(run).splitlines()])
