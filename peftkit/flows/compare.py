"""`peftkit compare A B --data ROWS`: two models on the same rows; `peftkit compare RUN`: its base and what came of it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from peftkit.data.columns import rename
from peftkit.data.prepare import Prepared
from peftkit.data.sources import Table, read
from peftkit.engine.world import World, joined
from peftkit.errors import ConfigError, DataError
from peftkit.evaluation.changes import Change, answer_of, asked_of, kind_of, losses_of, truth_of
from peftkit.evaluation.paired import Difference, differences
from peftkit.evaluation.score import compute
from peftkit.flows.evaluate import metrics_of
from peftkit.flows.export import read_run
from peftkit.flows.job import prepare_data
from peftkit.flows.out import check_new, written_to
from peftkit.flows.sides import Answered, answered, in_one_order, open_side, released, says_task
from peftkit.flows.trained import Trained
from peftkit.metrics import Metric
from peftkit.registry import did_you_mean
from peftkit.report.comparison import Comparison, Group, Side
from peftkit.report.page import page
from peftkit.report.terminal import shown
from peftkit.run_folder import RunFolder
from peftkit.tasks import Task
from peftkit.tasks.base import Record, Row
from peftkit.tracking.console import Console, short
from peftkit.tracking.quiet import chatter_to

LONGEST = 48
"""Tokens of an answer, where a run is compared with its base on its own held-out rows and nothing else is said."""
FEWEST = 6
"""Rows from which on a difference can be shown: 5 have 32 exchanges, of which two are as large as the largest."""
TEXTS = ("chrf", "text_exact_match")
"""What is computed of written texts besides a task's own metrics: neither needs to know a language's words."""


@dataclass(frozen=True)
class Asked:
    """Which models, which rows, and what is made of them."""

    models: Sequence[str]
    """Two; or one, which is compared with what it was before it was trained."""
    data: str | None = None
    """A file, a folder, a URL or a hub name. Left out: the held-out rows of the one run that is compared."""
    metrics: Sequence[str] = ()
    """Left out: the task's own, and where it writes texts those of TEXTS."""
    gate: str | None = None
    """A metric that is computed as well: the caller asks whether the second is worse by it."""
    by: str | None = None
    samples: int = 2000
    rows: int = 3
    """Changed rows that are shown; of held-out rows without a `limit`, those that are answered."""
    limit: int | None = None
    batch: int = 8
    columns: Mapping[str, str] = field(default_factory=dict)
    generate: Mapping[str, int] = field(default_factory=dict)
    html: Path | None = None
    json: Path | None = None
    trust: bool = False


@dataclass(frozen=True)
class Rows:
    """What both are asked."""

    name: str
    of: Callable[[Trained], Sequence[Row]]
    """The rows with their columns as this model's task calls them."""
    place: Callable[[int], str]
    groups: Sequence[str] | None = None
    """Each row's value in the column by which rows are grouped."""


def compare(asked: Asked, verbose: bool = False, console: Console | None = None) -> Comparison:
    """Answer the rows with both models, one after the other, and say where and how surely they differ.

    Raises ConfigError if the two learnt different tasks, DataError if no row can be read for both.
    """
    for flag, out in (("--html", asked.html), ("--json", asked.json)):
        if out:
            check_new(out, flag)
    models, labels = named(asked)
    log = RunFolder(Path(asked.models[0])).logs / "compare.log" if asked.data is None else None
    with joined() as world, chatter_to(log, verbose):
        if world.processes > 1:
            raise ConfigError("peftkit compare runs on one process; start it without a launcher")
        rows = held_out_rows(asked) if asked.data is None else rows_of(asked, asked.data)
        told, both = answer_both(models, rows, asked, world)
        found = comparison(asked, labels, [name or f"the base of {models[1]}" for name in models], rows, told, both)
        write(found, asked)
        (console or Console()).show(*shown(found, asked.rows))
        for out in (asked.html, asked.json):
            if out:
                (console or Console()).note(f"written to {out}")
    return found


