"""`peftkit train`: one training, from its settings to its folder."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

from peftkit.config.read import write
from peftkit.config.run import Run
from peftkit.data.batches import steps_per_epoch
from peftkit.engine.ahead import with_ahead
from peftkit.engine.average import averaged, follow
from peftkit.engine.checkpoint import (
    PARTIAL,
    Progress,
    Saved,
    newest,
    prune,
    read_progress,
    read_result,
    read_trained,
    resume,
    save,
)
from peftkit.engine.loop import Step, steps
from peftkit.engine.noise import add_noise
from peftkit.engine.open import Engine, open_engine
from peftkit.engine.pull import pull_back
from peftkit.engine.random_state import seed_all
from peftkit.engine.state import capture, load_weights, put_weights, restore
from peftkit.engine.statistics import share_statistics
from peftkit.engine.world import World, identity, joined
from peftkit.errors import CheckpointError, ConfigError
from peftkit.evaluation.bootstrap import ends_of_intervals
from peftkit.evaluation.reference import join_reference
from peftkit.evaluation.score import Scored, Split, score
from peftkit.flows.describe import batch_words, engine_words, header_of, parameters, summary_of, trainable
from peftkit.flows.job import Job, check_base, check_settings, make_job, sketch, total_steps
from peftkit.run_folder import RunFolder, free_folder
from peftkit.tasks import Task
from peftkit.tasks.r_drop import RDrop, check_dropout
from peftkit.tracking.jsonl import truncate_after
from peftkit.tracking.quiet import chatter_to
from peftkit.tracking.teller import Teller


def train(run: Run) -> Path:
    """Train as `run` says and return the run folder. Every process of the world calls it.

    Raises ConfigError, DataError or ModelError before the first step, CheckpointError or ExportError after it.

    >>> folder = train(Run(model="gpt2", data="texts.jsonl", task="causal_lm"))  # doctest: +SKIP
    """
    check_settings(run)
    with joined() as world:
        folder = claim(run, world)
        with closing(Teller(world.first)) as teller, chatter_to(folder.log(world.process), run.verbose):
            job = make_job(run.model_copy(update={"out": folder.path}), world)
            progress = carry_out(job, folder, teller)
    if world.first:
        with chatter_to(folder.log(0), run.verbose):
            finish(job, folder, progress, teller)
    return folder.path


def carry_out(job: Job, folder: RunFolder, teller: Teller) -> Progress:
    """All steps, with evaluations and checkpoints between them."""
    run, world = job.run, job.world
    saved = newest(folder, world) if run.resume else None
    progress = saved.progress if saved else Progress()
    if saved:
        check_base(saved.folder, job.base)
    teller.header("train", header_of(job, folder))
    for line in job.prepared.report.lines():
        teller.note(line)
    if saved:
        for damage in saved.passed_over:
            teller.warn(damage)
        teller.note(f"going on from {saved.folder}")
    engine = open_at(job, progress.step, saved)
    begin_folder(job, folder, progress, world)  # what cannot be resumed was left as it is
    base = {"source": job.base.source, "fingerprint": job.base.fingerprint}
    teller.log_to(folder.metrics)
    if run.task.reference:
        join_references(job, engine, folder, first_time=saved is None)
    if run.eval.before and not progress.step:
        evaluate_all(job, engine, progress, teller)
    teller.start(job.steps, progress.step)
    for current, step in all_steps(job, engine, progress):
        engine = current  # a stage of unfreezing opens another one
        teller.step(step.row())
        last = step.step == job.steps
        better = evaluates(job, step.step) and evaluate_all(job, engine, progress, teller, last)
        last = last or gives_up(run, progress)
        if better or last or step.step % (run.checkpoint.every or job.epoch) == 0:
            save(engine, folder, progress, world, base)
            if world.first:
                prune(folder, run.checkpoint.keep, progress.best_step)
        if last:
            break
    score_test(job, engine, folder, progress, teller)
    engine.close()
    return progress


def all_steps(job: Job, engine: Engine, progress: Progress) -> Iterator[tuple[Engine, Step]]:
    """Every step from `progress.step` on, with the engine that took it: a new stage of unfreezing opens another."""
    schedule, run = job.run.schedule, job.run
    task = RDrop(run.task, run.regularize.r_drop) if run.regularize.r_drop else run.task

    def rate(step: int) -> float:
        return schedule.factor(step, job.steps, progress.evals)

    while progress.step < job.steps and not gives_up(run, progress):  # one that is resumed may have stopped early
        stage, end = job.stage(progress.step), progress.step
        while end < job.steps and job.stage(end) == stage:
            end += 1
        batches: Iterator[Sequence[dict[str, Any]]] = job.batches(progress.step, end)
        if run.task.looks_ahead:
            batches = with_ahead(engine, batches, run.task, job.world)
        for step in steps(engine, batches, task, job.world, rate, progress.step):
            progress.step = step.step
            yield engine, step
        if end < job.steps:
            engine = open_next_stage(job, engine, job.stage(end))


def open_at(job: Job, step: int, saved: Saved | None) -> Engine:
    """The engine as it stands before `step` (0 is the first): new, or as the checkpoint left it."""
    seed_all(job.run.seed, job.world.process)
    if saved:
        load_weights(job.model, read_trained(saved.folder))
    # A checkpoint is written after its last step: the next one may belong to another stage, which then starts here.
    stage = job.stage(max(0, step - 1))
    job.unfreeze(stage)
    engine = opened(job)
    if saved:
        resume(engine, saved, job.world)
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
    engine = open_engine(job.model, job.run.optim, job.deepspeed, job.depths, job.born)
    engine.hooks.extend(noise)
    if chosen.pull:
        pull_back(engine, chosen.pull)
    if chosen.ema is not None:
        follow(engine, chosen.ema)  # after the pull, so that it is in the average
    return engine


def join_references(job: Job, engine: Engine, folder: RunFolder, first_time: bool) -> None:
    """The numbers of the model before its first step, for a task that learns against it."""
    for split in ("train", "validation", "test", "anchor"):
        store, task = job.prepared.store(split), job.run.task
        if store is not None:
            batches = job.evaluation(store, None)
            join_reference(engine.deepspeed, batches, store, task, job.world, folder.reference / split, first_time)


def evaluate_all(job: Job, engine: Engine, progress: Progress, teller: Teller, last: bool = False) -> bool:
    """Score the validation rows, and those of the old domain if there are any; whether the former is the best so far."""
    better = evaluate(job, engine, "validation", progress, teller, last)
    evaluate(job, engine, "anchor", progress, teller, last)
    return better


def evaluate(job: Job, engine: Engine, split: str, progress: Progress, teller: Teller, last: bool = False) -> bool:
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
        )
    better = validates and note(job, progress, scored)
    last = last or gives_up(job.run, progress)
    ends = ends_of_intervals(scored.records, job.metrics, scored.task, job.run.eval.bootstrap if last else 0)
    teller.evaluation(split, progress.step, {**scored.numbers, **ends})
    return better


def score_test(job: Job, engine: Engine, folder: RunFolder, progress: Progress, teller: Teller) -> None:
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
    evaluate(job, engine, "test", progress, teller, last=True)


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


def claim(run: Run, world: World) -> RunFolder:
    """The run's folder, the same on every process: a new one, or with `--resume` the one that is there."""
    answer = world.share(_claim(run) if world.first else None)
    if isinstance(answer, str):
        raise ConfigError(answer)
    return RunFolder(answer)


