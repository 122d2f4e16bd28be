"""What a training is made of before its first step: data, model, what trains in it, DeepSpeed's configuration."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from peftkit.cache import cache_root
from peftkit.config.read import decisive
from peftkit.config.run import Run
from peftkit.data.batches import evaluation_batches, steps_per_epoch, training_batches
from peftkit.data.prefetch import prefetched
from peftkit.data.prepare import Prepared, prepare
from peftkit.data.store import Store
from peftkit.engine.ds_config import MICRO, Config, Plan, fill, read_config
from peftkit.engine.identity import Identity
from peftkit.engine.in_backward import check_in_backward
from peftkit.engine.open import DTYPES, check_config, choose_precision, zero3_guard
from peftkit.engine.random_state import seed_all
from peftkit.engine.world import World
from peftkit.errors import CheckpointError, ConfigError
from peftkit.kernels.sequence import own_labels
from peftkit.metrics import Metric
from peftkit.models.configure import configure, context_limit, keep_no_cache
from peftkit.models.find import find
from peftkit.models.inspect import Count, count, depth_of
from peftkit.models.load import Base, fresh_in, load, skeleton
from peftkit.models.processor import load_processor

ROWS = 4
"""In a micro-batch, where rows have no lengths."""


@dataclass
class Job:
    """A run whose settings met the machine, the model and the data."""

    run: Run
    """With what was found out: the task's labels, the folder."""
    world: World
    precision: str
    deepspeed: Config
    prepared: Prepared
    base: Base
    model: nn.Module
    """Adapted: what trains is marked."""
    depths: dict[str, int]
    guard: Any = None
    """Keeps ZeRO-3's way of loading models switched on."""
    born: dict[str, int] = field(default_factory=dict)
    """Stage at which each parameter started to train."""
    quickened: list[str] = field(default_factory=list)
    """How the model computes the same with less, in words, once an engine was opened."""

    @property
    def epoch(self) -> int:
        """Steps in an epoch."""
        return steps_per_epoch(self.prepared.train.epoch, self.run.batch.total)

    @property
    def steps(self) -> int:
        return total_steps(self.run, self.epoch)

    @property
    def metrics(self) -> list[Metric]:
        return metrics_of(self.run)

    @property
    def identity(self) -> Identity:
        """What a checkpoint to go on from has to be of."""
        return Identity(decisive(self.run), self.prepared.digest)

    def stage(self, step: int) -> int:
        """The stage of unfreezing that `step` (0 is the first) belongs to."""
        return min(self.run.strategy.stage(step), self.last_stage)

    @cached_property
    def last_stage(self) -> int:
        """The stage at which everything trains that ever will."""
        return self.run.strategy.last_stage(self.model)

    def unfreeze(self, stage: int) -> None:
        """Mark what trains at `stage`, going through the stages before it, so that each parameter's first one is known."""
        for at in range(stage + 1):
            if at:
                self.run.strategy.unfreeze(self.model, at)
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    self.born.setdefault(name, at)

    def batches(self, first: int, last: int) -> Iterator[Sequence[dict[str, Any]]]:
        """This process's micro-batches of the steps `first` .. `last` - 1."""
        made: Iterator[Sequence[dict[str, Any]]] = training_batches(
            self.prepared.train,
            self.run.task.learning(),
            self.base.processor,
            self.run.batch,
            self.run.seed,
            self.world.processes,
            self.world.process,
            first,
            last,
        )
        if (shared := self.run.batch.sequence_parallel) > 1:
            part = self.world.process % shared
            made = ([own_labels(batch, shared, part) for batch in step] for step in made)
        return made if self.run.speed.way("prefetch") == "off" else prefetched(made)

    def evaluation(self, split: Store, rows: int | None) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """This process's batches of a split."""
        asked, world = self.run.eval, self.world
        return evaluation_batches(
            split,
            self.run.task,
            self.base.processor,
            asked.batch,
            world.processes,
            world.process,
            rows,
            asked.tokens,
        )


def make_job(run: Run, world: World) -> Job:
    """Find, check, prepare and load everything, or raise what is wrong with it."""
    _, prepared = prepare_data(run)
    run = with_tokens(with_task(run, prepared), prepared)
    for metric in metrics_of(run):
        metric.ready()
    precision, config = engine_config(run, world.processes)
    # What `auto` was here: the checkpoint is of this format, wherever it is exported or resumed.
    run = run.model_copy(update={"precision": precision})
    guard = zero3_guard(config)
    base = load(run.model, run.task, run.strategy, DTYPES[precision], run.seed, run.data.cache)
    keep_no_cache(base.model)
    seed_all(run.seed)  # the same on every process: what is made now (adapters) must be
    model = run.strategy.adapt(base.model, base.fresh)
    depths = depth_of(model) if run.optim.layer_decay != 1 else {}
    return Job(run, world, precision, config, prepared, base, model, depths, guard)


