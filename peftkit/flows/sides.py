"""The two sides of a comparison: which models they are, how each is opened, and what it answers to the rows."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from peftkit.config.sections import Model
from peftkit.config.speed import Speed
from peftkit.data.encode import Encoder, encode_rows
from peftkit.engine.open import DTYPES, choose_precision
from peftkit.engine.world import World
from peftkit.errors import ConfigError
from peftkit.exporters.manual import MANUAL
from peftkit.flows.answering import How, join_reference, judged
from peftkit.flows.trained import Trained, open_trained, placed, with_columns
from peftkit.kernels.quicken import quicken
from peftkit.models.load import Base, context_limit, load
from peftkit.run_folder import STEP
from peftkit.strategies.full import Full
from peftkit.tasks import Task
from peftkit.tasks.base import Features, Record, Row


@dataclass(frozen=True)
class Answered:
    """What a model says to the rows."""

    task: Task
    records: Mapping[int, Record]
    problems: Mapping[int, str]
    """Why a row could not be read."""


def says_task(name: str) -> bool:
    """Whether it is a run, a checkpoint or an export, which say what was learnt; any other model is a base."""
    place = Path(name).expanduser()
    marks = [place / "config.yaml", place / MANUAL, *([place / "manifest.json"] if STEP.match(place.name) else [])]
    return any(mark.is_file() for mark in marks)


def open_side(name: str | None, other: Trained | None, columns: Mapping[str, str], trust: bool) -> Trained:
    """The model of that name; None: what the `other` was before its first step.

    A base that nobody trained with peftkit takes the task, the columns and the lengths from the `other`.
    """
    if name is None and other is not None:
        return replace(other, model=other.start())
    if name is None or other is None or says_task(name) or looks_like_path(name):
        return with_columns(open_trained(Path(name or ""), trust=trust), columns)
    return open_base(name, other, trust)


def looks_like_path(name: str) -> bool:
    """Whether it names a place on the disk, and no base model: one with a config.json, or of the hub."""
    place = Path(name).expanduser()
    if place.exists():
        return place.is_dir() and not (place / "config.json").is_file()
    return name.startswith(("/", ".", "~")) or name.count("/") > 1


def open_base(name: str, other: Trained, trust: bool) -> Trained:
    """A base model by its folder or hub name."""
    settings = Model(path=name, trust_remote_code=trust)
    dtype = DTYPES[choose_precision("auto", {})]

    def start() -> Base:
        return load(settings, other.task, Full(), dtype, other.seed, other.data.cache)

    base = start()
    return Trained(
        Path(name),
        base.model.eval(),
        base.processor,
        other.task.bind(base.model.config),
        other.data,
        context_limit(base.model.config),
        other.generate,
        lambda: start().model.eval(),
        other.seed,
    )


def released(trained: Trained) -> Trained:
    """The same without the model, whose memory the next one needs."""
    trained = replace(trained, model=None)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return trained


def answered(trained: Trained, rows: Sequence[Row], how: How, world: World) -> Answered:
    """Every row's record, or why it has none. Rows have the task's columns, with the true answers."""
    trained = replace(trained, model=placed(trained.model, world.device))
    quicken(trained.model, trained.task, Speed(unpad="off"))  # rows of like lengths are together anyway
    max_length = min(trained.data.max_length, trained.context or trained.data.max_length)
    encoder = Encoder(trained.task, trained.processor, max_length, trained.data.truncate, trained.data.stride)
    encoded = encode_rows(encoder, rows)
    windows = [[] if row in encoded.problems else [*map(wide, own)] for row, own in enumerate(encoded.windows)]
    if trained.task.reference:
        join_reference(placed(trained.start(), world.device), trained, windows, how, world)
    records = judged(trained, rows, windows, how, world)
    return Answered(trained.task, records, {row: str(why) for row, why in encoded.problems.items()})


def wide(window: Features) -> Features:
    """With the integers that torch takes for labels: rows that are encoded many at once have smaller ones."""
    return {
        name: value.astype(np.int64) if isinstance(value, np.ndarray) and value.dtype == np.int32 else value
        for name, value in window.items()
    }


def in_one_order(sides: Sequence[Answered], rows: Sequence[int]) -> tuple[Task, list[list[Record]]]:
    """Both sides' records of these rows, with probabilities in one order of labels, and the task with that order.

    A label that only one side knows has a probability of 0 with the other. ConfigError for different tasks.
    """
    one, other = (side.task for side in sides)
    if one.name != other.name or one.labels_are != other.labels_are:
        problem = f"--task {one.name}" if one.name != other.name else " or ".join(one.labels_are)
        against = f"--task {other.name}" if one.name != other.name else " or ".join(other.labels_are)
        raise ConfigError(f"the two cannot be compared: one learnt {problem}, the other {against}")
    labels = [list(getattr(side.task, "labels", None) or []) for side in sides]
    everything = list(dict.fromkeys([*labels[0], *labels[1]]))
    found = [
        [ordered(side.records[row], own, everything) for row in rows] for side, own in zip(sides, labels, strict=True)
    ]
    return (one.model_copy(update={"labels": everything}) if everything else one), found


def ordered(record: Record, labels: Sequence[str], wanted: Sequence[str]) -> Record:
    """The record with its probabilities in the order that is wanted."""
    if list(labels) == list(wanted) or "probabilities" not in record:
        return record
    by_name = dict(zip(labels, record["probabilities"], strict=True))
    return {**record, "probabilities": [by_name.get(name, 0.0) for name in wanted]}