def named(asked: Asked) -> tuple[list[str | None], tuple[str, str]]:
    """The two models, None for a base, and what they are called in tables."""
    if len(asked.models) == 2:
        if asked.data is None:
            raise ConfigError("two models are compared on rows: name them with --data")
        if not any(map(says_task, asked.models)):
            raise ConfigError(
                f"neither {asked.models[0]} nor {asked.models[1]} says what is learnt: one must be a run's folder,"
                " a checkpoint or an export"
            )
        return list(asked.models), ("A", "B")
    (name,) = asked.models
    if asked.data is not None:
        return [None, name], ("base", "tuned")
    if not (Path(name) / "config.yaml").is_file():
        raise ConfigError(f"{name} is no run's folder, which has held-out rows of its own; name rows with --data")
    folder = RunFolder(Path(name))
    folder.check_links()
    merged = folder.export("merged")
    return [None, str(merged) if merged.is_dir() else name], ("base", "tuned")


def rows_of(asked: Asked, data: str) -> Rows:
    """The rows of a file, a folder, a URL or the hub."""
    table = read(data, asked.limit)

    def of(trained: Trained) -> Sequence[Row]:
        return list(rename(table, trained.task, trained.data.columns).rows)

    return Rows(data, of, table.place, groups_of(table, asked.by))


def groups_of(table: Table, by: str | None) -> list[str] | None:
    if by is None:
        return None
    if by not in table.columns:
        near = did_you_mean(by, table.columns)
        raise DataError(f"{table.name} has no column {by!r}{near}; it has: {', '.join(table.columns)}")
    return [str(row.get(by)) for row in table.rows]


def held_out_rows(asked: Asked) -> Rows:
    """The first held-out rows of a run, as they were read when it was trained."""
    run = read_run(RunFolder(Path(asked.models[0])).config, asked.trust)
    _, prepared = prepare_data(run)
    split, numbers = first_rows(prepared, asked.limit or asked.rows)
    rows = [prepared.rows(split)[number] for number in numbers]
    what = "held-out" if split != "train" else "training"

    def place(at: int) -> str:
        return prepared.places(split, [numbers[at]])

    name = f"the {what} rows of {asked.models[0]}"
    return Rows(name, lambda trained: rows, place, groups_of(Table(name, rows, numbers), asked.by))


def first_rows(prepared: Prepared, count: int) -> tuple[str, list[int]]:
    """The split that is shown, and the numbers of its first usable rows."""
    stores = {name: store for name in ("validation", "test", "train") if (store := prepared.store(name)) is not None}
    split, store = next(iter(stores.items()))
    return split, sorted({int(row) for row in store.row})[:count]


def answer_both(
    models: Sequence[str | None], rows: Rows, asked: Asked, world: World
) -> tuple[Trained, tuple[Answered, Answered]]:
    """What both answer, and (without its model) the one that says the task. One of them is in memory at a time."""
    first = 0 if models[0] is not None and says_task(models[0]) else 1
    told, one = answer_with(models[first], None, rows, asked, world)
    _, other = answer_with(models[1 - first], told, rows, asked, world)
    return told, (one, other) if first == 0 else (other, one)


def answer_with(
    name: str | None, other: Trained | None, rows: Rows, asked: Asked, world: World
) -> tuple[Trained, Answered]:
    trained = open_side(name, other, asked.columns, asked.trust)
    longest = {"max_new_tokens": LONGEST} if asked.data is None else {}
    how = Asked(asked.models, batch=asked.batch, generate={**longest, **asked.generate})
    found = answered(trained, rows.of(trained), how, world)
    return released(trained), found


def comparison(
    asked: Asked,
    labels: tuple[str, str],
    names: Sequence[str],
    rows: Rows,
    told: Trained,
    both: tuple[Answered, Answered],
) -> Comparison:
    """Numbers, tests, groups and rows, of what both have answered."""
    common = sorted(both[0].records.keys() & both[1].records.keys())
    sides = [
        Side(label, name, tuple((rows.place(row), why) for row, why in sorted(own.problems.items())))
        for label, name, own in zip(labels, names, both, strict=True)
    ]
    if not common:
        reasons = dict.fromkeys(why for side in sides for _, why in side.unread)
        raise DataError(f"{rows.name}: no row could be read for both models: {'; '.join(list(reasons)[:5])}")
    task, (before, after) = in_one_order(both, common)
    metrics = [metric.fit(task) for metric in chosen(told, asked, [*before, *after])]
    alike = all(one.get("targets") == other.get("targets") for one, other in zip(before, after, strict=True))
    made = differences(before, after, metrics if alike else without_targets(metrics), asked.samples)
    read_rows = rows.of(told)
    changes = [
        changed(row, rows, read_rows[row], task, one, other)
        for row, one, other in zip(common, before, after, strict=True)
    ]
    return Comparison(
        sides[0],
        sides[1],
        rows.name,
        task.name,
        tuple(made),
        tuple(changes),
        asked.samples,
        asked.by,
        groups(changes, before, after, metrics, made),
        tuple(notes(task, labels, names, alike, len(common))),
    )


