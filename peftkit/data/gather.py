"""Every split's rows before they are encoded: read, their columns renamed, some held out, changed copies added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peftkit.config.rows import source_column
from peftkit.config.sections import Data
from peftkit.data import demo, mixture
from peftkit.data.augment import augmented
from peftkit.data.columns import rename
from peftkit.data.encode import Sources
from peftkit.data.rows import Joined
from peftkit.data.sources import Table, read
from peftkit.data.split import Held, hold_out
from peftkit.tasks import Task


@dataclass(frozen=True)
class Gathered:
    """What there is to learn from."""

    task: Task
    """With its labels."""
    sources: Sources | None
    tables: dict[str, Table]
    held: list[tuple[Table, Held]]
    """The tables of training rows, and which rows of each make which split."""
    copies: int = 0


def gather(data: Data, task: Task, seed: int, by: str | None = None, anchor: str | None = None) -> Gathered:
    """All rows of a run. DataError for everything that is wrong with them."""
    sources, tables, asked = None, {}, task
    if data.mixture:
        task, sources, parts = mixture.read_mixture(data, task, _kept(data, by))
    else:
        found = _embedded(data, task) if data.train is None else {"train": _read(data, task, data.train, "train", by)}
        task = mixture.fit(task, found["train"])
        parts = [found.pop("train")]
        tables = found
    held = _hold_out(parts, data, seed)
    tables |= {split: _picked(held, split) for split in held[0][1]}
    for split, source in {"validation": data.validation, "test": data.test, "anchor": anchor}.items():
        if source is not None:
            tables[split] = _read(data, task, source, split, by)
    if getattr(asked, "class_weights", None) == "balanced" and data.held_out:
        # All labels are known by now; what each counts is of the rows that are learnt, and not of those held out.
        task = mixture.fit(task.model_copy(update={"class_weights": "balanced"}), tables["train"])
    rows = len(tables["train"].rows)
    if data.augment.copies:
        tables["train"] = augmented(tables["train"], data.augment, task.texts, seed, task.anchors)
    return Gathered(task, sources, tables, held, len(tables["train"].rows) - rows)


def _embedded(data: Data, task: Task) -> dict[str, Table]:
    return {split: rename(table, task, data.columns) for split, table in demo.tables(data.limit).items()}


def _read(data: Data, task: Task, source: str, split: str, by: str | None) -> Table:
    """A split's own file; beside a mixture its rows are of a source too, which has the file's name."""
    column = source_column(task) if data.mixture else None
    keep = _kept(data, by) if split == "train" else [by] if by else []
    table = rename(
        read(source, data.limit, split, data.cache), task, data.columns, [one for one in keep if one != column]
    )
    return mixture.marked(table, column, table.name) if column else table


def _kept(data: Data, by: str | None) -> list[str]:
    """Columns of the training rows that the task does not read."""
    return [name for name in dict.fromkeys((by, data.split_by if data.held_out else None)) if name]


def _hold_out(tables: Sequence[Table], data: Data, seed: int) -> list[tuple[Table, Held]]:
    """Of each source alike; a group that is in several sources stays whole."""
    wanted = data.held_out
    if data.split != "group" or len(tables) == 1:
        return [(table, hold_out(table, wanted, data, "label", seed)) for table in tables]
    rows = Joined([table.rows for table in tables])
    whole = hold_out(mixture.joined(tables), wanted, data, "label", seed)
    held: list[Held] = [{split: [] for split in whole} for _ in tables]
    for split, indices in whole.items():
        for part, at in map(rows.find, indices):
            held[part][split].append(at)
    return list(zip(tables, held, strict=True))


def _picked(held: Sequence[tuple[Table, Held]], split: str) -> Table:
    everything = len(held[0][1]) == 1
    return mixture.joined([table if everything else table.pick(rows[split]) for table, rows in held])


def record(gathered: Gathered, data: Data, seed: int, digests: Mapping[str, str]) -> dict[str, Any]:
    """Which rows were held out, for `splits.json`: by their numbers in their file; the rest is learnt.

    The same files, settings and seed give the same record.
    """
    names = [f"mixture/{name}" for name in gathered.sources.names] if gathered.sources else ["train"]
    learnt = [
        {
            "name": table.name,
            "digest": digests.get(name),
            "rows": len(table.rows),
            "unit": table.unit,
            "held_out": {
                split: [table.numbers[row] for row in rows] for split, rows in held.items() if split != "train"
            },
        }
        for name, (table, held) in zip(names, gathered.held, strict=True)
    ]
    given = {
        split: {"name": table.name, "digest": digests.get(split), "rows": len(table.rows)}
        for split, table in gathered.tables.items()
        if split not in gathered.held[0][1]
    }
    settings = data.model_dump(mode="json", include={"split", "split_by", "holdout", "test_holdout", "folds", "fold"})
    return {**settings, "seed": seed, "train": learnt, "given": given}
