"""What the settings of the rows do not go with, a sentence each, naming the flags; what a mixture's sources are read by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from peftkit.registry import did_you_mean
from peftkit.tasks import Task


def clashes(run: Any) -> Iterator[str]:
    """Of `--data` with itself and with the rest of the run."""
    yield from _of_mixture(run)
    yield from _of_balance(run)
    yield from _of_split(run.data, run.task)
    yield from _of_folds(run.data)
    yield from _of_copies(run.data, run.task)
    if run.data.stride is not None and run.data.stride >= run.data.max_length:
        yield (
            f"--data.stride {run.data.stride} is what two windows share, and a window has --data.max_length"
            f" {run.data.max_length} tokens; make it smaller"
        )


def source_column(task: Task) -> str:
    """The column that says which source of a mixture a row is of: `source`, where that is no column of the task."""
    return "source_name" if "source" in task.columns else "source"


def task_of(source: Any, task: Task) -> Task:
    """The task that reads a source's rows."""
    return task if source.task in (None, task.name) else Task.model_validate(source.task)


def is_of_family(other: Task, task: Task) -> bool:
    """Whether the rows of both can stand in one batch: the same model, stacked, counted and summed by the same code."""
    shared = ("model_class", "collate", "targets", "loss", "inputs")
    return all(getattr(type(other), name) is getattr(type(task), name) for name in shared)


def _of_mixture(run: Any) -> Iterator[str]:
    data, task = run.data, run.task
    if not data.mixture:
        if data.temperature != 1:
            yield f"--data.temperature {data.temperature:g} weighs the sources of a --data.mixture, and there is none"
        return
    if data.train is not None:
        yield f"--data.train {data.train} and --data.mixture both say what is learnt; put the one into the other"
    for name, count in Counter(source.called for source in data.mixture).items():
        if count > 1:
            yield f"--data.mixture has {count} sources named {name}; tell them apart: {{path: ..., name: ...}}"
    column = source_column(task)
    if run.eval.by == "source" != column:
        yield (
            f"--eval.by source: for --task {task.name} that is the text which is read; the names of a mixture's sources stand"
            f" in the column {column}"
        )
    for source in data.mixture:
        yield from _of_source(source, task)


def _of_source(source: Any, task: Task) -> Iterator[str]:
    if source.task is not None and source.task not in Task.registry:
        near = did_you_mean(source.task, Task.registry)
        yield f"--data.mixture: {source.called} names no task: {source.task!r}{near}; there are: {', '.join(Task.registry)}"
        return
    own = task_of(source, task)
    if not is_of_family(own, task):
        family = [name for name in Task.registry if is_of_family(Task.model_validate(name), task)]
        yield (
            f"--data.mixture: {source.called} has --task {own.name}, which does not learn as --task {task.name} does;"
            f" these do: {', '.join(family)}"
        )
    for column in source.columns:
        if column not in own.columns:
            yield (
                f"--data.mixture: {source.called} names the column {column!r}, which --task {own.name} does not read;"
                f" it reads: {', '.join(own.columns)}"
            )


def _of_balance(run: Any) -> Iterator[str]:
    balance, task = run.data.balance, run.task
    if balance == "none":
        return
    if run.data.mixture:
        yield f"--data.balance {balance} and --data.mixture both say how often a row is learnt; leave one out"
    problem = getattr(task, "problem", None)
    if "label" not in task.columns:
        yield f"--data.balance {balance} needs rows of one label each, and --task {task.name} has none; leave it out"
    elif problem in ("multi_label", "regression"):
        yield f"--data.balance {balance} needs rows of one label each, which --task.problem {problem} has not; leave it out"


def _of_split(data: Any, task: Task) -> Iterator[str]:
    if data.split != "random" and not data.held_out:
        yield f"--data.split {data.split}: nothing is held out; leave it out, or the rows that are given instead"
    elif data.split in ("group", "time") and data.split_by is None:
        what = "whose groups stay together" if data.split == "group" else "that says when"
        yield f"--data.split {data.split} needs the column {what}: --data.split_by COLUMN"
    elif data.split == "stratified" and data.split_by is None and "label" not in task.columns:
        yield f"--data.split stratified: --task {task.name} has no label; name a column of classes: --data.split_by COLUMN"
    if data.split == "random" and data.split_by is not None:
        yield f"--data.split_by {data.split_by} says nothing to a random split; add --data.split stratified, group or time"
    if data.test_holdout and data.test is not None:
        yield f"--data.test {data.test} are the test rows, so none are held out; leave out --data.test_holdout"
    if data.first is None and (data.folds or data.test_holdout):
        yield "the embedded rows have their own validation rows; --data.folds and --data.test_holdout need --data.train"
    if not data.folds and data.validation is None and data.holdout + data.test_holdout >= 1:
        yield f"--data.holdout {data.holdout:g} and --data.test_holdout {data.test_holdout:g} leave no row to learn from"


def _of_folds(data: Any) -> Iterator[str]:
    if not data.folds:
        if data.fold:
            yield f"--data.fold {data.fold} is one of --data.folds, which are not given"
        return
    if data.fold >= data.folds:
        yield f"--data.fold {data.fold}: with --data.folds {data.folds} there are 0 to {data.folds - 1}"
    if data.validation is not None:
        yield f"--data.validation {data.validation} are the validation rows, so no fold is held out; leave out one of them"
    if data.split == "time":
        yield "--data.split time holds out the latest rows; a fold before them would be learnt from the future: no --data.folds"


def _of_copies(data: Any, task: Task) -> Iterator[str]:
    augment = data.augment
    if augment.copies and not task.texts:
        yield (
            f"--data.augment.copies {augment.copies}: --task {task.name} has no text whose words may change"
            " without its meaning; leave it out"
        )
    if augment.synonyms is not None and not augment.synonyms.is_file():
        yield f"--data.augment.synonyms {augment.synonyms}: there is no such file"
