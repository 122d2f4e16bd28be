"""`peftkit eval MODEL ROWS`: a trained model's numbers on a file, the same in any world and the same as in training."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from peftkit.config.scored import unfed
from peftkit.config.speed import Speed
from peftkit.data.batches import evaluation_batches
from peftkit.data.prepare import Prepared, prepare
from peftkit.engine.world import World, joined
from peftkit.errors import ConfigError
from peftkit.evaluation.bootstrap import ends_of_intervals
from peftkit.evaluation.reference import reference_values
from peftkit.evaluation.score import Scored, Split, score
from peftkit.flows.job import with_loss
from peftkit.flows.out import check_new, written_to
from peftkit.flows.trained import Trained, open_trained, placed, with_columns
from peftkit.kernels.quicken import quicken
from peftkit.metrics import Metric
from peftkit.tracking.quiet import chatter_to
from peftkit.tracking.teller import Teller


@dataclass(frozen=True)
class Asked:
    """What is to be computed of which rows."""

    rows: str
    """A file, a folder, a URL or a hub name."""
    metrics: Sequence[str] = ()
    """Left out: the task's own."""
    by: str | None = None
    bootstrap: int = 0
    limit: int | None = None
    batch: int = 8
    columns: dict[str, str] = field(default_factory=dict)
    checkpoint: str | None = None
    trust: bool = False
    """Allow Python code that comes with the model."""
    generate: dict[str, int] = field(default_factory=dict)
    """Settings of `generate` other than those that the model was trained with."""
    out: Path | None = None
    """A JSON file for the numbers."""


def evaluate(place: Path, asked: Asked, verbose: bool = False) -> dict[str, float]:
    """Score the model at `place`; its numbers, on every process, with intervals as NAME/low and NAME/high."""
    if asked.out:
        check_new(asked.out)
    with joined() as world, chatter_to(None, verbose):
        teller = Teller(world.first)
        trained = with_columns(open_trained(place, asked.checkpoint, asked.trust), asked.columns)
        quicken(trained.model, trained.task, Speed(unpad="off"))  # rows of like lengths are together anyway
        metrics = metrics_of(trained, asked.metrics)
        prepared = prepare_rows(trained, asked)
        scored = scores(trained, prepared, metrics, asked, world)
        ends = ends_of_intervals(scored.records, metrics, scored.task, asked.bootstrap)
        numbers = {**scored.numbers, **world.share(ends)}
        for line in prepared.report.lines():
            teller.note(line.removeprefix("train: "))
        teller.scores(numbers, asked.by)
        if world.first and asked.out:
            with written_to(asked.out):
                asked.out.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
            teller.note(f"written to {asked.out}")
    return numbers


def metrics_of(trained: Trained, asked: Iterable[str]) -> list[Metric]:
    """What is computed; ConfigError for what cannot be computed of this task's answers."""
    metrics = [Metric.model_validate(name) for name in list(asked) or trained.task.default_metrics()]
    if problems := list(unfed(metrics, trained.task)):
        raise ConfigError([problem.replace("--eval.metrics", "--metrics", 1) for problem in problems])
    for metric in metrics:
        metric.ready()
    return with_loss(metrics)


def prepare_rows(trained: Trained, asked: Asked) -> Prepared:
    """The rows as if they were all there is to train on: none is held out, drawn or changed."""
    alone = {"train": asked.rows, "limit": asked.limit, "holdout": 0.0}
    data = trained.data.model_copy(update=alone)
    return prepare(data, trained.task, trained.processor, trained.context, trained.seed, asked.by)


def scores(trained: Trained, prepared: Prepared, metrics: Sequence[Metric], asked: Asked, world: World) -> Scored:
    split = Split(prepared.train, prepared.rows("train"), trained.processor)
    store, place = prepared.train, (world.processes, world.process)
    batches = partial(evaluation_batches, store, trained.task, trained.processor, asked.batch, *place)
    if trained.task.reference:
        start = placed(trained.start(), world.device)
        found = reference_values(start, batches(), len(store), trained.task, world)
        store.join(world.share(found))
    generate = trained.generate.model_copy(update=asked.generate)
    return score(
        placed(trained.model, world.device), batches(), split, trained.task, metrics, world, generate, asked.by
    )