def _claim(run: Run) -> Path | str:
    if run.out is None:
        return default_folder(run)
    if run.resume:
        return run.out
    if RunFolder(run.out).config.exists():
        return f"--out {run.out} belongs to another run; go on with that one with --resume, or name another folder"
    if run.out.exists() and (not run.out.is_dir() or {entry.name for entry in run.out.iterdir()} - {"logs"}):
        return f"--out {run.out} holds something else; name a new folder"
    try:
        run.out.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        return f"--out {run.out} cannot be made ({problem.strerror or problem}); name a folder elsewhere"
    return run.out


def default_folder(run: Run) -> Path:
    base = Path(run.model.path or "SmolLM2-135M-Instruct").name
    return free_folder(Path("runs") / f"{base}-{run.task.name}-{run.strategy.name}")


def begin_folder(job: Job, folder: RunFolder, progress: Progress, world: World) -> None:
    """Write the resolved run, and drop what an interrupted attempt left behind the point where this one starts."""
    if world.first:
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.config.write_text(write(job.run.model_copy(update={"resume": False})), encoding="utf-8")
        shutil.copyfile(job.prepared.splits, folder.splits)
        truncate_after(folder.metrics, progress.step if progress.step else -1)
        for leftover in folder.checkpoints.glob(f"*{PARTIAL}"):
            shutil.rmtree(leftover)
        for step in folder.checkpoint_steps():
            if step > progress.step:
                shutil.rmtree(folder.checkpoint(step))
    world.wait()


def finish(job: Job, folder: RunFolder, progress: Progress, teller: Teller) -> None:
    """On the first process, when the others are done: the adapter's export, and what to do next."""
    if job.run.strategy.makes_adapter:
        from peftkit.flows.export import export

        teller.note("writing and verifying export/adapter ...")
        export(folder.path, to="adapter")
    teller.summary(*summary_of(job, folder, progress))


def dry_run(run: Run) -> None:
    """Show the resolved run, what would train, and DeepSpeed's configuration; nothing is trained or written."""
    check_settings(run)
    world = identity()
    teller = Teller(world.first)
    with chatter_to(None, run.verbose):
        run, precision, config, prepared, size = sketch(run, world.processes)
    epoch = steps_per_epoch(prepared.train.epoch, run.batch.total)
    steps = total_steps(run, epoch)
    tokens = round(sum(prepared.train.lengths) * steps / epoch)
    pairs = [
        ("model", f"{run.model.path or 'SmolLM2-135M-Instruct'}  ({parameters(size)})"),
        ("strategy", f"{run.strategy.name}  ({trainable(size)})"),
        ("engine", engine_words(config, precision, world.processes)),
        ("batch", batch_words(run.batch.total, run.batch.micro, world.processes)),
        ("steps", f"{steps}  ({steps / epoch:.2f} epochs, about {tokens:,} tokens)"),
        ("folder", run.out or default_folder(run)),
        *[("data", line) for line in prepared.report.lines()],
    ]
    teller.header("this would be done", pairs)
    teller.header("DeepSpeed's configuration", [("", line) for line in json.dumps(config, indent=1).splitlines()])
    teller.header("all settings", [("", line) for line in write(run).splitlines()])
