"""Rows -> checked, split, encoded features, done once and cached.

    prepared = prepare(run.data, run.task, tokenizer, context=2048, seed=run.seed)
    prepared.task, prepared.train[0], prepared.report.lines()

It needs no process group: any number of processes may call it at once, the first one works and the others read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from peftkit.cache import cache_root
from peftkit.config.sections import Data
from peftkit.data.draws import balanced, mixed
from peftkit.data.encode import Encoder, encode
from peftkit.data.fingerprint import key, rows_digest
from peftkit.data.gather import gather, record
from peftkit.data.places import places_of, write_places
from peftkit.data.report import Report
from peftkit.data.rows import RowFile
from peftkit.data.sealed import build_once, note_outside, sealed_digest
from peftkit.data.sources import Table
from peftkit.data.store import Store
from peftkit.errors import DataError
from peftkit.tasks import Task

SUMMARY, SPLITS = "prepared.json", "splits.json"
SHOWN = 10


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

    @property
    def splits(self) -> Path:
        """Which rows were held out, as JSON."""
        return self.folder / SPLITS

    @property
    def digest(self) -> str:
        """Of the encoded rows that are learnt and validated on, wherever they came from."""
        return sealed_digest(self.folder, ("train/*.npy", "validation/*.npy"))

    @property
    def anchor_digest(self) -> str:
        """Of the encoded rows of the old domain."""
        return sealed_digest(self.folder, ("anchor/*.npy",))

    def rows(self, split: str) -> RowFile:
        """The rows of a split as they were read, under the task's names; `store.row` counts in them."""
        return RowFile(self.folder / split)

    def places(self, split: str, rows: Sequence[int]) -> str:
        """Where rows of a split stand in what was read, in words: `chat.jsonl line 3, 17`. Nothing of what is in them."""
        return places_of(self.folder / split, rows)


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

    def place(of: Task) -> Path:
        return cache_root(data.cache) / "data" / key(data, of, processor, max_length, seed, by, anchor)

    folder = place(task)
    encoder = Encoder(task, processor, max_length, data.truncate, data.stride)
    build_once(folder, partial(_build, data=data, encoder=encoder, seed=seed, by=by, anchor=anchor))
    prepared = _open(folder, data, {name: getattr(task, name) for name in task.late})
    if prepared.task != task:
        _link(place(prepared.task), folder)
    return prepared


def _link(other: Path, folder: Path) -> None:
    """What goes on with the fitted task (a resumed run, an export) finds the rows that were encoded for the one that met them."""
    try:
        if not other.exists():
            other.symlink_to(folder.name, target_is_directory=True)
    except OSError:  # another process was faster, or the file system has no links: they are encoded once more
        return


def check(data: Data, task: Task) -> None:
    """The embedded rows are prompts and responses: a task that reads others needs its own."""
    for problem in task.lacks_rows(data.first):
        raise DataError(problem)


def _build(folder: Path, data: Data, encoder: Encoder, seed: int, by: str | None, anchor: str | None) -> None:
    found = gather(data, encoder.task, seed, by, anchor)
    encoder = replace(encoder, task=found.task, sources=found.sources)
    splits = {}
    for split, table in found.tables.items():
        splits[split] = encode(table, encoder, folder / split, data.workers)
        write_places(folder / split, table)
    if found.task.reads != "text":
        note_outside(
            folder, dict.fromkeys(chain(*(_named(table, found.task.reads) for table in found.tables.values())))
        )
    splits["train"] = replace(splits["train"], copies=found.copies)
    summary = {
        "task": found.task.model_dump(mode="json"),
        "report": Report(splits, encoder.max_length).plain(),
        "sources": found.sources.names if found.sources else [],
    }
    (folder / SUMMARY).write_text(json.dumps(summary))
    (folder / SPLITS).write_text(json.dumps(record(found, data, seed, rows_digest(data, anchor)), indent=1))


def _named(table: Table, column: str) -> Iterator[str]:
    """The files that rows name."""
    for row in table.rows:
        value = row.get(column)
        path = value.get("path") if isinstance(value, dict) else value
        if isinstance(path, str):
            yield path


def _open(folder: Path, data: Data, late: Mapping[str, Any]) -> Prepared:
    summary = json.loads((folder / SUMMARY).read_text())
    report = Report.read(summary["report"])
    stores = {split: Store(folder / split) for split in report.splits}
    task: Task = Task.model_validate(summary["task"]).model_copy(update=dict(late))
    given = {split: stores.get(split) for split in ("validation", "test", "anchor")}
    train = stores["train"]
    names = _weigh(train, data, summary["sources"], task)
    report = replace(report, epoch=_epoch(train, names))
    return Prepared(task, train, report=report, folder=folder, **given)


def _weigh(store: Store, data: Data, sources: list[str], task: Task) -> list[str]:
    """Say how often the training windows are learnt, and return the names of their groups."""
    if sources:
        weights = {source.called: source.weight for source in data.mixture}
        store.draws = mixed(store.group, [weights[name] for name in sources], data.temperature)
        return [name for number, name in enumerate(sources) if number in store.group]
    if data.balance == "none":
        return []
    labels = store.numbers("labels")
    if labels is None:
        raise DataError(f"--data.balance {data.balance}: the training rows have not one label each; leave it out")
    store.draws = balanced(labels, grow=data.balance == "oversample")
    names = getattr(task, "labels", None) or {}
    return [str(names[number]) if number < len(names) else str(number) for number in np.unique(labels)]


def _epoch(store: Store, names: list[str]) -> str:
    if store.draws is None:
        return ""
    groups = zip(names, store.draws.counts, store.draws.members, strict=True)
    parts = [f"{count:,} of {name}'s {len(windows):,}" for name, count, windows in groups]
    more = f" and {len(parts) - SHOWN} groups more" if len(parts) > SHOWN else ""
    return f"an epoch learns {store.epoch:,} windows: {', '.join(parts[:SHOWN])}{more}"