def chosen(told: Trained, asked: Asked, records: Sequence[Record]) -> list[Metric]:
    """What is computed: what is asked for, else what tasks of this kind are scored by, and their texts where there are any."""
    texts = TEXTS if not asked.metrics and all(record.get("reference") is not None for record in records) else ()
    own = asked.metrics or told.task.default_metrics()
    names = dict.fromkeys([*own, *texts, *([asked.gate] if asked.gate else [])])
    return metrics_of(told, names)


def without_targets(metrics: Sequence[Metric]) -> list[Metric]:
    """The metrics that do not count targets."""
    return [metric for metric in metrics if "targets" not in metric.needs]


def changed(row: int, rows: Rows, read_row: Row, task: Task, before: Record, after: Record) -> Change:
    return Change(
        row,
        rows.place(row),
        kind_of(before, after),
        asked_of(read_row, task),
        truth_of(before),
        answer_of(before),
        answer_of(after),
        losses_of(before, after),
        rows.groups[row] if rows.groups else None,
    )


def groups(
    changes: Sequence[Change],
    before: Sequence[Record],
    after: Sequence[Record],
    metrics: Sequence[Metric],
    made: Sequence[Difference],
) -> tuple[Group, ...]:
    """Each group's numbers of those that the whole has."""
    members: dict[str, list[int]] = defaultdict(list)
    for at, change in enumerate(changes):
        if change.group is not None:
            members[change.group].append(at)
    names = [one.name for one in made]
    found = []
    for value, rows in sorted(members.items()):
        one, other = (compute([side[at] for at in rows], metrics) for side in (before, after))
        numbers = tuple((name, one[name], other[name]) for name in names if name in one and name in other)
        found.append(Group(value, len(rows), numbers))
    return tuple(found)


def notes(task: Task, labels: Sequence[str], names: Sequence[str], alike: bool, rows: int) -> list[str]:
    """What one should know before one believes the numbers."""
    found = []
    if rows < FEWEST:
        found.append(f"so few rows ({rows}) can show no difference, however large: --limit or --data takes more")
    if not alike:
        found.append(
            "the two split texts into other tokens, so their losses and other numbers per token are of different things;"
            " they are left out"
        )
    for label, name in zip(labels, names, strict=True):
        if "num_labels" in task.model_options() and (label == "base" or not says_task(name)):
            found.append(
                f"{label} was not trained for these labels: unless it came with a head for them, its answers are chance"
            )
    return found


def gate(found: Comparison, metric: str) -> str:
    """Why the second model does not pass, by this metric; empty if it does."""
    name = Metric.model_validate(metric).called
    one = next((one for one in found.differences if one.name == name), None)
    if one is None or one.verdict == "unknown":
        return f"whether {found.after.label} is worse by {name} cannot be tested on these rows"
    if one.verdict != "worse":
        return ""
    told = f"{short(one.before)} with {found.before.label}, {short(one.after)} with {found.after.label}"
    return f"{found.after.name} is significantly worse by {name}: {told} (p {one.adjusted:.2g}, corrected)"


def write(found: Comparison, asked: Asked) -> None:
    """The page and the JSON file, where they are asked for."""
    if asked.html:
        with written_to(asked.html, flag="--html"):
            asked.html.write_text(page(found), encoding="utf-8")
    if asked.json:
        with written_to(asked.json, flag="--json"):
            text = json.dumps(found.plain(), indent=1, ensure_ascii=False, allow_nan=False)
            asked.json.write_text(text + "\n", encoding="utf-8")