def sketch(run: Run, processes: int) -> tuple[Run, str, Config, Prepared, Count]:
    """The same on the meta device, without weights: for `--dry-run` and plans."""
    source, prepared = prepare_data(run)
    run = with_tokens(with_task(run, prepared), prepared)
    precision, config = engine_config(run, processes)
    model = skeleton(run.model, run.task, run.strategy, DTYPES[precision], run.data.cache)
    fresh = fresh_in(model, source) if Path(source).is_dir() else ()
    return run, precision, config, prepared, count(run.strategy.adapt(model, fresh))


def with_task(run: Run, prepared: Prepared) -> Run:
    """The run with its task as the rows have it. ConfigError if other settings do not go with that."""
    run = run.model_copy(update={"task": prepared.task})
    check_settings(run)
    return run


def with_tokens(run: Run, prepared: Prepared) -> Run:
    """The run with a number of tokens a micro-batch where it names none: a run that goes on finds it in its settings."""
    if run.batch.micro is not None or run.batch.tokens is not None:
        return run
    longest, fast = max(prepared.train.lengths, default=1), torch.cuda.is_available()
    if longest == 1:  # pictures: what all rows have as much of is not counted in tokens
        size: dict[str, int] = {"micro": ROWS}
    else:
        size = {"tokens": max(4 * longest, 4096) if fast else max(longest, 1024)}
    return run.model_copy(update={"batch": run.batch.model_copy(update=size)})


def prepare_data(run: Run) -> tuple[str, Prepared]:
    """The base's place, and the data encoded for it."""
    source = find(run.model, run.data.cache)
    processor = load_processor(run.model, source, run.task.reads)
    config = configure(run.model, run.task, source)
    task = run.task.bind(config)
    return source, prepare(run.data, task, processor, context_limit(config), run.seed, run.eval.by, run.eval.anchor)


def engine_config(run: Run, processes: int) -> tuple[str, Config]:
    """The precision, and DeepSpeed's configuration with everything filled in and checked."""
    if processes % run.batch.sequence_parallel:
        raise ConfigError(
            f"--batch.sequence_parallel {run.batch.sequence_parallel}: {processes} process{'es' * (processes > 1)} cannot be"
            " put together in groups of that size"
        )
    raw = read_config(run.deepspeed)
    if run.batch.micro == "auto" and raw.get(MICRO, "auto") != "auto":
        raise ConfigError(
            f'--deepspeed: {MICRO} is {raw[MICRO]} there, and --batch.micro is auto; give one number, or write "auto" there'
        )
    precision = choose_precision(run.precision, raw)
    config = fill(raw, plan_of(run, processes, precision))
    check_config(config)
    if run.optim.in_backward:
        check_in_backward(config, processes)
    return precision, config


def plan_of(run: Run, processes: int, precision: str) -> Plan:
    nvme = cache_root(run.data.cache) / "nvme"
    return Plan(run.batch.total, run.batch.rows, processes, precision, run.optim, nvme)


def total_steps(run: Run, epoch: int) -> int:
    """Optimizer steps of the run, `epoch` of them to a pass over the data."""
    return run.steps or max(1, math.ceil((run.epochs or 1) * epoch))


def metrics_of(run: Run) -> list[Metric]:
    """What is computed of a split: the loss always."""
    chosen = run.eval.metrics
    return with_loss(
        [Metric.model_validate(name) for name in run.task.default_metrics()] if chosen is None else list(chosen)
    )


def with_loss(metrics: list[Metric]) -> list[Metric]:
    if not any(metric.name == "loss" for metric in metrics):
        metrics.insert(0, Metric.model_validate("loss"))
    return metrics


def check_settings(run: Run) -> None:
    """Every clash of settings at once: what the command line has checked, a caller of `peftkit.train` has not."""
    problems = list(run.problems())
    if problems:
        raise ConfigError(problems)


def check_base(checkpoint: Path, base: Base) -> str:
    """The base's fingerprint; CheckpointError if the checkpoint was trained on other weights."""
    manifest = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))
    expected = manifest.get("base", {}).get("fingerprint")
    if expected and expected != base.fingerprint:
        raise CheckpointError(
            f"{checkpoint} was trained on other weights than those now in {base.source};"
            " put back the model that it was trained on, or begin anew in another --out"
        )
    return base.fingerprint
