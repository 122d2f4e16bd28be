"""Rows -> checked, split, encoded features, done once and cached.

    prepared = prepare(run.data, run.task, tokenizer, context=2048, seed=run.seed)
    prepared.task, prepared.train[0], prepared.report.lines()

It needs no process group: any number of processes may call it at once, the first one works and the others read.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from peftkit.cache import cache_root
from peftkit.config.sections import Data
from peftkit.data import demo
from peftkit.data.columns import rename
from peftkit.data.encode import Encoder, encode
from peftkit.data.fingerprint import key
from peftkit.data.report import Report
from peftkit.data.rows import RowFile, write_rows
from peftkit.data.sealed import build_once
from peftkit.data.sources import Table, read
from peftkit.data.store import Store
from peftkit.errors import DataError
from peftkit.tasks import Task
from peftkit.tasks.base import RowError

SUMMARY = "prepared.json"


@dataclass(frozen=True)
class Prepared:
    """What training needs of the data: the fitted task, a store of features per split, and what became of the rows."""

    task: Task
    train: Store
    validation: Store | None
    test: Store | None
    report: Report
    anchor: Store | None = None
    """Rows of the old domain."""
    folder: Path = Path()

    def store(self, split: str) -> Store | None:
        """`train`, `validation`, `test` or `anchor`, if there is one."""
        found: Store | None = getattr(self, split)
        return found

    def rows(self, split: str) -> RowFile:
        """The rows of a split as they were read, under the task's names; `store.row` counts in them."""
        return RowFile(self.folder / split)


def prepare(
    data: Data,
    task: Task,
    processor: Any,
    context: int | None,
    seed: int,
    by: str | None = None,
    anchor: str | None = None,
) -> Prepared:
    """Read, split and encode, or open what was encoded before.

    `context` is the longest row that the model takes (None: any); `by` a column that scores are told apart by; `anchor`
    the rows of the old domain. DataError for everything that is wrong with the rows.
    """
    check(data, task)
    max_length = min(data.max_length, context or data.max_length)
    folder = cache_root(data.cache) / "data" / key(data, task, processor, max_length, seed, by, anchor)
    encoder = Encoder(task, processor, max_length, data.truncate, data.stride)
    build_once(folder, partial(_build, data=data, encoder=encoder, seed=seed, by=by, anchor=anchor))
    return _open(folder)


def check(data: Data, task: Task) -> None:
    """The embedded rows are prompts and responses: a task that reads others needs its own."""
    for problem in task.lacks_rows(data.train):
        raise DataError(problem)


def tables(
    data: Data, task: Task, seed: int, by: str | None = None, anchor: str | None = None
) -> tuple[Task, dict[str, Table]]:
    """The fitted task and every split's rows, their columns under the task's names."""
    given = {"train": data.train, "validation": data.validation, "test": data.test, "anchor": anchor}
    found = {split: read(source, data.limit, split) for split, source in given.items() if source is not None}
    if data.train is None:
        found = {**demo.tables(data.limit), **found}
    keep = [by] if by else []
    renamed = {split: rename(table, task, data.columns, keep) for split, table in found.items()}
    try:
        task = task.fit(renamed["train"].rows)
    except RowError as problem:
        raise DataError(f"{renamed['train'].name}: {problem}") from None
    if "validation" not in renamed and data.holdout:
        renamed["train"], renamed["validation"] = hold_out(renamed["train"], data.holdout, seed)
    return task, renamed


def hold_out(table: Table, share: float, seed: int) -> tuple[Table, Table]:
    """Two tables: the rows to train on, and `share` of them (at least one) to validate on, each in the file's order."""
    rows = list(range(len(table.rows)))
    if len(rows) < 2:
        raise DataError(
            f"{table.name} has one row, so none can be held out; give --data.validation, or --data.holdout 0"
        )
    random.Random(f"holdout {seed}").shuffle(rows)
    count = min(len(rows) - 1, max(1, round(share * len(rows))))
    return table.pick(sorted(rows[count:])), table.pick(sorted(rows[:count]))


def _build(folder: Path, data: Data, encoder: Encoder, seed: int, by: str | None, anchor: str | None) -> None:
    task, found = tables(data, encoder.task, seed, by, anchor)
    encoder = replace(encoder, task=task)
    splits = {}
    for split, table in found.items():
        splits[split] = encode(table, encoder, folder / split, data.workers)
        write_rows(folder / split, table.rows)
    summary = {"task": task.model_dump(mode="json"), "report": Report(splits, encoder.max_length).plain()}
    (folder / SUMMARY).write_text(json.dumps(summary))


def _open(folder: Path) -> Prepared:
    summary = json.loads((folder / SUMMARY).read_text())
    report = Report.read(summary["report"])
    stores = {split: Store(folder / split) for split in report.splits}
    task: Task = Task.model_validate(summary["task"])
    given = {split: stores.get(split) for split in ("validation", "test", "anchor")}
    return Prepared(task, stores["train"], report=report, folder=folder, **given)
