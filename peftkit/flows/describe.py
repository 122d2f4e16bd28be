"""A run in words: the header before it and the summary behind it. Pure functions of what is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peftkit.config.run import Run
from peftkit.config.sections import Batch
from peftkit.data.batches import useful
from peftkit.data.prepare import Prepared
from peftkit.engine.checkpoint import Progress
from peftkit.engine.ds_config import Config, offloads_optimizer, stage_of
from peftkit.flows.job import Job
from peftkit.flows.trunk import trunk_words
from peftkit.models.inspect import Count, count
from peftkit.run_folder import RunFolder
from peftkit.tasks import Task

Pairs = list[tuple[str, Any]]
SHOWN = 8
"""So many labels are named."""


def header_of(job: Job, folder: RunFolder) -> Pairs:
    """What will be done."""
    run = job.run
    return [
        ("model", f"{job.base.source}  ({parameters(count(job.model))})"),
        ("task", task_words(run.task)),
        ("strategy", f"{run.strategy.name}  ({trainable(count(job.model))})"),
        *trunk_words(job),
        ("engine", engine_words(job.deepspeed, job.precision, job.world.processes)),
        ("batch", batch_words(run.batch, job.world.processes, useful_tokens(run, job.prepared, job.world.processes))),
        ("steps", f"{job.steps}  ({job.epoch} in an epoch of {job.prepared.train.epoch:,} rows)"),
        ("learning rate", f"{run.optim.lr:g} with {run.optim.name}, {run.schedule.name}"),
        ("folder", folder.path),
    ]


def summary_of(job: Job, folder: RunFolder, progress: Progress) -> tuple[Pairs, list[str]]:
    """Where things lie, and the commands to type next."""
    pairs: Pairs = [("steps", f"{progress.step} of {job.steps}")]
    if progress.step < job.steps:
        pairs.append(("stopped early", f"{progress.waited} evaluations without a better {job.run.eval.best}"))
    if progress.skipped:
        pairs.append(("skipped", f"{progress.skipped} steps whose loss or gradient was not finite"))
    if progress.best is not None:
        pairs.append((f"best {job.run.eval.best}", f"{progress.best:.4g} at step {progress.best_step}"))
    pairs += [("checkpoint", folder.newest_checkpoint()), ("metrics", folder.metrics), ("logs", folder.logs)]
    if job.run.strategy.makes_adapter:
        pairs.append(("adapter", folder.export("adapter")))
    if tuned := progress.tuned.get("thresholds"):
        pairs.append(("thresholds", ", ".join(f"{name} {value:.3g}" for name, value in tuned.items())))
    return pairs, next_commands(job.run.task, folder.path)


def next_commands(task: Task, folder: Path) -> list[str]:
    """What can be done with a run that is finished."""
    answers = [f"peftkit predict {folder} ROWS --out answers.jsonl"] if task.predicts else []
    return [f"peftkit eval {folder} ROWS", *answers, f"peftkit export {folder} --to merged"]


def task_words(task: Task) -> str:
    """`token_classification  (IOB2: O, B-LOC, B-PER)`: what it took from the rows."""
    kind = getattr(task, "problem", None) or getattr(task, "scheme", None)
    labels = list(getattr(task, "labels", None) or ())
    shown = ", ".join(labels[:SHOWN]) + (f" and {len(labels) - SHOWN} more" if len(labels) > SHOWN else "")
    taken = ": ".join(filter(None, [kind, shown]))
    return f"{task.name}  ({taken})" if taken else task.name


def parameters(size: Count) -> str:
    return f"{size.total / 1e6:,.1f}M parameters"


def trainable(size: Count) -> str:
    return f"trains {size.trainable:,} of {size.total:,} parameters, {size.share:.2%}"


def engine_words(config: Config, precision: str, world: int) -> str:
    """`DeepSpeed ZeRO-2, optimizer offloaded, bf16, 2 processes`."""
    offload = ", optimizer offloaded" if offloads_optimizer(config) else ""
    return f"DeepSpeed ZeRO-{stage_of(config)}{offload}, {precision}, {processes(world)}"


def processes(number: int) -> str:
    return "1 process" if number == 1 else f"{number} processes"


def batch_words(batch: Batch, world: int, useful: float | None) -> str:
    """`16 rows a step = 2 processes x micro-batches of up to 1,024 tokens, 6.9 % padding`."""
    total, micro, among = batch.total, batch.micro, "" if useful is None else f", {1 - useful:.1%} padding"
    groups = f"{world // batch.sequence_parallel} x {batch.sequence_parallel} processes that share rows"
    rows = f"{total} rows a step = {processes(world) if batch.sequence_parallel == 1 else groups} x"
    if micro == "auto":
        return f"{rows} micro-batches of as many rows as fit (--batch.micro auto)"
    if batch.tokens:
        at_most = f" and {micro} rows" if micro else ""
        return f"{rows} micro-batches of up to {batch.tokens:,} tokens{at_most}{among}"
    passes = -(-total * batch.sequence_parallel // (batch.rows * world))
    return f"{rows} {passes} micro-batch{'es' if passes > 1 else ''} of up to {batch.rows} rows{among}"


def useful_tokens(run: Run, prepared: Prepared, world: int) -> float | None:
    """Which share of what micro-batches hold is no padding; None where that is not known yet, or rows have no lengths."""
    if run.batch.micro == "auto" or max(prepared.train.lengths, default=1) == 1:
        return None
    return useful(prepared.train, run.batch, run.seed, world)
